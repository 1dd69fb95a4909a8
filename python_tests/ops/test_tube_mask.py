"""Tube masks of packed sequences: equal to TubePattern, on every backend."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import Frame, SequenceLayout, Text, TubePattern, ops
from lumos_engine.ops import _registry as registry
from lumos_engine.testing import poison, strategies
from lumos_engine.testing.backends import BACKENDS, COMPILED, running
from lumos_engine.tubes import MODES

MASK = -7


def content_sizes(layout: SequenceLayout) -> list[tuple[int, int]]:
    """(frames that are masked, content tokens) per sequence."""
    frames = [[s for s in row if isinstance(s, Frame)] for row in layout.sequences]
    return [(len(row) - clean, row[0].content_tokens) for row, clean in zip(frames, layout.clean_frames, strict=True)]


def uniforms(layout: SequenceLayout, mode: str, seed: int, distinct: int = 2**24) -> tuple[Tensor, Tensor]:
    """(u, rank_uniforms); few ``distinct`` values make ties."""
    generator = torch.Generator().manual_seed(seed)
    sizes = content_sizes(layout)
    num_u = sum(frames if mode == "diffusion_forcing" else 1 for frames, _ in sizes)
    num_ranks = sum(content if mode in ("tube", "tube_decay") else frames * content for frames, content in sizes)
    u, ranks = (
        torch.randint(0, n, (size,), generator=generator) / n for n, size in ((2**24, num_u), (distinct, num_ranks))
    )
    return u, ranks


@st.composite
def videos(draw: st.DrawFn) -> SequenceLayout:
    sequences = draw(st.lists(strategies.video_segments(), min_size=1, max_size=3))
    return (SequenceLayout.teacher_forcing if draw(st.booleans()) else SequenceLayout.from_segments)(sequences)


@pytest.mark.parametrize("backend", COMPILED)
@given(
    layout=videos(),
    mode=st.sampled_from(MODES),
    seed=st.integers(0, 2**20),
    distinct=st.sampled_from([1, 3, 2**24]),
    min_ratio=st.sampled_from([0.0, 0.5, 0.7, 1.0]),
)
def test_equal_to_the_reference(
    layout: SequenceLayout, mode: str, seed: int, distinct: int, min_ratio: float, backend: str
) -> None:
    tokens = torch.arange(layout.num_tokens)
    u, ranks = uniforms(layout, mode, seed, distinct)
    options = {"mode": mode, "min_ratio": min_ratio}
    with running(backend, seed) as place, poison.poisoned_outputs():
        place_u = place if seed % 2 else lambda x: x  # it may stay on the CPU
        masked, mask = (
            x.cpu() for x in ops.tube_mask(place(tokens), layout, place_u(u), place(ranks), MASK, **options)
        )
    expected = ops.tube_mask(tokens, layout, u, ranks, MASK, **options, backend="reference")
    assert torch.equal(masked, expected[0])
    assert torch.equal(mask, expected[1])
    assert torch.equal(masked == MASK, mask)
    assert torch.equal(masked[~mask], tokens[~mask])


def masked_by(backend: str, layout: SequenceLayout, u: Tensor, ranks: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    tokens = torch.zeros(layout.num_tokens, dtype=torch.int64)
    with running(backend) as place:
        masked, mask = ops.tube_mask(place(tokens), layout, place(u), place(ranks), MASK, **options)
    return masked.cpu(), mask.cpu()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", MODES)
def test_each_sequence_gets_the_pattern_of_its_own_uniforms(mode: str, backend: str) -> None:
    rows = [[Text(3), *[Frame(3, 4, True, 3, 1)] * 3], [Frame(2, 2)], [Text(1), *[Frame(4, 1)] * 2]]
    layout = SequenceLayout.from_segments(rows)
    _, mask = masked_by(backend, layout, *uniforms(layout, mode, 5), mode=mode)
    u, ranks = uniforms(layout, mode, 5)
    for i, row in enumerate(rows):
        alone = SequenceLayout.from_segments([row])
        own_u, own_ranks = (x[: len(y)] for x, y in zip((u, ranks), uniforms(alone, mode, 0), strict=True))
        u, ranks = u[len(own_u) :], ranks[len(own_ranks) :]
        ((frames, content),) = content_sizes(alone)
        expected = TubePattern.from_uniforms(own_u, own_ranks, frames, content, mode).token_mask(alone, 0)
        assert torch.equal(mask[layout.cu_seqlens[i] : layout.cu_seqlens[i + 1]], expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tube_is_the_same_in_every_frame_and_has_an_exact_count(backend: str) -> None:
    layout = SequenceLayout.from_segments([[Text(5), *[Frame(6, 7, True, 3, 1)] * 4]])
    _, mask = masked_by(backend, layout, *uniforms(layout, "tube", 1), min_ratio=0.75)
    assert not mask[~layout.content].any()
    frames = mask[layout.content].view(4, -1)
    assert (frames == frames[0]).all()
    assert frames[0].sum() >= 0.75 * frames.shape[1]


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("distinct", [1, 5, 2**24])
def test_draws_of_many_numbers(distinct: int, mode: str, backend: str) -> None:
    """Longer than the thread block that ranks them, not by whole blocks; equal numbers in one block and in several."""
    layout = SequenceLayout.from_segments([[Text(9), *[Frame(16, 16, True, 3, 1)] * 2], [Frame(23, 23), Frame(23, 23)]])
    u, ranks = uniforms(layout, mode, 3, distinct)
    expected = masked_by("reference", layout, u, ranks, mode=mode)
    for a, b in zip(masked_by(backend, layout, u, ranks, mode=mode), expected, strict=True):
        assert torch.equal(a, b)


def raw_arguments() -> dict[str, Any]:
    return {
        "tokens": torch.arange(6), "rank_uniforms": torch.rand(4), "starts": torch.tensor([0, 4]),
        "spans": torch.tensor([[1, 4, 0]]), "num_masked": torch.tensor([2]), "mask_id": MASK,
    }  # fmt: skip


@pytest.mark.parametrize("backend", COMPILED)
def test_nothing_else_is_written(backend: str) -> None:
    outs = [poison.GuardedTensor((n,), dtype) for n, dtype in ((4, torch.int32), (6, torch.int64), (6, torch.bool))]
    order, out, mask = (x.tensor for x in outs)
    with running(backend, 1):  # guards lie on the CPU: on a GPU this is the CPU kernel again
        registry.call("tube_mask", *raw_arguments().values(), order, 4, out, mask)
    for guarded in outs:
        guarded.assert_untouched()
    assert mask.sum() == 2 and torch.equal(out == MASK, mask)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(
    "changes",
    [
        {"starts": torch.tensor([0, 5])},
        {"starts": torch.tensor([-1, 4])},
        {"spans": torch.tensor([[4, 4, 0]])},
        {"spans": torch.tensor([[1, 4, 1]])},
        {"spans": torch.tensor([[-1, 4, -1]])},
        {"spans": torch.tensor([[2**62, 2**62, 0]])},
        {"spans": torch.tensor([[1, 4, 2**63 - 4]])},
    ],
)
def test_the_raw_operation_touches_nothing_outside_its_arguments_on_cuda(
    changes: dict[str, Tensor], backend: str
) -> None:
    _ = ops.tube_mask
    with running(backend) as place:
        arguments = {**raw_arguments(), **changes}
        arguments |= {name: place(arguments[name]) for name in ("tokens", "rank_uniforms")}
        out, mask = (x.cpu() for x in torch.ops.lumos._tube_mask(*arguments.values()))
    assert torch.equal(out == MASK, mask)


@pytest.mark.parametrize("backend", ["cuda"])
def test_numbers_that_the_host_does_not_look_at_on_cuda(backend: str) -> None:
    """NaN lies above all numbers and 0 equals -0, as torch sorts."""
    layout = SequenceLayout.from_segments([[Frame(2, 3)]])
    ranks = torch.tensor([torch.nan, 5.0, 0.0, -0.0, -torch.inf, torch.nan])
    _, mask = masked_by(backend, layout, torch.tensor([0.5]), ranks, min_ratio=0.5)
    assert torch.equal(mask, ranks.argsort(stable=True) < 4)


def test_opcheck() -> None:
    _ = ops.tube_mask
    torch.library.opcheck(torch.ops.lumos._tube_mask.default, tuple(raw_arguments().values()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"starts": torch.tensor([0, 3])}, "starts must run from 0"),
        ({"starts": torch.tensor([0, 5, 4])}, "starts must not decrease"),
        ({"spans": torch.tensor([[3, 4, 0]])}, "outside the tokens or the ranks"),
        ({"spans": torch.tensor([[1, 4, 1]])}, "outside the tokens or the ranks"),
        ({"spans": torch.tensor([[-1, 4, 0]])}, "outside the tokens or the ranks"),
        ({"spans": torch.tensor([[2**62, 2**62, 0]])}, "outside the tokens or the ranks"),
        ({"num_masked": torch.tensor([2, 3])}, "num_masked has the wrong"),
    ],
)
def test_the_raw_operation_reads_nothing_outside_its_arguments(changes: dict[str, Tensor], message: str) -> None:
    _ = ops.tube_mask
    with pytest.raises(ValueError, match=message):
        torch.ops.lumos._tube_mask(*{**raw_arguments(), **changes}.values())


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "tokens has dtype int32; allowed: int64", {"tokens": torch.zeros(5, dtype=torch.int32)}),
        (ValueError, r"tokens has shape \(4,\); it must be \[5\]", {"tokens": torch.zeros(4, dtype=torch.int64)}),
        (ValueError, "mode is 'tubes'; allowed: tube, random", {"mode": "tubes"}),
        (ValueError, r"u has shape \(2,\); it must be \[1\]", {"u": torch.zeros(2)}),
        (ValueError, r"rank_uniforms has shape \(3,\); it must be \[4\]", {"rank_uniforms": torch.zeros(3)}),
        (TypeError, "u has dtype float64; allowed: float32", {"u": torch.zeros(1, dtype=torch.float64)}),
        (ValueError, r"rank_uniforms holds 1.0..1.0; it must be in \[0, 1\)", {"rank_uniforms": torch.ones(4)}),
        (ValueError, r"u holds nan..nan", {"u": torch.tensor([float("nan")])}),
        (ValueError, "sequence 0 of layout has no frame", {"layout": SequenceLayout.from_segments([[Text(5)]])}),
        (ValueError, "frames of 1 and 4 content tokens", {"layout": SequenceLayout.from_segments([[Frame(1, 1), Frame(2, 2)]])}),
        (ValueError, "min_ratio must be in 0..1, got 2", {"min_ratio": 2}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, Any], backend: str) -> None:
    arguments = {
        "tokens": torch.zeros(5, dtype=torch.int64), "layout": SequenceLayout.from_segments([[Text(1), Frame(2, 2)]]),
        "u": torch.zeros(1), "rank_uniforms": torch.zeros(4), "mask_id": MASK, "backend": backend,
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.tube_mask(**{**arguments, **changes})
