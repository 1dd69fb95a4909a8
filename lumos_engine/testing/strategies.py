"""Hypothesis strategies: layouts of every kind, tensors in every memory order, ready inputs of the operations."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..layout import Frame, SequenceLayout, Text
from ..tubes import MODES, TubePattern

DTYPES = (torch.float32, torch.bfloat16)
HEAD_DIMS = (32, 64, 96, 128)
MEMORY_ORDERS = ("contiguous", "heads_first", "padded", "offset", "fused")

_LONG = 90  # past one tile of 64 tokens

# ---- layouts


def texts(max_tokens: int = _LONG) -> st.SearchStrategy[Text]:
    """Text of one token, of a few, or of more than a tile."""
    return st.builds(Text, st.one_of(st.just(1), st.integers(2, 9), st.integers(10, max_tokens)))


def frames(max_side: int = 10) -> st.SearchStrategy[Frame]:
    """Frames from one token to more than a tile, with and without newlines, header and footer."""
    side = st.one_of(st.integers(1, 3), st.integers(4, max_side))
    return st.builds(
        Frame, side, side, st.booleans(), header=st.sampled_from([0, 0, 1, 3]), footer=st.sampled_from([0, 0, 1])
    )


def text_only_layouts() -> st.SearchStrategy[SequenceLayout]:
    return texts().map(lambda text: SequenceLayout.from_segments([[text]]))


def frames_only_layouts() -> st.SearchStrategy[SequenceLayout]:
    return st.lists(frames(), min_size=1, max_size=4).map(lambda video: SequenceLayout.from_segments([video]))


def one_token_layouts() -> st.SearchStrategy[SequenceLayout]:
    """Segments of one token each: every tile holds a single token."""
    single: st.SearchStrategy[Text | Frame] = st.sampled_from([Text(1), Frame(1, 1)])
    return st.lists(single, min_size=1, max_size=8).map(lambda segments: SequenceLayout.from_segments([segments]))


def packed_segments(max_sequences: int = 3) -> st.SearchStrategy[list[list[Text | Frame]]]:
    """Sequences of text and frames in any order, side by side."""
    segments: st.SearchStrategy[Text | Frame] = st.one_of(texts(), frames())
    return st.lists(st.lists(segments, min_size=1, max_size=4), min_size=1, max_size=max_sequences)


def packed_layouts() -> st.SearchStrategy[SequenceLayout]:
    return packed_segments().map(SequenceLayout.from_segments)


def window_layouts() -> st.SearchStrategy[SequenceLayout]:
    """Each frame sees the latest 0 to 3 frames before it, and 0 to 2 sink frames."""
    return st.builds(SequenceLayout.frame_window, packed_segments(2), st.integers(0, 3), st.integers(0, 2))


def video_segments(max_frames: int = 4) -> st.SearchStrategy[list[Text | Frame]]:
    """Text, then frames of one size: a training sample."""

    @st.composite
    def video(draw: st.DrawFn) -> list[Text | Frame]:
        head: list[Text | Frame] = [draw(texts(12))] if draw(st.booleans()) else []
        return head + [draw(frames(6))] * draw(st.integers(1, max_frames))

    return video()


def teacher_forcing_layouts() -> st.SearchStrategy[SequenceLayout]:
    return st.lists(video_segments(), min_size=1, max_size=2).map(SequenceLayout.teacher_forcing)


def hidden_layouts() -> st.SearchStrategy[SequenceLayout]:
    """Some keys are hidden from later queries: few, half, almost all, or all."""

    @st.composite
    def hide(draw: st.DrawFn) -> SequenceLayout:
        layout = draw(st.one_of(packed_layouts(), teacher_forcing_layouts()))
        share = draw(st.sampled_from([0.1, 0.5, 0.95, 1.0]))
        return layout.with_hidden(torch.rand(layout.num_tokens, generator=_generator(draw(seeds()))) < share)

    return hide()


@st.composite
def tube_cases(draw: st.DrawFn) -> tuple[SequenceLayout, list[TubePattern | None]]:
    """A layout of whichever factory in its original order, and a pattern of any mode for each sequence, or None."""
    sequences = draw(st.lists(video_segments(), min_size=1, max_size=3))
    factory = draw(st.sampled_from(["from_segments", "frame_window", "teacher_forcing"]))
    if factory == "teacher_forcing":
        layout = SequenceLayout.teacher_forcing(sequences)
    else:
        sequences = [segments + [draw(texts(12))] * draw(st.integers(0, 1)) for segments in sequences]
        layout = SequenceLayout.from_segments(sequences)
        if factory == "frame_window":
            layout = SequenceLayout.frame_window(sequences, draw(st.integers(0, 3)), draw(st.integers(0, 2)))
    patterns: list[TubePattern | None] = []
    for segments in sequences:
        video = [segment for segment in segments if isinstance(segment, Frame)]
        generator, mode = _generator(draw(seeds())), draw(st.sampled_from(MODES))
        ratio, content = draw(st.sampled_from([0.0, 0.5, 0.9])), video[0].content_tokens
        pattern = TubePattern.sample(len(video), content, mode, ratio, generator=generator)
        patterns.append(draw(st.sampled_from([pattern, pattern, None])))
    return layout, patterns


def tube_layouts() -> st.SearchStrategy[SequenceLayout]:
    """Masked tokens are hidden from later queries and stand last in their frame."""
    return tube_cases().map(lambda case: case[0].with_tube(case[1]))


def interval_layouts() -> st.SearchStrategy[SequenceLayout]:
    """Any layout of the interval form: queries that see nothing, the future, or three ranges apart; hidden keys."""

    @st.composite
    def build(draw: st.DrawFn) -> SequenceLayout:
        sequences = draw(packed_segments(2))
        lengths = [sum(segment.num_tokens for segment in segments) for segments in sequences]
        generator = _generator(draw(seeds()))
        empty, period = draw(st.sampled_from([0.0, 0.2, 1.0])), draw(st.sampled_from([1, 7, 64]))
        rows = [_random_intervals(n, empty, period, generator) for n in lengths]
        hidden = None
        if draw(st.booleans()):
            hidden = torch.rand(sum(lengths), generator=generator) < 0.4
        return SequenceLayout.from_intervals(lengths, torch.cat(rows), hidden=hidden, segments=sequences)

    return build()


def _random_intervals(num_tokens: int, empty: float, period: int, generator: torch.Generator) -> Tensor:
    """int64 [num_tokens, 5], the same for ``period`` tokens in a row; a share of ``empty`` of them see nothing."""
    bounds = torch.randint(0, num_tokens + 1, (num_tokens, 5), generator=generator)
    for first, last in ((1, 3), (3, 5)):
        bounds[:, first:last] = bounds[:, first:last].sort(1).values
    bounds[torch.rand(num_tokens, generator=generator) < 0.5, 0] = 0
    bounds[torch.rand(num_tokens, generator=generator) < empty] = 0
    return bounds[torch.arange(num_tokens) // period * period]


def layouts() -> st.SearchStrategy[SequenceLayout]:
    """A layout of any kind."""
    return st.one_of(
        packed_layouts(), hidden_layouts(), tube_layouts(), interval_layouts(), window_layouts(), teacher_forcing_layouts(),
        text_only_layouts(), frames_only_layouts(), one_token_layouts(),
    )  # fmt: skip


# ---- tensors


def seeds() -> st.SearchStrategy[int]:
    return st.integers(0, 2**32 - 1)


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def memory_orders() -> st.SearchStrategy[str]:
    return st.sampled_from(MEMORY_ORDERS)


def randn(shape: Sequence[int], dtype: torch.dtype, seed: int) -> Tensor:
    """Normal numbers, drawn in fp32 and rounded."""
    return torch.randn(tuple(shape), generator=_generator(seed)).to(dtype)


def in_order(x: Tensor, order: str) -> Tensor:
    """``x`` [tokens, heads, head_dim] with the same values in another memory order; memory that lies between them
    holds NaN.

    contiguous; heads_first: [heads, tokens, head_dim] transposed; padded: 16 more elements after each head; offset:
    not at the start of its storage; fused: two more heads in front of each token's and one behind, as in a slice of
    a joint projection.
    """
    tokens, heads, head_dim = x.shape
    nan = float("nan")
    if order == "contiguous":
        return x.clone(memory_format=torch.contiguous_format)
    if order == "heads_first":
        return x.transpose(0, 1).contiguous().transpose(0, 1)
    if order == "padded":
        return x.new_full((tokens, heads, head_dim + 16), nan)[..., :head_dim].copy_(x)
    if order == "offset":
        return x.new_full((x.numel() + 16,), nan)[16:].view(x.shape).copy_(x)
    if order == "fused":
        return x.new_full((tokens, heads + 3, head_dim), nan)[:, 2 : 2 + heads].copy_(x)
    raise ValueError(f"order is {order!r}; allowed: {', '.join(MEMORY_ORDERS)}")


@st.composite
def attention_inputs(
    draw: st.DrawFn,
    layouts: st.SearchStrategy[SequenceLayout] | None = None,
    dtypes: Sequence[torch.dtype] = DTYPES,
    head_dims: Sequence[int] = HEAD_DIMS,
    orders: Sequence[str] = MEMORY_ORDERS,
) -> tuple[SequenceLayout, Tensor, Tensor, Tensor]:
    """(layout, q, k, v): grouped heads, any memory order of each tensor."""
    layout = draw(_ANY_LAYOUT if layouts is None else layouts)
    kv_heads, group = draw(st.sampled_from([(1, 1), (1, 4), (2, 1), (2, 2), (3, 1)]))
    head_dim, dtype, seed = draw(st.sampled_from(head_dims)), draw(st.sampled_from(dtypes)), draw(seeds())
    q, k, v = (
        in_order(randn((layout.num_tokens, heads, head_dim), dtype, (seed + i) % 2**32), draw(st.sampled_from(orders)))
        for i, heads in enumerate((kv_heads * group, kv_heads, kv_heads))
    )
    return layout, q, k, v


@st.composite
def position_triples(draw: st.DrawFn, num_tokens: int, limit: int = 2**20) -> Tensor:
    """int32 [num_tokens, 3] below ``limit``: small, large, or t = h = w as in text."""
    bound = draw(st.sampled_from([16, 2**12, limit]))
    positions = torch.randint(0, bound, (num_tokens, 3), generator=_generator(draw(seeds())), dtype=torch.int32)
    return positions[:, :1].expand(-1, 3).contiguous() if draw(st.booleans()) else positions


_ANY_LAYOUT = layouts()
