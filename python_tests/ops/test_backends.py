"""The choice of backend, and what an emulated GPU changes about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lumos_engine import _C, ops
from lumos_engine.ops import _registry as registry
from lumos_engine.testing.backends import running


class Emulator:
    """An extension that notes its calls of mm_rope, its only CUDA kernel, instead of running them."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def cuda_kernels(self) -> list[str]:
        return ["mm_rope"]

    def mm_rope(self, *arguments: Any) -> None:
        self.calls.append(arguments)


X, POSITIONS = torch.ones(2, 1, 32), torch.zeros(2, 3, dtype=torch.int32)
ONE = torch.zeros(2, 1)


@pytest.mark.parametrize("options", [{}, {"backend": "cuda"}])
def test_within_an_emulation_tensors_on_the_cpu_go_to_the_cuda_kernel(options: dict[str, str]) -> None:
    emulator = Emulator()
    with registry.emulate(emulator):
        assert registry.uses_cuda("mm_rope", X)
        out = ops.mm_rope(X, POSITIONS, **options)
        ops.mm_rope(X, POSITIONS, inplace=True, **options)
    assert not registry.uses_cuda("mm_rope", X)
    assert torch.equal(ops.mm_rope(X, POSITIONS), X)
    for call, written in zip(emulator.calls, (out, X), strict=True):
        assert call == (*map(registry.view, (X, POSITIONS)), call[2], registry.view(written), False, False, (0, 0, 0))


def test_within_an_emulation_operations_without_a_cuda_kernel_stay_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_cuda_kernels", ())
    expected = ops.merge_attention(X, ONE, X * 2, ONE)
    with registry.emulate(Emulator()):
        for options in ({}, {"backend": "cpu"}):
            actual = ops.merge_attention(X, ONE, X * 2, ONE, **options)
            assert all(map(torch.equal, actual, expected))
        with pytest.raises(RuntimeError, match="merge_attention: this build carries no CUDA kernel of it"):
            ops.merge_attention(X, ONE, X, ONE, backend="cuda")


@pytest.mark.parametrize("ask", [lambda: ops.mm_rope(X, POSITIONS, backend="cpu"), lambda: ops.mm_rope(X, POSITIONS)])
def test_within_an_emulation_the_cpu_backend_is_refused(ask: Callable[[], Any]) -> None:
    with (
        registry.emulate(Emulator()),
        ops.use_backend("cpu"),
        pytest.raises(ValueError, match="mm_rope: backend is 'cpu' within an emulation"),
    ):
        ask()


def test_within_an_emulation_the_reference_is_itself() -> None:
    emulator = Emulator()
    with registry.emulate(emulator):
        assert torch.equal(ops.mm_rope(X, POSITIONS, backend="reference"), X)
    assert not emulator.calls


def test_an_error_within_an_emulation_ends_it() -> None:
    with pytest.raises(KeyError), registry.emulate(Emulator()):
        raise KeyError
    assert not registry.uses_cuda("mm_rope", X)


def test_the_binding_refuses_a_gpu_that_the_build_has_no_kernels_for() -> None:
    if _C.cuda_kernels():
        pytest.skip("this build has CUDA kernels")
    views = map(registry.view, (X, POSITIONS, torch.ones(16), X))
    with pytest.raises(RuntimeError, match="built without CUDA kernels"):
        _C.mm_rope(*views, False, False, (0, 0, 1))


def test_float16_is_for_cuda_and_the_reference() -> None:
    row = torch.ones(1, X.shape[-1])
    for function, arguments in (
        (ops.qk_norm_mm_rope, (X.half(), X.half(), row, row, row, row, POSITIONS)),
        (ops.mm_rope, (X.half(), POSITIONS)),
        (ops.paged_write, (X.half(), X.half(), X.half()[None], X.half()[None], torch.arange(2))),
    ):
        function(*arguments, backend="reference")
        with pytest.raises(TypeError, match="has dtype float16; allowed: float32, bfloat16"):
            function(*arguments, backend="cpu")


@pytest.mark.parametrize("backend", ["cuda"])
def test_the_same_kernel_serves_both_ways_to_ask_for_it(backend: str) -> None:
    with running(backend) as place:
        x, positions = place(X), place(POSITIONS)
        assert torch.equal(ops.mm_rope(x, positions, backend="cuda"), ops.mm_rope(x, positions))
