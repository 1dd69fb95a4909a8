"""Corruption of one training sample: autoregressive discrete diffusion forcing (AR-DF, arXiv 2507.08801, section 3.3).

A sample is ``bos text sep | video_start duration fps | frames | video_end sep``, a frame ``image_start size(H) size(W)``, rows of codes that
each end in a newline token, ``image_end``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..layout import Frame, Text, Vocabulary
from ..layout.segments import Segment
from ..tubes import TubePattern
from .config import DiffusionOptions

__all__ = ["IGNORED", "CorruptedSample", "Sample", "corrupt", "corrupt_with"]

IGNORED = -100
"""Label of tokens that the loss leaves out."""


@dataclass(frozen=True)
class Sample:
    """A clip as ids. text: ``bos .. sep``. header: ``video_start, duration, fps``. codes: int64 [frames, height, width], 0..visual_size-1."""

    text: Sequence[int]
    header: Sequence[int]
    codes: Tensor


@dataclass(frozen=True)
class CorruptedSample:
    """What the model sees of a sample and what it shall predict.

    tokens: int64 [n]. labels: int64 [n], the id where a visual code is masked, else IGNORED.
    segments: of the sequence; with history "keep" those before :meth:`SequenceLayout.teacher_forcing` copies the frames, while tokens
    and labels are those of the copied sequence. dropped: what is masked, with history "drop", else None.
    """

    tokens: Tensor
    labels: Tensor
    segments: tuple[Segment, ...]
    dropped: TubePattern | None


def corrupt(
    sample: Sample, vocabulary: Vocabulary, options: DiffusionOptions, generator: torch.Generator
) -> CorruptedSample:
    """Draw text drop, clean prefix and mask pattern from ``generator``, in that order, and apply them.

    Every sample takes the same number of draws before the pattern, whatever the options are.
    """
    frames, height, width = sample.codes.shape
    drop, prefix, length = torch.rand(3, generator=generator).tolist()
    pattern = TubePattern.sample(
        frames, height * (width + 1), options.mask_mode, options.min_mask_ratio, generator=generator
    )
    clean_frames = 1 + int(length * (frames - 1)) if frames > 1 and prefix < options.clean_prefix_probability else 0
    return corrupt_with(
        sample, vocabulary, pattern, history=options.history, drop_text=drop < options.text_drop, clean_frames=clean_frames,
        mask_newlines=options.mask_newlines,
    )  # fmt: skip


def corrupt_with(
    sample: Sample,
    vocabulary: Vocabulary,
    pattern: TubePattern,
    *,
    history: str = "mask",
    drop_text: bool = False,
    clean_frames: int = 0,
    mask_newlines: bool = True,
) -> CorruptedSample:
    """Apply a pattern with rows for the frames of the sample.

    history: "mask", "drop" (masked tokens are also hidden from later frames) or "keep" (clean copies of all frames but the last
    precede the masked ones). drop_text: cut the sample to start at video_start. clean_frames: leading frames left unmasked and
    unlabelled. mask_newlines: False leaves row ends unmasked.
    """
    frames, height, width = sample.codes.shape
    content = torch.full((frames, height, width + 1), vocabulary.newline)
    content[..., :width] = sample.codes + vocabulary.visual_begin
    masked = pattern.masked.view(frames, height, width + 1).clone()
    masked[:clean_frames] = False
    if not mask_newlines:
        masked[..., width] = False
    labelled = masked.clone()
    labelled[..., width] = False

    clean = _with_ends(content.flatten(1), vocabulary, height, width)
    noisy = _with_ends(content.masked_fill(masked, vocabulary.mask).flatten(1), vocabulary, height, width)
    labels = torch.full_like(noisy, IGNORED)
    labels[:, 3:-1] = torch.where(labelled, content, IGNORED).flatten(1)

    lead = torch.tensor([*([] if drop_text else sample.text), *sample.header])
    frame = Frame(height, width, newlines=True, header=3, footer=1)
    segments: tuple[Segment, ...] = (Text(len(lead)), *[frame] * frames)
    if history == "keep":
        before, after = [lead, clean[:-1].flatten()], []
    else:
        # Nothing is predicted behind the last frame; the tail is there because the original's sequences have it.
        before, after = [lead], [torch.tensor([vocabulary.video_end, vocabulary.sep])]
        segments += (Text(2),)
    num_before, num_after = (sum(map(len, parts)) for parts in (before, after))
    tokens = torch.cat([*before, noisy.flatten(), *after])
    labels = torch.nn.functional.pad(labels.flatten(), (num_before, num_after), value=IGNORED)
    dropped = TubePattern(masked.flatten(1), pattern.mode, pattern.ratio) if history == "drop" else None
    return CorruptedSample(tokens, labels, segments, dropped)


def _with_ends(content: Tensor, vocabulary: Vocabulary, height: int, width: int) -> Tensor:
    """Frames with header and footer: [frames, content] -> [frames, 3 + content + 1]."""
    out = torch.nn.functional.pad(content, (3, 1), value=vocabulary.image_end)
    out[:, :3] = torch.tensor(vocabulary.frame_header(height, width))
    return out
