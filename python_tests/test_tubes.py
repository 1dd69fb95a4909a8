"""TubePattern: counts, where it lies in a layout, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.layout import Frame, SequenceLayout, Text
from lumos_engine.tubes import MODES, TubePattern, mask_ratio


def test_history_ratio_zero_masks_nothing():
    assert not TubePattern.history(36, 0.0).masked.any()


@given(st.sampled_from(MODES), st.integers(1, 5), st.integers(1, 90), st.floats(0, 1), st.integers(0, 2**32 - 1))
def test_counts_are_exact(mode, frames, content, min_ratio, seed):
    generator = torch.Generator().manual_seed(seed)
    pattern = TubePattern.sample(frames, content, mode, min_ratio, generator=generator)
    assert pattern.masked.shape == (frames, content) and pattern.masked.dtype == torch.bool
    counts = pattern.masked.sum(1)
    ratio = torch.tensor(pattern.ratio)
    assert (ratio >= np.float32(min_ratio)).all() and len(ratio) == (frames if mode == "diffusion_forcing" else 1)
    if mode == "random":
        assert int(counts.sum()) == max(1, int((frames * content * ratio).round()))
        return
    first = (content * ratio).round().clamp(min=1).long()
    if mode == "tube_decay":
        assert int(counts[0]) == int(first) and (frames == 1 or int(counts[-1]) == content)
        assert (pattern.masked[1:] | ~pattern.masked[:-1]).all()  # what is masked once stays masked
    else:
        assert (counts == first).all()
    if mode == "tube":
        assert (pattern.masked == pattern.masked[0]).all()


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.booleans(), st.integers(1, 6))
def test_token_mask_hits_content_only(frames, height, width, newlines, text):
    frame = Frame(height, width, newlines, header=2, footer=1)
    layout = SequenceLayout.from_segments([[Text(3)], [Text(text)] + [frame] * frames + [Text(2)]])
    pattern = TubePattern.sample(frames, frame.content_tokens, noise=None, generator=torch.Generator().manual_seed(1))
    mask = pattern.token_mask(layout, 1)
    content = layout.content[3:]
    torch.testing.assert_close(mask[content], pattern.masked.reshape(-1))
    assert not mask[~content].any()
    tokens = torch.arange(100, 100 + layout.num_tokens)
    whole = pattern.apply(tokens, layout, 1, 7)
    assert (whole[:3] == tokens[:3]).all()
    assert ((whole[3:] == 7) == mask).all() and (whole[3:][~mask] == tokens[3:][~mask]).all()
    assert (pattern.apply(tokens[3:], layout, 1, 7) == whole[3:]).all()
    assert int(tokens.min()) == 100  # the input is not written


def test_token_mask_of_teacher_forcing_spares_clean_copies():
    frame = Frame(2, 2)
    layout = SequenceLayout.teacher_forcing([[Text(1), frame, frame, frame]])
    mask = TubePattern.history(4, 1.0, num_frames=3).token_mask(layout, 0)
    assert mask.tolist() == [False] * 9 + [True] * 12


def test_mask_ratio():
    torch.testing.assert_close(mask_ratio(torch.tensor([0.0, 1 / 3, 0.9])), torch.tensor([1.0, 0.8660254, 0.7]))


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: TubePattern.sample(0, 4), ValueError, "num_frames"),
        (lambda: TubePattern.sample(1, 2.5), TypeError, "content_tokens"),
        (lambda: TubePattern.sample(1, 4, "tubes"), ValueError, "mode must be one of tube, random"),
        (lambda: TubePattern.sample(1, 4, min_ratio=1.5), ValueError, "min_ratio must be in 0..1, got 1.5"),
        (lambda: TubePattern.sample(1, 4, min_ratio="a"), TypeError, "min_ratio"),
        (lambda: TubePattern.sample(1, 4, noise=(0, 0), generator=torch.Generator()), ValueError, "exclude"),
        (lambda: TubePattern.from_uniforms(torch.rand(2), torch.rand(4), 1, 4), ValueError, "u must hold 1"),
        (
            lambda: TubePattern.from_uniforms(torch.rand(1), torch.rand(5), 1, 4),
            ValueError,
            "rank_uniforms must hold 4",
        ),
        (lambda: TubePattern.from_uniforms(torch.ones(1), torch.rand(4), 1, 4), ValueError, r"u must be in \[0, 1\)"),
        (lambda: TubePattern.from_uniforms(torch.rand(1), torch.full((4,), float("nan")), 1, 4), ValueError, "rank"),
        (lambda: TubePattern.from_uniforms(torch.rand(1).double(), torch.rand(4), 1, 4), TypeError, "float32"),
        (lambda: TubePattern.history(4, -0.1), ValueError, "ratio"),
    ],
)
def test_bad_input(call, error, text):
    with pytest.raises(error, match=text):
        call()


def test_bad_layout():
    layout = SequenceLayout.from_segments([[Text(1), Frame(2, 2), Frame(2, 3)]])
    with pytest.raises(ValueError, match="pattern has 1 frames, sequence 0 of layout has 2"):
        TubePattern.history(4).token_mask(layout, 0)
    with pytest.raises(ValueError, match="pattern has 4 content tokens a frame"):
        TubePattern.history(4, num_frames=2).token_mask(layout, 0)
    even = SequenceLayout.from_segments([[Text(1), Frame(2, 2)]])
    with pytest.raises(ValueError, match="tokens must have shape"):
        TubePattern.history(4).apply(torch.zeros(9, dtype=torch.long), even, 0, 7)
    with pytest.raises(TypeError, match="tokens must be an integer tensor"):
        TubePattern.history(4).apply(torch.zeros(5), even, 0, 7)


def test_noise_gives_the_same_pattern_everywhere():
    pytest.importorskip("lumos_engine.noise")
    for mode in MODES:
        first, again, other = (TubePattern.sample(3, 72, mode, noise=(5, s)) for s in (0, 0, 1))
        assert (first.masked == again.masked).all() and first.ratio == again.ratio
        assert (first.masked != other.masked).any()
