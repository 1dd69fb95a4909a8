"""Scatter of keys and values into pages."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.testing import poison, strategies, tolerances
from lumos_engine.testing.backends import BACKENDS, COMPILED, DTYPES, running


@st.composite
def writes(draw: st.DrawFn, backend: str) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """(k, v, slots, num_pages, page_size): distinct slots in any order, some pages untouched."""
    num_pages, page_size = draw(st.integers(1, 5)), draw(st.sampled_from([1, 4, 16]))
    tokens = draw(st.integers(0, num_pages * page_size))
    shape = (tokens, draw(st.integers(1, 9)), draw(st.sampled_from(strategies.HEAD_DIMS)))
    dtype, seed = draw(st.sampled_from(DTYPES[backend])), draw(st.integers(0, 2**30))
    k, v = (
        strategies.in_order(strategies.randn(shape, dtype, seed + i), draw(strategies.memory_orders()))
        for i in range(2)
    )
    slots = torch.randperm(num_pages * page_size, generator=torch.Generator().manual_seed(seed))[:tokens]
    return k, v, slots, num_pages, page_size


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), schedule=strategies.seeds())
def test_slots_get_their_tokens_and_nothing_else_is_written(data: st.DataObject, schedule: int, backend: str) -> None:
    k, v, slots, num_pages, page_size = data.draw(writes(backend))
    pages = [poison.GuardedTensor((num_pages, page_size, *k.shape[1:]), k.dtype) for _ in range(2)]
    before = [guarded.tensor.clone() for guarded in pages]
    with running(backend, schedule) as place:
        there = [place(guarded.tensor) for guarded in pages]
        ops.paged_write(place(k), place(v), *there, place(slots))
    for guarded, written, expected, values in zip(pages, there, before, (k, v), strict=True):
        expected.flatten(0, 1)[slots] = values
        tolerances.assert_bitwise_equal(written.cpu(), expected)
        guarded.assert_untouched()


def test_threads_change_nothing() -> None:
    k, v = torch.randn(3000, 2, 64), torch.randn(3000, 2, 64)
    slots = torch.randperm(3200)[:3000]
    k_pages, v_pages = torch.zeros(50, 64, 2, 64), torch.zeros(50, 64, 2, 64)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        ops.paged_write(k, v, k_pages, v_pages, slots)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(k_pages.flatten(0, 1)[slots], k)
    assert torch.equal(v_pages.flatten(0, 1)[slots], v)


@pytest.mark.parametrize("backend", COMPILED)
def test_slots_that_are_not_contiguous(backend: str) -> None:
    """Their copy must live until the kernel has read it: small blocks are reused at once."""
    slots = torch.tensor([7, 0, 1, 0, 5, 0, 2, 0, 0, 0, 4, 0])
    with running(backend) as place:
        k, slots = place(strategies.randn((6, 1, 32), torch.float32, 0)), place(slots)[::2]
        k_pages, v_pages = (place(torch.zeros(2, 4, 1, 32)) for _ in range(2))
        ops.paged_write(k, k, k_pages, v_pages, slots)
    assert torch.equal(k_pages.flatten(0, 1)[slots], k)
    assert torch.equal(v_pages, k_pages)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("slot", [-1, 8])
def test_a_slot_outside_the_pages_is_refused_before_anything_is_written(slot: int, backend: str) -> None:
    k = torch.ones(3, 1, 32)
    k_pages, v_pages = torch.zeros(2, 4, 1, 32), torch.zeros(2, 4, 1, 32)
    with pytest.raises(ValueError, match=rf"{slot}.*the pages hold slots 0\.\.7"):
        ops.paged_write(k, k, k_pages, v_pages, torch.tensor([0, 1, slot]), backend=backend)
    assert not k_pages.any()
    assert not v_pages.any()


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("slot", [-1, 8, 2**31, -(2**63), 2**63 - 1])
def test_a_token_with_a_slot_outside_the_pages_is_left_out_on_cuda(slot: int, backend: str) -> None:
    k = strategies.randn((3, 1, 32), torch.float32, 0)
    pages = [poison.GuardedTensor((2, 4, 1, 32), k.dtype) for _ in range(2)]
    for guarded in pages:
        guarded.tensor.zero_()
    with running(backend) as place:
        there = [place(guarded.tensor) for guarded in pages]
        ops.paged_write(place(k), place(k), *there, place(torch.tensor([5, slot, 1])))
    for guarded, written in zip(pages, there, strict=True):
        expected = torch.zeros(8, 1, 32).index_copy(0, torch.tensor([5, 1]), k[::2])
        tolerances.assert_bitwise_equal(written.cpu().flatten(0, 1), expected)
        guarded.assert_untouched()


@pytest.mark.parametrize("backend", COMPILED)
def test_pages_and_strides_beyond_32_bits(backend: str) -> None:
    """Of memory that no one touches between the tokens and the slots."""
    slots = 2**31 // 64 + 1
    near = strategies.randn((2, 1, 64), torch.bfloat16, 0)
    with running(backend) as place:
        near, last = place(near), place(torch.tensor([1, slots - 1]))
        far = torch.empty(64 * slots, dtype=near.dtype, device=near.device)
        far = far.as_strided((2, 1, 64), (64 * (slots - 1), 64, 1)).copy_(near)
        pages = [torch.empty(slots, 1, 1, 64, dtype=near.dtype, device=near.device) for _ in range(2)]
        for k, v in ((far, near), (near, far)):
            ops.paged_write(k, v, *pages, last)
            for written in pages:
                tolerances.assert_bitwise_equal(written[:, 0].index_select(0, last), near)
                written[:, 0].index_fill_(0, last, 0.0)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(("heads", "head_dim"), [(1, 8), (3, 40), (70, 32), (2, 1032), (300, 8)])
def test_every_shape_of_block_on_cuda(heads: int, head_dim: int, backend: str) -> None:
    """One head and many; heads that several blocks share, and those that leave threads of a block without work."""
    for dtype in DTYPES["cuda"]:
        k, v = (strategies.randn((5, heads, head_dim), dtype, seed) for seed in (0, 1))
        slots = torch.tensor([6, 1, 7, 0, 3])
        with running(backend, 1) as place:
            there = [place(torch.zeros(2, 4, heads, head_dim, dtype=dtype)) for _ in range(2)]
            ops.paged_write(place(k), place(v), *there, place(slots))
        for written, values in zip(there, (k, v), strict=True):
            tolerances.assert_bitwise_equal(written.cpu().flatten(0, 1)[slots], values)


@pytest.mark.parametrize("backend", ["cuda"])
def test_pages_that_are_not_aligned_to_16_bytes_are_refused_on_cuda(backend: str) -> None:
    with running(backend) as place:
        k, slots = place(torch.ones(2, 1, 32)), place(torch.arange(2))
        crooked, straight = place(torch.zeros(2 * 4 * 32 + 1))[1:].view(2, 4, 1, 32), place(torch.zeros(2, 4, 1, 32))
        with pytest.raises(ValueError, match=r"paged_write: v_pages begins at .* all must be multiples of 16"):
            ops.paged_write(k, k, straight, crooked, slots)
        narrow = place(torch.ones(2, 1, 5)), place(torch.zeros(2, 4, 1, 5))
        with pytest.raises(ValueError, match=r"k_pages .* strides of 20 and 20 bytes; all must be multiples of 16"):
            ops.paged_write(narrow[0], narrow[0], narrow[1], narrow[1].clone(), slots)
    assert not straight.any()


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_gradient_flows(backend: str) -> None:
    with running(backend) as place:
        k = place(torch.ones(1, 1, 32)).requires_grad_()
        k_pages = place(torch.zeros(1, 4, 1, 32))
        ops.paged_write(k, k, k_pages, k_pages.clone(), place(torch.tensor([2])))
    assert not k_pages.requires_grad
    assert k_pages[0, 2].all()


@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck_and_compile(backend: str) -> None:
    torch.compiler.reset()
    with running(backend) as place:
        k, slots = place(torch.randn(3, 2, 32)), place(torch.tensor([4, 0, 7]))

        def function(k: Tensor, k_pages: Tensor, v_pages: Tensor) -> Tensor:
            ops.paged_write(k * 2, k, k_pages, v_pages, slots)
            return k_pages.sum() + v_pages.sum()

        plain, compiled = ([place(torch.zeros(2, 4, 2, 32)) for _ in range(2)] for _ in range(2))
        expected = function(k, *plain)
        assert torch.equal(torch.compile(function, fullgraph=True, backend="aot_eager")(k, *compiled), expected)
        torch.library.opcheck(torch.ops.lumos._paged_write.default, (k, k, *plain, slots))
    assert torch.equal(compiled[0], plain[0])
    assert torch.equal(compiled[1], plain[1])


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "k has dtype int32", {"k": torch.ones(2, 1, 32, dtype=torch.int32)}),
        (TypeError, "v has dtype bfloat16; allowed: float32", {"v": torch.ones(2, 1, 32).bfloat16()}),
        (TypeError, "k_pages has dtype bfloat16; allowed: float32", {"k_pages": torch.zeros(2, 4, 1, 32).bfloat16()}),
        (ValueError, r"v has shape \(2, 2, 32\); it must be \[2, 1, 32\]", {"v": torch.ones(2, 2, 32)}),
        (ValueError, r"k_pages has shape \(2, 4, 2, 32\); it must be \[num_pages, page_size, 1, 32\]", {"k_pages": torch.zeros(2, 4, 2, 32)}),
        (ValueError, r"v_pages has shape \(3, 4, 1, 32\); it must be \[2, 4, 1, 32\]", {"v_pages": torch.zeros(3, 4, 1, 32)}),
        (ValueError, "k_pages has strides .*; it must be contiguous", {"k_pages": torch.zeros(4, 2, 1, 32).transpose(0, 1)}),
        (TypeError, "slots has dtype int32; allowed: int64", {"slots": torch.zeros(2, dtype=torch.int32)}),
        (ValueError, r"slots has shape \(3,\); it must be \[2\]", {"slots": torch.zeros(3, dtype=torch.int64)}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, Tensor]) -> None:
    arguments = {
        "k": torch.ones(2, 1, 32), "v": torch.ones(2, 1, 32), "k_pages": torch.zeros(2, 4, 1, 32),
        "v_pages": torch.zeros(2, 4, 1, 32), "slots": torch.arange(2),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.paged_write(**{**arguments, **changes})  # type: ignore[arg-type]
