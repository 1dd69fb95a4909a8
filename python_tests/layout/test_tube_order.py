"""with_tube: the same attention as with_hidden, by another order of the tokens inside each frame."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine import ops
from lumos_engine.layout import Frame, SequenceLayout, Text
from lumos_engine.testing import eager, poison, strategies, tolerances
from lumos_engine.tubes import TubePattern

from .helpers import dense

Case = tuple[SequenceLayout, list[TubePattern | None]]
MEASURED_ROWS = 250  # of keys: of fewer elements eager torch's error is a matter of luck
PER_TOKEN = ("positions", "intervals", "index", "sequence_id", "frame_id", "content", "newline")


def hidden_by(layout: SequenceLayout, patterns: list[TubePattern | None]) -> torch.Tensor:
    """bool [num_tokens] in the original order, from the patterns and the frames one by one."""
    hidden = torch.zeros(layout.num_tokens, dtype=torch.bool)
    for s, pattern in enumerate(patterns):
        if pattern is None:
            continue
        frames = [(f, int(layout.cu_seqlens[s]) + b) for f, b, _ in layout.segments(s) if isinstance(f, Frame)]
        history = frames[: layout.clean_frames[s]] if layout.clean_frames[s] else frames
        for row, (frame, begin) in enumerate(history):
            hidden[begin + frame.header : begin + frame.header + frame.content_tokens] = pattern.masked[row]
    return hidden


@given(strategies.tube_cases())
def test_order_inside_frames_visible_first(case: Case) -> None:
    plain, patterns = case
    layout, hidden = plain.with_tube(patterns), hidden_by(*case)
    order, inverse = layout.permutation, layout.inverse_permutation
    assert order is not None and inverse is not None and layout.hidden is not None
    assert torch.equal(order[inverse], torch.arange(plain.num_tokens))
    assert torch.equal(inverse[order], torch.arange(plain.num_tokens))
    tokens = strategies.randn((plain.num_tokens, 2), torch.float32, 0)
    assert torch.equal(layout.reorder(tokens)[inverse], tokens)
    assert torch.equal(layout.restore(layout.reorder(tokens)), tokens)
    assert torch.equal(layout.restore(layout.hidden), hidden)
    for name in PER_TOKEN:
        assert torch.equal(layout.restore(getattr(layout, name)), getattr(plain, name)), name
    assert layout.sequences == plain.sequences and torch.equal(layout.cu_seqlens, plain.cu_seqlens)
    for s in range(plain.num_sequences):
        for _, begin, end in plain.segments(s):
            slots = slice(int(plain.cu_seqlens[s]) + begin, int(plain.cu_seqlens[s]) + end)
            assert order[slots].sort().values.tolist() == list(range(slots.start, slots.stop))
            num_visible = int((~hidden[slots]).sum())
            assert not layout.hidden[slots][:num_visible].any() and layout.hidden[slots][num_visible:].all()
            for part in (order[slots][:num_visible], order[slots][num_visible:]):
                assert (part.diff() > 0).all()  # the rest stays in order


@given(strategies.tube_cases())
def test_every_token_sees_the_same_tokens(case: Case) -> None:
    plain, patterns = case
    layout, definition = plain.with_tube(patterns), plain.with_hidden(hidden_by(*case))
    for s in range(plain.num_sequences):
        slots = slice(int(plain.cu_seqlens[s]), int(plain.cu_seqlens[s + 1]))
        order = layout.permutation[slots] - slots.start
        assert torch.equal(dense(layout, s), dense(definition, s)[order][:, order])
        # The rule reads the places of packed tokens or their indices alike.
        index = layout.index[slots].long()
        expected = torch.empty_like(dense(layout, s))
        expected[index[:, None], index[None]] = dense(layout, s)
        assert torch.equal(expected, dense(definition, s))


def attend(function, inputs, grad, layout, **options):
    """[out, dq, dk, dv] in the original order."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = layout.restore(function(*map(layout.reorder, leaves), layout, **options)[0])
    return [out.detach(), *torch.autograd.grad(out, leaves, grad)]


@given(case=strategies.tube_cases(), dtype=st.sampled_from(strategies.DTYPES), seed=strategies.seeds())
def test_attention_is_that_of_hidden_keys(case: Case, dtype: torch.dtype, seed: int) -> None:
    plain, patterns = case
    layout, definition = plain.with_tube(patterns), plain.with_hidden(hidden_by(*case))
    groups = 4 * -(-MEASURED_ROWS // (4 * plain.num_tokens))
    heads = (3 * groups, groups, groups, 3 * groups)  # of q, k, v and the gradient
    *inputs, grad = (
        strategies.randn((plain.num_tokens, n, 64), dtype, (seed + i) % 2**32) for i, n in enumerate(heads)
    )
    wide = [x.double() for x in inputs]
    exact = attend(ops.block_attention, wide, grad.double(), definition, backend="reference")
    again = attend(ops.block_attention, wide, grad.double(), layout, backend="reference")
    runs = [attend(eager.block_attention, inputs, grad, definition, order=order) for order in tolerances.ORDERS]
    for order in tolerances.ORDERS:
        grads = eager.block_attention_gradients(*inputs, definition, grad, from_lse=True, order=order)
        runs.append([runs[order][0], *grads])
    with poison.poisoned_outputs():
        actual = attend(ops.block_attention, inputs, grad, layout)
    for name, result, reference, *baselines in zip(("out", "dq", "dk", "dv"), actual, exact, *runs, strict=True):
        tolerances.assert_within_bound(result, reference, baselines, name)
    for ours, theirs in zip(again, exact, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=100 * tolerances.FP64, atol=tolerances.FP64)


def visits(layout: SequenceLayout) -> torch.Tensor:
    """int64 [tiles]: how many key tiles each query tile visits."""
    schedule = layout.schedule()
    sizes = schedule.row_runs[:, 1] - schedule.row_runs[:, 0]
    rows = torch.repeat_interleave(torch.arange(len(schedule.tiles)), schedule.row_offsets.diff())
    return torch.zeros(len(schedule.tiles), dtype=torch.int64).index_add_(0, rows, sizes.long())


@pytest.mark.parametrize("teacher_forcing", [False, True])
def test_whole_hidden_tiles_are_skipped(teacher_forcing: bool) -> None:
    num_frames, tiles = 8, 16  # of 64 tokens, in each frame
    make = SequenceLayout.teacher_forcing if teacher_forcing else SequenceLayout.from_segments
    plain = make([[Text(64), *[Frame(32, 32)] * num_frames]])
    pattern = TubePattern.history(1024, 0.7, num_frames)
    layout = plain.with_tube(pattern)
    frames = visits(layout)[1:].view(-1, tiles)[-num_frames:]  # the noisy ones, in teacher forcing
    visible = -(-int((~pattern.masked[0]).sum()) // 64)
    assert visible == 5
    for k in range(num_frames):
        assert frames[k].tolist() == [1 + k * visible + tiles] * tiles
    before, after = int(visits(plain).sum()), int(visits(layout).sum())
    scattered = plain.with_hidden(layout.restore(layout.hidden))
    assert int(visits(scattered).sum()) == before  # in the original order every tile holds a visible key
    assert after <= 0.55 * before


def test_pattern_of_all_sequences_and_none() -> None:
    frame = Frame(2, 2, header=1)
    plain = SequenceLayout.from_segments([[Text(3), frame, frame], [frame, frame], [Text(4)]])
    pattern = TubePattern(torch.tensor([[True, False, False, True]] * 2), "tube", (0.5,))
    layout = plain.with_tube([pattern, None, None])
    assert layout.permutation.tolist()[:13] == [0, 1, 2, 3, 5, 6, 4, 7, 8, 10, 11, 9, 12]
    assert layout.permutation.tolist()[13:] == list(range(13, plain.num_tokens))
    assert layout == plain.with_tube((pattern, None, None)) != plain.with_tube([pattern, pattern, None])
    two = SequenceLayout.from_segments(plain.sequences[:2])
    assert two.with_tube(pattern) == two.with_tube([pattern, pattern])
    assert two.with_hidden(torch.ones(two.num_tokens, dtype=torch.bool)).with_tube(pattern) == two.with_tube(pattern)
    assert layout.with_hidden(None).key != plain.key
    assert plain.permutation is None and plain.hidden is None
    x = torch.arange(3)
    assert plain.reorder(x) is x and plain.restore(x) is x
    moved = layout.to("meta")
    assert moved.permutation.device.type == moved.inverse_permutation.device.type == "meta"


def interval_layout(bound: int) -> SequenceLayout:
    """One text token and two frames of 4; the last token sees 0 .. bound and itself."""
    rows = [[0, 0, 0, 0, 9]] * 8 + [[0, 0, bound, 8, 9]]
    return SequenceLayout.from_intervals([9], torch.tensor(rows), segments=[[Text(1), Frame(2, 2), Frame(2, 2)]])


PATTERN = TubePattern(torch.tensor([[True, True, False, False], [False] * 4]), "diffusion_forcing", (0.5, 0.0))


def test_ranges_may_cut_frames_without_masked_tokens() -> None:
    layout = interval_layout(7).with_tube(PATTERN)
    assert layout.permutation.tolist() == [0, 3, 4, 1, 2, 5, 6, 7, 8]
    with pytest.raises(
        ValueError, match="pattern: history_end of sequence 0, token 8 is 3, inside a frame with masked"
    ):
        interval_layout(3).with_tube(PATTERN)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda plain: plain.with_tube(None), TypeError, "pattern must be a TubePattern or a list .* got NoneType"),
        (lambda plain: plain.with_tube(["tube"]), TypeError, r"pattern\[0\] must be a TubePattern or None, got str"),
        (lambda plain: plain.with_tube([]), ValueError, "pattern lists 0 patterns, layout has 1 sequences"),
        (
            lambda plain: plain.with_tube(TubePattern.history(4)),
            ValueError,
            "pattern has 1 frames, sequence 0 of layout has 2",
        ),
        (
            lambda plain: plain.with_tube(TubePattern.history(5, num_frames=2)),
            ValueError,
            "pattern has 5 content tokens a frame, .* has 4",
        ),
        (
            lambda plain: plain.with_tube(PATTERN).with_tube(PATTERN),
            ValueError,
            "layout is ordered by a pattern already",
        ),
        (lambda plain: plain.with_tube(PATTERN).step(0, 0, 5), ValueError, "step: layout is ordered by a tube pattern"),
    ],
)
def test_bad_input(call, error, text) -> None:
    with pytest.raises(error, match=text):
        call(SequenceLayout.from_segments([[Text(1), Frame(2, 2), Frame(2, 2)]]))
