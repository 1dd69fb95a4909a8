"""Every operation of the ``lumos`` namespace, and one sample call of each public function."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.testing import strategies, strategies_cache

Arguments = tuple[Any, ...]


def registered_ops() -> set[str]:
    """Names behind ``lumos::`` after all modules of ``lumos_engine.ops`` were imported."""
    for module in pkgutil.iter_modules(ops.__path__):
        importlib.import_module(f"{ops.__name__}.{module.name}")
    names = torch._C._dispatch_get_all_op_names()
    return {name.removeprefix("lumos::").split(".")[0] for name in names if name.startswith("lumos::")}


@dataclass(frozen=True)
class Sample:
    """Calls of one public function.

    Attributes:
        function: name in ``lumos_engine.ops``. arguments: (n) -> positional arguments; other n, other layouts.
        options: keyword arguments.
        leaves: how many of the first arguments have a gradient; gradcheck in fp64 follows from it.
        traceable: whether torch.compile takes the function whole; where its checks read values, its raw operations
            are compiled alone.
        cuda: whether it has a CUDA kernel.
    """

    function: str
    arguments: Callable[[int], Arguments]
    options: dict[str, Any] = field(default_factory=dict)
    leaves: tuple[int, ...] = ()
    traceable: bool = True
    cuda: bool = False

    @property
    def backends(self) -> tuple[str, ...]:
        return ("cpu", "cuda") if self.cuda else ("cpu",)

    def call(self, arguments: Arguments, **options: Any) -> Any:
        return getattr(ops, self.function)(*arguments, **self.options, **options)


def _randn(*shape: int, seed: int = 0) -> Tensor:
    return strategies.randn(shape, torch.float32, seed)


def _layout(n: int) -> SequenceLayout:
    return SequenceLayout.from_segments([[Text(n), Frame(2, 2)], [Frame(1, n)]])


def _attention(n: int) -> Arguments:
    layout = _layout(n)
    q, k, v = (_randn(layout.num_tokens, heads, 32, seed=i) for i, heads in enumerate((2, 1, 1)))
    return q, k, v, layout


def _attention_hidden(n: int) -> Arguments:
    q, k, v, layout = _attention(n)
    return q, k, v, layout.with_hidden(torch.arange(layout.num_tokens) % 3 == 1)


def _paged(n: int) -> Arguments:
    q, k, v, layout = _attention(n)
    step = layout.step([1, 0], [0, n], [n, n + 4])
    return q[step.slots_in_layout], *strategies_cache.in_pages(k, v, layout, 16, step, 0).arguments()


def _positions(n: int) -> Tensor:
    return torch.randint(0, 999, (n, 3), dtype=torch.int32, generator=torch.Generator().manual_seed(n))


def _norm(n: int) -> Arguments:
    return _randn(n, 2, 32), _randn(n, 1, 32, seed=1), *(_randn(1, 32, seed=i) for i in range(2, 6)), _positions(n)


def _loss(n: int) -> Arguments:
    return _randn(n, 8), _randn(5, 8, seed=1), torch.arange(n) % 5, torch.arange(n)


def _linear(n: int) -> Arguments:
    return _randn(n, 40), _randn(24, 40, seed=1)


def _swiglu(n: int) -> Arguments:
    return _randn(n, 40), _randn(n, 40, seed=1), _randn(24, 40, seed=2)


def _tube(n: int) -> Arguments:
    layout = SequenceLayout.from_segments([[Text(2), Frame(2, n), Frame(2, n)]])
    return torch.arange(layout.num_tokens), layout, torch.tensor([0.3]), torch.rand(2 * n), -7


def _pages(n: int) -> Arguments:
    return (
        _randn(n, 1, 32),
        _randn(n, 1, 32, seed=1),
        torch.zeros(16, 16, 1, 32),
        torch.zeros(16, 16, 1, 32),
        torch.arange(n),
    )


def _norm_pages(n: int) -> Arguments:
    q, k, *weights, positions = _norm(n)
    _, v, *pages = _pages(n)
    return q, k, v, *weights, positions, *pages


def _known(n: int) -> Tensor:
    return torch.arange(2 * n).view(2, n) % 3 == 0


def _unmask(n: int) -> Arguments:
    return _randn(2, n, 5), None, torch.zeros(2, n, dtype=torch.int64), _known(n)


SAMPLES = {
    "block_attention": Sample("block_attention", _attention, leaves=(0, 1, 2)),
    "block_attention, hidden keys": Sample("block_attention", _attention_hidden, leaves=(0, 1, 2)),
    "paged_attention": Sample("paged_attention", _paged),
    "merge_attention": Sample(
        "merge_attention",
        lambda n: (_randn(n, 2, 32), _randn(n, 2), _randn(n, 2, 32, seed=1), _randn(n, 2, seed=1)),
        cuda=True,
    ),
    "mm_rope": Sample("mm_rope", lambda n: (_randn(n, 2, 32), _positions(n)), leaves=(0,), cuda=True),
    "mm_rope, in place": Sample("mm_rope", lambda n: (_randn(n, 2, 32), _positions(n)), {"inplace": True}, cuda=True),
    "qk_norm_mm_rope": Sample("qk_norm_mm_rope", _norm, leaves=(0, 1, 2, 3, 4, 5), cuda=True),
    "rms_norm": Sample("rms_norm", lambda n: (_randn(n, 40), _randn(40, seed=1)), leaves=(0, 1)),
    "linear": Sample("linear", _linear, leaves=(0, 1)),
    "swiglu_linear": Sample("swiglu_linear", _swiglu, leaves=(0, 1, 2)),
    "paged_write": Sample("paged_write", _pages, cuda=True),
    "tube_mask": Sample("tube_mask", _tube, traceable=False, cuda=True),
    "masked_linear_cross_entropy": Sample("masked_linear_cross_entropy", _loss, leaves=(0, 1), cuda=True),
    "qk_norm_mm_rope_paged_write": Sample("qk_norm_mm_rope_paged_write", _norm_pages, cuda=True),
    "unmask_step": Sample("unmask_step", _unmask, {"num_masked": 1, "sampling_temperature": 0.0}, cuda=True),
    "sample_codes": Sample(
        "sample_codes",
        lambda n: (_randn(2, n, 5), _randn(2, n, 5, seed=1), _known(n)),
        {"sampling_temperature": 0.0},
        cuda=True,
    ),
    "remask": Sample("remask", lambda n: (_randn(2, n).sigmoid(), _known(n)), {"num_masked": 1}, cuda=True),
}
"""One entry for each function of ``lumos_engine.ops``, and more where it has several raw operations."""

NO_TENSORS = {"inverse_frequencies"}
"""Functions of ``lumos_engine.ops`` that take no tensor, and so need no entry."""


@dataclass(frozen=True)
class RawCall:
    """One call of a raw operation, as a public function made it: ``lumos::<name>(*arguments)``."""

    name: str
    arguments: Arguments

    @property
    def function(self) -> Any:
        return getattr(torch.ops.lumos, self.name)


class _Recorder(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[RawCall] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Arguments = (), kwargs: Any = None) -> Any:
        if func.namespace == "lumos":
            copies = [x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x for x in args]
            self.calls.append(RawCall(func._opname, tuple(copies)))
        return func(*args, **(kwargs or {}))


def raw_calls(sample: Sample, n: int, place: Callable[[Any], Any] = lambda x: x) -> list[RawCall]:
    """The raw operations that one call of ``sample`` makes, forward and, where it has one, backward.

    ``place`` is applied to its arguments first.
    """
    arguments = list(map(place, sample.arguments(n)))
    for place in sample.leaves:
        arguments[place] = arguments[place].requires_grad_()
    with _Recorder() as recorder:
        result = sample.call(tuple(arguments))
        if sample.leaves:
            results = [result] if isinstance(result, Tensor) else result
            sum(x.float().square().sum() for x in results if x.requires_grad).backward()
    return recorder.calls
