"""The promises about bits, on every instruction set of the machine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lumos_engine._C as extension
from lumos_engine import SequenceLayout, ops
from lumos_engine.testing import check_backend, poison, strategies, tolerances
from lumos_engine.testing.backends import running
from lumos_engine.testing.oracles import ORACLES
from lumos_engine.testing.properties import num_threads
from lumos_engine.testing.strategies_cache import PAGE_SIZES, cacheable_layouts, in_pages, steps

from .registered import SAMPLES, Sample

Inputs = tuple[SequenceLayout, Tensor, Tensor, Tensor]


@pytest.mark.parametrize("op", ORACLES)
def test_alone_or_packed_from_run_to_run_over_threads_and_pages(op: str, isa: str) -> None:
    oracle = ORACLES[op]
    backward = bool(oracle.leaves)
    check_backend(
        op,
        getattr(ops, op),
        backward=backward,
        promises=oracle.promises,
        waive=("values", *(("gradients",) if backward else ()), *oracle.properties),
        max_examples=6,
    )


@given(
    case=strategies.attention_inputs(layouts=cacheable_layouts()),
    data=st.data(),
    page_size=st.sampled_from((1, *PAGE_SIZES)),
    seed=st.integers(0, 2**30),
)
def test_cached_equals_recomputed(case: Inputs, data: st.DataObject, page_size: int, seed: int) -> None:
    layout, q, k, v = case
    step = data.draw(steps(layout))
    paged = in_pages(k, v, layout, page_size, step, seed)
    before = extension.cpu_isa()
    try:
        for level in extension.available_isas():
            extension.set_cpu_isa(level)
            expected = ops.block_attention(q, k, v, layout)
            with poison.poisoned_outputs():
                actual = ops.paged_attention(q[step.slots_in_layout], *paged.arguments())
            for name, left, right in zip(("out", "lse"), actual, expected, strict=True):
                tolerances.assert_bitwise_equal(left, right[step.slots_in_layout], f"{name} ({level})")
    finally:
        extension.set_cpu_isa(before)


EXCEPT = ("tube_mask", "paged_write")  # integers, or written in place: covered by their own tests
every_result = pytest.mark.parametrize(
    "sample",
    [pytest.param(s, id=n) for n, s in SAMPLES.items() if s.function not in EXCEPT and "inplace" not in s.options],
)


def results_and_gradients(sample: Sample, place: Callable[[Tensor], Tensor] = lambda x: x) -> list[Tensor]:
    arguments = [place(x) if isinstance(x, Tensor) else x for x in sample.arguments(70)]
    leaves = [arguments[leaf].requires_grad_() for leaf in sample.leaves]
    with poison.poisoned_outputs():
        result = sample.call(tuple(arguments))
        results = [result] if isinstance(result, Tensor) else list(result)
        if leaves:
            differentiable = [x for x in results if x.requires_grad]
            results += torch.autograd.grad([x.sum() for x in differentiable], leaves)
    return [x.detach() for x in results]


def assert_all_equal(runs: list[list[Tensor]]) -> None:
    for other in runs[1:]:
        for a, b in zip(other, runs[0], strict=True):
            tolerances.assert_bitwise_equal(a, b)


@every_result
def test_thirty_runs_give_the_same_bits(sample: Sample, isa: str) -> None:
    found = []
    for number in range(30):
        with num_threads(1 + number % 4):
            found.append(results_and_gradients(sample))
    assert_all_equal(found)


@pytest.mark.parametrize("backend", ["cuda"])
@every_result
def test_every_order_of_blocks_and_warps_gives_the_same_bits(sample: Sample, backend: str) -> None:
    found = []
    for schedule in (None, 1, 2):
        with running(backend, schedule) as place:
            found.append(results_and_gradients(sample, place))
    assert_all_equal(found)


def test_threads_change_no_bit_of_many_tokens(isa: str) -> None:
    x, positions = SAMPLES["mm_rope"].arguments(3000)
    with num_threads(1):
        one = ops.mm_rope(x, positions)
    with num_threads(3):
        tolerances.assert_bitwise_equal(ops.mm_rope(x, positions), one)
