"""CUDA kernels at the numbers of tokens around their tiles, of tensors as far from dense as their accesses of 16 bytes allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.ops import _registry
from lumos_engine.testing import poison, strategies, tolerances
from lumos_engine.testing.backends import DTYPES, running

LENGTHS = (1, 63, 64, 65, 127, 128, 129)
HEAD_DIM, PAGE_SIZE = 64, 16

on_cuda = pytest.mark.parametrize("backend", ["cuda"])
every_dtype = pytest.mark.parametrize("dtype", DTYPES["cuda"])


def crooked(x: Tensor) -> Tensor:
    """The same values: the first one, tokens and heads at odd multiples of 16 bytes, NaN between and behind them."""
    tokens, heads, head_dim = x.shape
    unit = 16 // x.element_size()
    head = (head_dim // unit // 2 * 2 + 1) * unit
    token = heads * head + unit * (heads % 2 == 0)
    memory = x.new_full((unit + (tokens + 1) * token,), torch.nan)
    return memory.as_strided(x.shape, (token, head, 1), unit).copy_(x)


def heads(dtype: torch.dtype, seed: int, num_heads: int = 2, tokens: int = LENGTHS[-1]) -> Tensor:
    return strategies.randn((tokens, num_heads, HEAD_DIM), dtype, seed)


POSITIONS = torch.randint(0, 3000, (LENGTHS[-1], 3), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
SLOTS = torch.randperm(9 * PAGE_SIZE, generator=torch.Generator().manual_seed(2))[: LENGTHS[-1]]
WEIGHTS = [strategies.randn((1, HEAD_DIM), torch.float32, seed) for seed in range(10, 14)]


def mm_rope(x: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
    return (ops.mm_rope(x, positions),)


def qk_norm_mm_rope(q: Tensor, k: Tensor, grad_q: Tensor, grad_k: Tensor, positions: Tensor) -> tuple[Tensor, ...]:
    leaves = q.detach().requires_grad_(), k.detach().requires_grad_()
    weights = [weight.to(q.device) for weight in WEIGHTS]
    results = ops.qk_norm_mm_rope(*leaves, *weights, positions)
    return *(x.detach() for x in results), *torch.autograd.grad(results, leaves, (grad_q, grad_k))


def written(k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """What stands in the slots; all others must hold the NaN that they held before."""
    found = [pages.flatten(0, 1)[slots] for pages in (k_pages, v_pages)]
    for pages in (k_pages, v_pages):
        pages.flatten(0, 1)[slots] = torch.nan
        assert pages.isnan().all(), "written beside the slots"
    return found[0], found[1]


def pages_for(k: Tensor) -> list[Tensor]:
    return [k.new_full((9, PAGE_SIZE, *k.shape[1:]), torch.nan) for _ in range(2)]


def paged_write(k: Tensor, v: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
    pages = pages_for(k)
    ops.paged_write(k, v, *pages, slots)
    return written(*pages, slots)


def qk_norm_mm_rope_paged_write(
    q: Tensor, k: Tensor, v: Tensor, positions: Tensor, slots: Tensor
) -> tuple[Tensor, ...]:
    pages = pages_for(k)
    weights = [weight.to(q.device) for weight in WEIGHTS]
    q_out = ops.qk_norm_mm_rope_paged_write(q, k, v, *weights, positions, *pages, slots)
    return q_out, *written(*pages, slots)


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, ...]:
    return ops.merge_attention(out_a, lse_a, out_b, lse_b)


def sample_codes(cond: Tensor, uncond: Tensor, known: Tensor, uniforms: Tensor) -> tuple[Tensor, ...]:
    return ops.sample_codes(cond, uncond, known, uniforms=uniforms, guidance_scale=2.0)


def linear_cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """Loss, state and gradient of the logits, one head each."""
    logits, state = logits[:, 0], [targets.new_empty(len(targets), dtype=torch.float32) for _ in range(3)]
    ones, grad = torch.ones_like(state[0]), logits.new_empty_strided(logits.shape, logits.stride())
    _registry.call("linear_cross_entropy", logits, targets, 0, True, *state)
    _registry.call("linear_cross_entropy_backward", ones, logits, targets, 0, *state[1:], grad)
    return *state, grad


def lse(seed: int) -> Tensor:
    return strategies.randn((LENGTHS[-1], 2), torch.float32, seed)


# name: (call, its arguments for the largest number of tokens, each [tokens, ...])
CALLS: dict[str, tuple[Callable[..., tuple[Tensor, ...]], Callable[[torch.dtype], Sequence[Tensor]]]] = {
    "mm_rope": (mm_rope, lambda d: (heads(d, 0), POSITIONS)),
    "qk_norm_mm_rope": (
        qk_norm_mm_rope, lambda d: (heads(d, 0), heads(d, 1, 1), heads(d, 2), heads(d, 3, 1), POSITIONS),
    ),
    "paged_write": (paged_write, lambda d: (heads(d, 0), heads(d, 1), SLOTS)),
    "qk_norm_mm_rope_paged_write": (
        qk_norm_mm_rope_paged_write, lambda d: (heads(d, 0, 4), heads(d, 1), heads(d, 2), POSITIONS, SLOTS),
    ),
    "merge_attention": (merge_attention, lambda d: (heads(d, 0), lse(1), heads(d, 2), lse(3))),
    "sample_codes": (
        sample_codes, lambda d: (heads(d, 0), heads(d, 1), lse(2) > 1, lse(3).sigmoid()),
    ),
    "linear_cross_entropy": (linear_cross_entropy, lambda d: (heads(d, 0, 1), torch.arange(LENGTHS[-1]) % HEAD_DIM)),
}  # fmt: skip


@on_cuda
@every_dtype
@pytest.mark.parametrize("name", CALLS)
def test_the_first_tokens_have_the_bits_that_they_have_among_more(name: str, dtype: torch.dtype, backend: str) -> None:
    call, make = CALLS[name]
    arguments = make(dtype)
    with running(backend) as place:
        among_more = [x.cpu() for x in call(*map(place, arguments))]
    for length in LENGTHS:
        first = [crooked(x[:length]) if x.ndim == 3 else x[:length] for x in arguments]
        before = _registry.copies.total()
        with running(backend, length) as place, poison.poisoned_outputs():
            results = [x.cpu() for x in call(*map(place, first))]
        assert _registry.copies.total() == before, "read where it lies"
        for i, (result, whole) in enumerate(zip(results, among_more, strict=True)):
            tolerances.assert_bitwise_equal(result, whole[:length], f"result {i} of {length} tokens")


@on_cuda
@pytest.mark.parametrize("length", LENGTHS)
def test_rows_that_are_ranked_follow_the_reference(length: int, backend: str) -> None:
    """Whole numbers, so in every bit."""
    layout = SequenceLayout.from_segments([[Text(3), *[Frame(1, length)] * 2], [Frame(1, length)]])
    generator = torch.Generator().manual_seed(length)
    tokens, u, ranks = (
        torch.arange(layout.num_tokens),
        torch.rand(2, generator=generator),
        torch.rand(2 * length, generator=generator),
    )
    confidence, known = torch.rand(3, length, generator=generator), torch.rand(3, length, generator=generator) < 0.3
    found = []
    for name in (backend, "reference"):
        with running(name, length) as place, poison.poisoned_outputs():
            masked = ops.remask(place(confidence), place(known), num_masked=length // 2)
            found.append([x.cpu() for x in (masked, *ops.tube_mask(place(tokens), layout, place(u), place(ranks), -1))])
    for actual, expected in zip(*found, strict=True):
        assert torch.equal(actual, expected)
