"""Corruption of samples against its rules."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.layout import SequenceLayout
from lumos_engine.train.ar_df import IGNORED, Sample, corrupt, corrupt_with
from lumos_engine.train.batches import pack
from lumos_engine.train.config import DiffusionOptions
from lumos_engine.tubes import TubePattern

from .conftest import VOCABULARY


def sample(frames: int, height: int = 2, width: int = 4, text: int = 5) -> Sample:
    codes = (torch.arange(frames * height * width) % VOCABULARY.visual_size).view(frames, height, width)
    return Sample([VOCABULARY.bos, *range(300, 300 + text), VOCABULARY.sep], VOCABULARY.video_header(1, 6), codes)


def draw(seed: int, frames: int, mode: str = "tube", content: int = 10) -> TubePattern:
    return TubePattern.sample(frames, content, mode, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("history", ["mask", "drop", "keep"])
@pytest.mark.parametrize("frames", [1, 3])
def test_labels_are_the_masked_codes(history: str, frames: int) -> None:
    pattern = draw(1, frames)
    out = corrupt_with(sample(frames), VOCABULARY, pattern, history=history)
    layout = pack([out], VOCABULARY, history, range(1)).layout
    assert len(out.tokens) == len(out.labels) == layout.num_tokens
    labelled = out.labels != IGNORED
    assert bool((out.tokens[labelled] == VOCABULARY.mask).all())
    assert bool(VOCABULARY.is_visual(out.labels[labelled]).all())
    masked = out.tokens == VOCABULARY.mask
    assert int(masked.sum()) == int(pattern.masked.sum())  # newlines are masked in the input ...
    codes = pattern.masked.view(frames, 2, 5)[..., :4]
    assert torch.equal(
        out.labels[labelled], (sample(frames).codes + VOCABULARY.visual_begin)[codes]
    )  # ... and not in the loss


def test_keep_sees_clean_copies() -> None:
    clip = sample(3)
    out = corrupt_with(clip, VOCABULARY, draw(2, 3), history="keep")
    layout = pack([out], VOCABULARY, "keep", range(1)).layout
    assert layout.clean_frames == (2,)
    restored = torch.where(out.labels != IGNORED, out.labels, out.tokens)
    frame = layout.frame_id.long()
    for k in range(2):
        codes = out.tokens[(frame == k) & layout.content & ~layout.newline]
        assert torch.equal(codes, clip.codes[k].flatten() + VOCABULARY.visual_begin)
        noisy = restored[(frame == 2 + k) & layout.content & ~layout.newline]
        assert torch.equal(noisy, codes)
    assert not bool((out.labels[frame < 2] != IGNORED).any())
    rows = pack([out], VOCABULARY, "keep", range(1)).frames
    assert rows.unique().tolist() == [0, 1, 2]


def test_drop_hides_masked_tokens() -> None:
    out = corrupt_with(sample(2), VOCABULARY, draw(3, 2), history="drop")
    layout = pack([out], VOCABULARY, "drop", range(1), round_tokens=64).layout
    assert layout.hidden is not None and layout.num_sequences == 2
    hidden = layout.restore(layout.hidden)
    assert torch.equal(hidden[: len(out.tokens)], out.tokens == VOCABULARY.mask)
    assert not bool(hidden[len(out.tokens) :].any())


def test_text_drop_cuts_to_video_start() -> None:
    clip, pattern = sample(2), draw(4, 2)
    whole = corrupt_with(clip, VOCABULARY, pattern)
    cut = corrupt_with(clip, VOCABULARY, pattern, drop_text=True)
    assert int(cut.tokens[0]) == VOCABULARY.video_start
    assert torch.equal(cut.tokens, whole.tokens[len(clip.text) :])
    assert torch.equal(cut.labels, whole.labels[len(clip.text) :])
    layout = SequenceLayout.from_segments([cut.segments], strides=VOCABULARY.strides)
    assert layout.positions[layout.content][0].tolist() == [6, 6, 6]


def test_clean_prefix_and_visible_newlines() -> None:
    clip, pattern = sample(3), draw(5, 3)
    out = corrupt_with(clip, VOCABULARY, pattern, clean_frames=2, mask_newlines=False)
    layout = pack([out], VOCABULARY, "mask", range(1)).layout
    early = (layout.frame_id >= 0) & (layout.frame_id < 2)
    assert not bool((out.tokens[early] == VOCABULARY.mask).any())
    assert bool((out.labels[early] == IGNORED).all())
    assert bool((out.tokens[layout.newline] == VOCABULARY.newline).all())
    assert bool((out.labels != IGNORED).any())


@given(
    seed=st.integers(0, 2**32), frames=st.integers(1, 4), mode=st.sampled_from(["tube", "random", "diffusion_forcing"])
)
def test_corrupt_is_a_function_of_the_generator(seed: int, frames: int, mode: str) -> None:
    options = DiffusionOptions(mask_mode=mode, text_drop=0.5, clean_prefix_probability=0.5)  # type: ignore[arg-type]
    a, b = (corrupt(sample(frames), VOCABULARY, options, torch.Generator().manual_seed(seed)) for _ in range(2))
    assert torch.equal(a.tokens, b.tokens) and torch.equal(a.labels, b.labels)
    assert bool((a.tokens[a.labels != IGNORED] == VOCABULARY.mask).all())


def test_frequencies_of_the_draws() -> None:
    options = DiffusionOptions(text_drop=0.1, clean_prefix_probability=0.3)
    generator = torch.Generator().manual_seed(0)
    outs = [corrupt(sample(3), VOCABULARY, options, generator) for _ in range(600)]
    dropped = sum(int(out.tokens[0]) == VOCABULARY.video_start for out in outs) / len(outs)
    assert 0.06 < dropped < 0.14
    layouts = [SequenceLayout.from_segments([out.segments], strides=VOCABULARY.strides) for out in outs]
    first = [
        next(k for k in range(3) if bool((out.tokens[layout.frame_id == k] == VOCABULARY.mask).any()))
        for out, layout in zip(outs, layouts, strict=True)
    ]
    assert 0.23 < sum(k > 0 for k in first) / len(first) < 0.37
    assert set(first) == {0, 1, 2}
