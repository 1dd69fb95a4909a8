"""Key splits on CUDA: partial results and their merge change no promise. In emulation where there is no GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from math import prod

import pytest
import torch
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.layout import key_splits
from lumos_engine.ops import _registry as registry
from lumos_engine.testing import check_backend, eager, emulation, poison, strategies, tolerances
from lumos_engine.testing.backends import has_gpu, running
from lumos_engine.testing.strategies_cache import in_pages

from . import cuda_attention
from .cuda_attention import assert_same, inputs

Sequence = list[Text | Frame]
KERNELS = [
    *((torch.bfloat16, head_dim) for head_dim in (32, 64, 96, 128)),
    *((torch.float16, head_dim) for head_dim in (64, 128)),
    *((torch.float32, head_dim) for head_dim in (32, 96, 256)),
]
FRAME = Frame(8, 8)
VIDEO: Sequence = [Text(7), Frame(8, 8, newlines=True, header=3, footer=1), FRAME, FRAME, Text(70)]

on_cuda = pytest.mark.parametrize("backend", ["cuda"])  # skipped where there are no kernels
every_kernel = pytest.mark.parametrize(("dtype", "head_dim"), KERNELS, ids=lambda x: str(x).removeprefix("torch."))
both_sides = pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 2)])  # two tiles, or two heads, in a block


@pytest.fixture(autouse=True)
def short_splits(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of one key tile for segments of one, two for segments of two, so that small inputs have many."""
    monkeypatch.setattr(key_splits, "MIN_SPLIT_TILES", 1)
    yield


attend = partial(cuda_attention.attend, cut=True)
assert_exact = partial(cuda_attention.assert_exact, cut=True)


def cached(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, step: object, page_size: int, seed: int
) -> list[Tensor]:
    paged = in_pages(k, v, layout, page_size, step, seed)  # type: ignore[arg-type]
    with running("cuda", seed) as place, poison.poisoned_outputs():
        own = place(q[paged.step.slots_in_layout])
        moved = replace(paged.step, intervals=paged.step.intervals.to(own.device))
        pages = map(place, (paged.k_pages, paged.v_pages, paged.page_table))
        return [x.cpu() for x in ops.paged_attention(own, *pages, paged.key_tiles, moved)]


# ---- the right numbers


@on_cuda
@every_kernel
def test_every_kernel_is_exact(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    layout = SequenceLayout.from_segments([VIDEO, VIDEO[:3]])
    for schedule, (heads, kv_heads) in enumerate([(1, 1), (4, 2)]):
        assert_exact(layout, inputs(layout, dtype, head_dim, heads, kv_heads), schedule)


@on_cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_scores_that_rise_and_fall_from_split_to_split(dtype: torch.dtype, backend: str) -> None:
    layout = SequenceLayout.from_segments([[Text(5), *[FRAME] * 4]])
    q, k, v = inputs(layout, dtype, 64)
    q[::2] = q[::2].abs() + 1
    factor = torch.tensor([1.0, 9.0, 0.0, 30.0, 3.0])[layout.frame_id.long() + 1].to(dtype)
    assert_exact(layout, [q, k.abs() * factor[:, None, None], v])


@on_cuda
def test_gradients(backend: str) -> None:
    """The backward reads the row_state that the merge has made."""
    layout = SequenceLayout.from_segments([VIDEO])
    tensors = inputs(layout, torch.bfloat16, 64)
    grad = strategies.randn(tuple(tensors[0].shape), torch.bfloat16, 9)

    def gradients(function: object, dtype: torch.dtype, **options: str) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in tensors]
        return torch.autograd.grad(function(*leaves, layout, **options)[0], leaves, grad.to(dtype))  # type: ignore[operator]

    with running("cuda"):
        actual = gradients(ops.block_attention, torch.bfloat16)
    exact = gradients(ops.block_attention, torch.float64, backend="reference")
    baseline = gradients(eager.block_attention, torch.bfloat16)
    for name, *three in zip("qkv", actual, exact, baseline, strict=True):
        tolerances.assert_within_bound(*three, f"grad of {name}")


@on_cuda
@pytest.mark.parametrize("op", ["block_attention", "paged_attention"])
def test_properties(op: str, backend: str) -> None:
    with running(backend, 5) as place:

        def block(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, **options: float) -> object:
            q, k, v = map(place, (q, k, v))
            return ops.block_attention(q, k, v, layout.to(q.device), **options)

        def paged(q: Tensor, *rest: object, **options: float) -> object:
            *pages, key_tiles, step = rest
            q = place(q)
            step = replace(step, intervals=step.intervals.to(q.device))
            return ops.paged_attention(q, *map(place, pages), key_tiles, step, **options)

        check_backend(
            op,
            block if op == "block_attention" else paged,
            promises=("run_to_run", "packing", *(["placement"] if op == "paged_attention" else [])),
            dtypes=(torch.bfloat16,),
            head_dims=(32, 64),
            max_examples=4,
        )


# ---- what is not seen


@on_cuda
@every_kernel
def test_splits_in_which_a_row_or_a_tile_sees_nothing(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    """Their rows of the workspace are NaN. Bits: those without a split, where only one of them has keys that a row sees."""
    rows = [[0, 0, 64, 0, 0]] * 20 + [[3, 70, 128, 0, 0]] * 20 + [[0, 0, 0, 130, 150]] * 20 + [[0, 0, 0, 0, 0]] * 4
    rows += [[0, 0, 60, 140, 192]] * 64 + [[0, 0, 0, 0, 0]] * 64
    layout = SequenceLayout.from_intervals([192], torch.tensor(rows), segments=[[FRAME] * 3])
    layout = layout.with_hidden((torch.arange(192) % 3 == 1) | (torch.arange(192) // 64 == 1))
    q, k, v = inputs(layout, dtype, head_dim)
    q[60:64] = float("nan")
    k, v = poison.poison_unseen_keys(k, v, layout)
    out, lse, state = attend(q, k, v, layout, 1)
    nothing = ~layout.visible(0).any(1)
    assert bool((out[nothing] == 0).all()) and bool((lse[nothing] == -torch.inf).all())
    assert bool((state[nothing][..., 1] == 0).all())
    one_split = torch.arange(192) < 60
    without = attend(q, k, v, layout, cut=False)
    assert_same([x[one_split] for x in (out, lse, state)], [x[one_split] for x in without])
    clean = [x.nan_to_num(0.0) for x in (q, k, v)]
    assert_exact(layout, clean)
    assert_same([x[~nothing] for x in (out, lse, state)], [x[~nothing] for x in attend(*clean, layout)])


@on_cuda
@every_kernel
@pytest.mark.parametrize("value", [float("nan"), -float("inf")])
def test_what_is_not_finite_stays_with_the_tokens_that_see_it(
    value: float, dtype: torch.dtype, head_dim: int, backend: str
) -> None:
    layout = SequenceLayout.from_segments([VIDEO])
    layout = layout.with_hidden(torch.arange(layout.num_tokens) % 5 == 0)
    q, k, v = inputs(layout, dtype, head_dim)
    clean = attend(q, k, v, layout)
    token, channel = 180, 5  # hidden as history, seen in its own frame
    sees = layout.visible(0)[:, token]
    assert 0 < sees.sum() < layout.num_tokens - token
    v[token, :, channel] = value
    dirty = attend(q, k, v, layout)
    assert_same([x[~sees] for x in dirty], [x[~sees] for x in clean])
    seen = dirty[0][sees]
    tolerances.assert_bitwise_equal(seen[..., :channel], clean[0][sees][..., :channel])
    torch.testing.assert_close(
        seen[..., channel], torch.full_like(seen[..., channel], value), rtol=0, atol=0, equal_nan=True
    )
    v[token] = 1.0
    k[token] = value
    dirty, without = attend(q, k, v, layout), attend(q, k, v, layout, cut=False)
    assert_same([x[~sees] for x in dirty], [x[~sees] for x in clean])
    for left, right in zip(dirty, without, strict=True):
        assert torch.equal(left.isnan(), right.isnan())


# ---- bits


@on_cuda
@both_sides
@pytest.mark.parametrize(("dtype", "head_dim"), [(torch.bfloat16, 64), (torch.float16, 128), (torch.float32, 32)])
def test_packed_equals_alone(dtype: torch.dtype, head_dim: int, heads: int, kv_heads: int, backend: str) -> None:
    sequences: list[Sequence] = [[Text(33)], VIDEO, [Text(3), Frame(8, 9)], VIDEO[:2]]
    layout = SequenceLayout.from_segments(sequences)
    tensors = inputs(layout, dtype, head_dim, heads, kv_heads)
    packed = attend(*tensors, layout, 1)
    for i, sequence in enumerate(sequences):
        own = slice(int(layout.cu_seqlens[i]), int(layout.cu_seqlens[i + 1]))
        alone = attend(*(x[own] for x in tensors), SequenceLayout.from_segments([sequence]))
        assert_same([x[own] for x in packed], alone)


@on_cuda
def test_heads_in_one_call_or_in_several_have_equal_bits(backend: str) -> None:
    layout = SequenceLayout.from_segments([VIDEO])
    q, k, v = inputs(layout, torch.bfloat16, 64, 4, 1)
    together = attend(q, k, v, layout)
    for head in range(4):
        assert_same([x[:, head : head + 1] for x in together], attend(q[:, head : head + 1], k, v, layout))


@on_cuda
def test_run_to_run_under_any_order_of_blocks_and_warps(backend: str) -> None:
    layout = SequenceLayout.from_segments([VIDEO, VIDEO[1:]])
    tensors = inputs(layout, torch.bfloat16, 64)
    first = attend(*tensors, layout)
    for schedule in range(3):
        assert_same(attend(*tensors, layout, schedule), first)


@on_cuda
@every_kernel
def test_cached_equals_recomputed_at_any_page_size(dtype: torch.dtype, head_dim: int, backend: str) -> None:
    layout = SequenceLayout.from_segments([VIDEO, VIDEO[:4]])
    third, last = layout.segments(0)[3], layout.segments(1)[3]
    step = layout.step([1, 0], [last[1], layout.segments(0)[2][1]], [last[2], third[2]])
    for heads, kv_heads in ((1, 1), (4, 2)):
        q, k, v = inputs(layout, dtype, head_dim, heads, kv_heads)
        expected = [x[step.slots_in_layout] for x in attend(q, k, v, layout)]
        for seed, page_size in enumerate((16, 48, 256) if dtype != torch.float32 else (48,)):
            assert_same(cached(q, k, v, layout, step, page_size, seed), expected)


@on_cuda
@pytest.mark.parametrize("cut", [(0, 1), (3, 40), (63, 65), (64, 70)])
def test_text_that_is_cut_anywhere(cut: tuple[int, int], backend: str) -> None:
    """Each token sees a window of its own: rows of a tile that are in the step meet other tiles than the tile would."""
    tokens = torch.arange(199)
    rows = torch.stack((tokens * 0, (tokens - 100).clamp(min=0), tokens, tokens, tokens + 1), dim=1)
    rows[:129, 1:3] = 0
    layout = SequenceLayout.from_intervals([199], rows, segments=[[Text(65), FRAME, Text(70)]])
    q, k, v = inputs(layout, torch.bfloat16, 64)
    step = layout.step(0, 129 + cut[0], 129 + cut[1])
    expected = [x[step.slots_in_layout] for x in attend(q, k, v, layout)]
    assert_same(cached(q, k, v, layout, step, 16, 3), expected)


@on_cuda
@pytest.mark.parametrize("rule", [1, 16])
def test_evicted_frames_change_no_bit(rule: int, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """The window of the last of 20 frames lies in the second split of the rule; what precedes it is no more in the cache."""
    monkeypatch.setattr(key_splits, "MIN_SPLIT_TILES", rule)
    layout = SequenceLayout.frame_window([[Text(5), *[FRAME] * 20]], 6, sink_frames=1)
    q, k, v = inputs(layout, torch.bfloat16, 64)
    step = layout.step(0, *layout.segments(0)[20][1:])
    expected = [x[step.slots_in_layout] for x in attend(q, k, v, layout)]
    assert_same(cached(q, k, v, layout, step, 64, 2), expected)
    paged = in_pages(k, v, layout, 64, step, 2)
    seen = layout.visible(0)[step.slots_in_layout[0]]
    tiles = paged.key_tiles.tiles
    kept = tiles[[bool(seen[index]) for index in tiles[:, 2].tolist()]]
    assert len(kept) < len(tiles)
    with running("cuda", 1) as place, poison.poisoned_outputs():
        own = place(q[step.slots_in_layout])
        moved = replace(step, intervals=step.intervals.to(own.device))
        pages = map(place, (paged.k_pages, paged.v_pages, paged.page_table))
        results = ops.paged_attention(own, *pages, replace(paged.key_tiles, tiles=kept), moved)
    assert_same([x.cpu() for x in results], expected)


# ---- blocks


def forward_blocks(machine: emulation.Machine) -> tuple[int, int]:
    """Thread blocks of the forward, and of the merge."""
    blocks = [0, 0]
    for launch in machine.launches:
        grid = launch["grid"]
        if "forward" in launch["kernel"]:
            blocks[0] += prod(grid)
        elif "key_splits_merge" in launch["kernel"]:
            blocks[1] += prod(grid)
    return blocks[0], blocks[1]


@on_cuda
def test_a_frame_against_a_cache_takes_more_blocks(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    """By the rule as it is: 256 tokens against 1100, in 2 splits of up to 1024."""
    if has_gpu():
        pytest.skip("the kernels run on the GPU here, which keeps no record of launches")
    monkeypatch.setattr(key_splits, "MIN_SPLIT_TILES", 16)
    layout = SequenceLayout.from_segments([[Text(5), *[Frame(16, 16)] * 5]])
    q, k, v = inputs(layout, torch.bfloat16, 64, 3, 3)
    step = layout.step(0, *layout.segments(0)[5][1:])
    paged = in_pages(k, v, layout, 64, step, 2)
    found = []
    for lengths in (step.split_tokens, torch.full_like(step.split_tokens, 2**31 - 1)):
        with emulation.ptxvm(3) as machine, poison.poisoned_outputs():
            arguments = (paged.k_pages, paged.v_pages, paged.page_table, paged.key_tiles)
            out, lse = ops.paged_attention(q[step.slots_in_layout], *arguments, replace(step, split_tokens=lengths))
            found.append(forward_blocks(machine))
        exact = ops.block_attention(*(x.double() for x in (q, k, v)), layout, backend="reference")
        baseline = eager.block_attention(q, k, v, layout)
        for name, actual, *two in zip(("out", "lse"), (out, lse), exact, baseline, strict=True):
            tolerances.assert_within_bound(actual, *(x[step.slots_in_layout] for x in two), name)
    assert found == [(2 * 2 * 3, 4 * 3 * 2), (2 * 3, 0)]


@on_cuda
def test_many_query_tiles_take_no_splits(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    if has_gpu():
        pytest.skip("the kernels run on the GPU here, which keeps no record of launches")
    monkeypatch.undo()
    layout = SequenceLayout.from_segments([[Text(64), Frame(16, 32), Frame(16, 32)]])
    q, k, v = inputs(layout, torch.bfloat16, 32, 1, 1)
    with emulation.ptxvm() as machine:
        ops.block_attention(q, k, v, layout)
        assert forward_blocks(machine) == (9, 0)


@on_cuda
def test_a_workspace_that_is_too_small_is_refused(monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
    if has_gpu():
        pytest.skip("one device is enough")
    extension = registry.extension()
    less = extension.key_splits_workspace
    monkeypatch.setattr(extension, "key_splits_workspace", lambda *sizes: less(*sizes) - 4)
    layout = SequenceLayout.from_segments([VIDEO])
    with pytest.raises(ValueError, match=r"the workspace of the key splits has \d+ bytes; it must have \d+"):
        attend(*inputs(layout, torch.bfloat16, 64), layout)
