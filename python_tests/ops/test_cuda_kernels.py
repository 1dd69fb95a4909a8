"""What the machine sees in the CUDA kernels: the bytes that they ask of memory, and barriers that none can do without."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lumos_engine import ops
from lumos_engine.ops import _registry
from lumos_engine.testing import emulation, strategies

pytest.importorskip("lumos_engine._C_ptxvm", reason="the machine is missing")

ASKED = 1.10  # bytes asked for, of those that must be moved
SECTORS = 1.05  # bytes of the sectors, of those asked for

Shape = tuple[int, int, int]


def mm_rope(shape: Shape, dtype: torch.dtype) -> int:
    """Runs the operation once and returns how many bytes it must move, here and in the functions below."""
    x, positions = strategies.randn(shape, dtype, 0), torch.ones(shape[0], 3, dtype=torch.int32)
    ops.mm_rope(x, positions)
    return 2 * x.nbytes + positions.nbytes + 4 * shape[2] // 2


def paged_write(shape: Shape, dtype: torch.dtype) -> int:
    k = strategies.randn(shape, dtype, 0)
    k_pages, v_pages = torch.zeros(2, 64, 16, *shape[1:], dtype=dtype)
    slots = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[: shape[0]]
    ops.paged_write(k, k, k_pages, v_pages, slots)
    return 4 * k.nbytes + slots.nbytes


def norm_inputs(shape: Shape, dtype: torch.dtype) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
    """q (k too), [weight, bias] in two rows if they divide the heads, [positions, inv_freq]."""
    tokens, heads, head_dim = shape
    rows = 1 + (heads % 2 == 0 and heads > 2)
    weights = [strategies.randn((rows, head_dim), torch.float32, seed) for seed in (1, 2)]
    rest = [torch.ones(tokens, 3, dtype=torch.int32), ops.inverse_frequencies(head_dim)]
    return strategies.randn(shape, dtype, 0), weights, rest


def qk_norm_mm_rope(shape: Shape, dtype: torch.dtype) -> int:
    x, weights, rest = norm_inputs(shape, dtype)
    ops.qk_norm_mm_rope(x, x, *weights, *weights, *rest)
    return 4 * x.nbytes + 2 * sum(w.nbytes for w in weights) + sum(r.nbytes for r in rest)


def qk_norm_mm_rope_paged_write(shape: Shape, dtype: torch.dtype) -> int:
    x, weights, rest = norm_inputs(shape, dtype)
    k_pages, v_pages = torch.zeros(2, 64, 16, *shape[1:], dtype=dtype)
    slots = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[: shape[0]]
    ops.qk_norm_mm_rope_paged_write(x, x, x, *weights, *weights, rest[0], k_pages, v_pages, slots, rest[1])
    return 6 * x.nbytes + 2 * sum(w.nbytes for w in weights) + sum(r.nbytes for r in (*rest, slots))


def qk_norm_mm_rope_backward(shape: Shape, dtype: torch.dtype) -> int:
    x, weights, rest = norm_inputs(shape, dtype)
    torch.ops.lumos._qk_norm_mm_rope_backward(x, x, x, x, weights[0], weights[0], *rest, 1e-5, False)
    return 6 * x.nbytes + 6 * weights[0].nbytes + sum(r.nbytes for r in rest)


def merge_attention(shape: Shape, dtype: torch.dtype) -> int:
    out, lse = strategies.randn(shape, dtype, 0), strategies.randn(shape[:2], torch.float32, 1)
    ops.merge_attention(out, lse, out.clone(), lse + 1)
    return 3 * (out.nbytes + lse.nbytes)


CALLS = [
    mm_rope,
    paged_write,
    merge_attention,
    qk_norm_mm_rope,
    qk_norm_mm_rope_paged_write,
    qk_norm_mm_rope_backward,
]
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)
on_cuda = pytest.mark.parametrize("backend", ["cuda"])  # skipped where there are no kernels
Call = Callable[[Shape, torch.dtype], int]


def total(launch: dict[str, Any], counter: str, kind: str) -> int:
    return sum(line[counter] for line in launch["lines"] if line["class"].startswith(kind))


@on_cuda
@every_call
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(256, 16, 128), (300, 12, 64), (1000, 1, 128), (40, 2, 256), (100, 32, 96)], ids=str)
def test_little_more_is_moved_than_must_be(shape: Shape, dtype: torch.dtype, call: Call, backend: str) -> None:
    with emulation.ptxvm() as machine:
        needed_bytes = call(shape, dtype)
        launch, *_ = machine.launches  # the backward has a second, of sums alone
    asked_bytes = total(launch, "bytes", "global")
    assert needed_bytes <= asked_bytes <= ASKED * needed_bytes
    assert 32 * total(launch, "sectors", "global") <= SECTORS * asked_bytes
    assert total(launch, "instructions", "local") == 0
    if shape[2] != 96:  # there warps go across rows of the table
        assert total(launch, "wavefronts", "shared") == total(launch, "ideal_wavefronts", "shared")


@on_cuda
@every_call
@pytest.mark.parametrize("schedule", [None, 1])
def test_no_barrier_can_be_left_out(schedule: int | None, call: Call, backend: str) -> None:
    arguments = (70, 9, 64), torch.bfloat16
    with emulation.ptxvm(schedule) as machine:
        call(*arguments)
        barriers = [(launch["kernel"], index) for launch in machine.launches for index, _ in launch["synchronisations"]]
    assert barriers
    for kernel, index in barriers:
        left_out = {"skip_instruction": index, "skip_kernel": kernel}
        with (
            pytest.raises(emulation.KernelFault, match=r"race|uninitialised"),
            emulation.ptxvm(schedule, **left_out),
        ):
            call(*arguments)


@on_cuda
def test_nothing_is_launched_for_nothing(backend: str) -> None:
    with emulation.ptxvm() as machine:
        for shape in (0, 2, 32), (2, 0, 32):
            mm_rope(shape, torch.float32)
            paged_write(shape, torch.float32)
            qk_norm_mm_rope(shape, torch.float32)
            qk_norm_mm_rope_paged_write(shape, torch.float32)
            merge_attention(shape, torch.float32)
        linear_cross_entropy(0, 300, torch.float32)
        linear_cross_entropy_backward(0, 300, torch.float32)
        assert machine.launches == []


# ---- the kernels between the matrix products of the loss


def linear_cross_entropy(rows: int, columns: int, dtype: torch.dtype) -> int:
    logits, targets = strategies.randn((rows, columns), dtype, 0), torch.arange(rows)
    state = [torch.zeros(rows) for _ in range(3)]
    _registry.call("linear_cross_entropy", logits, targets, 0, True, *state)
    return logits.nbytes + targets.nbytes + 3 * state[0].nbytes


def linear_cross_entropy_backward(rows: int, columns: int, dtype: torch.dtype) -> int:
    logits, targets = strategies.randn((rows, columns), dtype, 0), torch.arange(rows)
    grad, row_max, row_sum = (torch.ones(rows) for _ in range(3))
    _registry.call("linear_cross_entropy_backward", grad, logits, targets, 0, row_max, row_sum, logits)
    return 2 * logits.nbytes + targets.nbytes + 3 * grad.nbytes


@on_cuda
@pytest.mark.parametrize("call", [linear_cross_entropy, linear_cross_entropy_backward], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), [(64, 4096), (3, 64000), (20, 8208)])
def test_the_loss_moves_its_logits_once(
    rows: int, columns: int, dtype: torch.dtype, call: Callable[[int, int, torch.dtype], int], backend: str
) -> None:
    with emulation.ptxvm() as machine:
        needed_bytes = call(rows, columns, dtype)
        (launch,) = machine.launches
    asked_bytes = total(launch, "bytes", "global")
    assert needed_bytes <= asked_bytes <= ASKED * needed_bytes
    assert 32 * total(launch, "sectors", "global") <= SECTORS * asked_bytes
    assert total(launch, "instructions", "local") == 0
    assert total(launch, "wavefronts", "shared") == total(launch, "ideal_wavefronts", "shared")


@on_cuda
@pytest.mark.parametrize("schedule", [None, 1])
def test_no_barrier_of_the_loss_can_be_left_out(schedule: int | None, backend: str) -> None:
    arguments = 2, 70000, torch.bfloat16  # more than a block holds at a time
    with emulation.ptxvm(schedule) as machine:
        linear_cross_entropy(*arguments)
        (launch,) = machine.launches
    assert len(launch["synchronisations"]) == 2
    for index, _ in launch["synchronisations"]:
        left_out = {"skip_instruction": index, "skip_kernel": launch["kernel"]}
        with pytest.raises(emulation.KernelFault, match=r"race|uninitialised"), emulation.ptxvm(schedule, **left_out):
            linear_cross_entropy(*arguments)
