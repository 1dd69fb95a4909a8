"""Layouts for hypothesis, and the visibility rule written out densely."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import strategies as st

from lumos_engine.layout import Frame, SequenceLayout, Text, Vocabulary

SMALL = Vocabulary(
    bos=0,
    image_start=101,
    image_end=102,
    newline=103,
    video_start=104,
    video_end=105,
    mask=106,
    sep=100,
    size_zero=110,
    visual_begin=192,
    visual_size=128,
)

texts = st.builds(Text, st.integers(1, 9))
frames = st.builds(
    Frame, st.integers(1, 4), st.integers(1, 4), st.booleans(), header=st.integers(0, 3), footer=st.integers(0, 1)
)
segment_lists = st.lists(texts | frames, min_size=1, max_size=6)
packed = st.lists(segment_lists, min_size=1, max_size=3)
text_then_frames = st.builds(lambda t, f: t + f, st.lists(texts, max_size=2), st.lists(frames, min_size=1, max_size=4))
tile_sizes = st.integers(1, 12) | st.just(64)


@st.composite
def interval_layouts(draw: st.DrawFn) -> SequenceLayout:
    """Any layout of the interval form: rows that see nothing, the future, or three separate ranges; hidden keys."""
    sequences = draw(st.lists(st.lists(texts | frames, min_size=1, max_size=4), min_size=1, max_size=3))
    lengths = [sum(s.num_tokens for s in segments) for segments in sequences]
    rows: list[list[int]] = []
    for n in lengths:
        bound = st.integers(0, n)
        row = st.tuples(st.just(0) | bound, st.tuples(bound, bound), st.tuples(bound, bound))
        choices = [[s, *sorted(h), *sorted(p)] for s, h, p in draw(st.lists(row, min_size=1, max_size=4))]
        period = draw(st.integers(1, 9))
        rows.extend(choices[i // period % len(choices)] for i in range(n))
    hidden = None
    if draw(st.booleans()):
        seed = draw(st.integers(0, 2**16))
        share = draw(st.sampled_from([0.1, 0.5, 0.95]))
        hidden = torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed)) < share
    return SequenceLayout.from_intervals(lengths, torch.tensor(rows), hidden=hidden, segments=sequences)


def random_intervals(seed: int) -> SequenceLayout:
    """As `interval_layouts`, with bounds that change from token to token: what shrinking examples seldom reach."""
    rng = np.random.default_rng(seed)
    sequences, rows = [], []
    for _ in range(rng.integers(1, 4)):
        n = int(rng.integers(1, 40))
        cuts = np.unique(rng.integers(1, n + 1, rng.integers(0, 6)))
        sequences.append([Text(int(x)) for x in np.diff(np.concatenate(([0], cuts[cuts < n], [n])))])
        bounds = np.concatenate(
            (rng.integers(0, n + 1, (n, 1)), *(np.sort(rng.integers(0, n + 1, (n, 2)), axis=1) for _ in range(2))),
            axis=1,
        )
        bounds[rng.random(n) < 0.5, 0] = 0
        period = int(rng.choice([1, 5, n]))
        rows.append(bounds[np.arange(n) // period * period])
    lengths = [len(r) for r in rows]
    hidden = None
    if seed % 4:
        hidden = torch.from_numpy(rng.random(sum(lengths)) < (0.1, 0.5, 0.9)[seed % 4 - 1])
    return SequenceLayout.from_intervals(lengths, torch.from_numpy(np.concatenate(rows)), None, hidden, sequences)


any_layout = (
    packed.map(SequenceLayout.from_segments)
    | interval_layouts()
    | st.builds(SequenceLayout.frame_window, packed, st.integers(0, 3), st.integers(0, 2))
    | st.lists(text_then_frames, min_size=1, max_size=2).map(SequenceLayout.teacher_forcing)
)


def dense(layout: SequenceLayout, sequence: int) -> torch.Tensor:
    """bool [n, n]: the rule of the class, applied to every pair."""
    begin, end = layout.cu_seqlens[sequence], layout.cu_seqlens[sequence + 1]
    sink_end, history_begin, history_end, span_begin, span_end = layout.intervals[begin:end, :, None].unbind(1)
    key = torch.arange(end - begin)[None]
    history = (key < sink_end) | ((history_begin <= key) & (key < history_end))
    if layout.hidden is not None:
        history &= ~layout.hidden[begin:end][None]
    return history | ((span_begin <= key) & (key < span_end))
