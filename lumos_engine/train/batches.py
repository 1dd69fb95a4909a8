"""Batches: samples corrupted and packed into one token tensor and its layout, a function of (options, seed, step) alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from ..data.hashing import hash_words
from ..layout import Frame, SequenceLayout, Vocabulary
from ..tokenizers.prompt import clip_duration, prompt_tokens
from ..tokenizers.text import TextTokenizer
from .ar_df import IGNORED, CorruptedSample, Sample, corrupt
from .config import DiffusionOptions
from .sources import ClipSource, CodedClip

__all__ = ["BatchMaker", "TrainBatch", "pack"]

_CORRUPTION_STREAM = 41


@dataclass(frozen=True)
class TrainBatch:
    """Packed samples.

    tokens: int64 [tokens]. layout: of them. rows: int64 [n], tokens that the loss reads, ascending. targets: int64 [n], codes
    0..visual_size-1. frames: int64 [n], latent frame of each row. positions: of the samples in the run.
    num_padding: tokens at the end that belong to no sample.
    """

    tokens: Tensor
    layout: SequenceLayout
    rows: Tensor
    targets: Tensor
    frames: Tensor
    positions: range
    num_padding: int


def pack(
    samples: list[CorruptedSample], vocabulary: Vocabulary, history: str, positions: range, round_tokens: int = 1
) -> TrainBatch:
    """Lay samples side by side, and behind them a sequence of padding that fills up to a multiple of ``round_tokens``.

    Few distinct sizes let the matrix library reuse what it prepares for each, and the allocator its blocks.
    """
    samples = list(samples)
    num_tokens = sum(len(sample.tokens) for sample in samples)
    num_padding = -num_tokens % round_tokens
    if num_padding:
        samples.append(_padding(num_padding, vocabulary))
    segments = [sample.segments for sample in samples]
    if history == "keep":
        layout = SequenceLayout.teacher_forcing(segments, strides=vocabulary.strides)
    else:
        layout = SequenceLayout.from_segments(segments, strides=vocabulary.strides)
        if history == "drop":
            layout = layout.with_tube([sample.dropped for sample in samples])
    labels = torch.cat([sample.labels for sample in samples])
    rows = (labels != IGNORED).nonzero().squeeze(1)
    clean = torch.tensor(layout.clean_frames)[layout.sequence_id[rows].long()]
    return TrainBatch(
        tokens=torch.cat([sample.tokens for sample in samples]),
        layout=layout,
        rows=rows,
        targets=labels[rows] - vocabulary.visual_begin,
        frames=layout.frame_id[rows] - clean,
        positions=positions,
        num_padding=num_padding,
    )


def _padding(num_tokens: int, vocabulary: Vocabulary) -> CorruptedSample:
    tokens = torch.full((num_tokens,), vocabulary.bos)
    # A frame, because teacher forcing wants one in each sequence; the only one of its sequence is not copied.
    return CorruptedSample(tokens, torch.full_like(tokens, IGNORED), (Frame(1, num_tokens),), None)


class BatchMaker:
    """Batches of a source.

    Args:
        source: clips by position. text_tokenizer: captions to ids.
        strides: pixels per latent along (time, height, width).
        max_tokens: the longest sequence, in tokens before frames are copied; a longer one is a ValueError naming the caption.
        seed: of the corruption.
        round_tokens: see :func:`pack`.
    """

    def __init__(
        self,
        source: ClipSource,
        text_tokenizer: TextTokenizer,
        vocabulary: Vocabulary,
        options: DiffusionOptions,
        *,
        seed: int,
        max_tokens: int,
        round_tokens: int = 1,
    ) -> None:
        self._source, self._vocabulary, self._options = source, vocabulary, options
        self._seed, self._max_tokens, self._round_tokens = seed, max_tokens, round_tokens
        encode = lru_cache(maxsize=1 << 16)(lambda text: tuple(text_tokenizer.encode(text)))
        self._encode = lambda text: list(encode(text))
        self._generator = torch.Generator()

    def batch(self, begin: int, size: int) -> TrainBatch:
        """Samples ``begin .. begin + size - 1`` of the run."""
        positions = range(begin, begin + size)
        samples = [self.sample(position) for position in positions]
        return pack(samples, self._vocabulary, self._options.history, positions, self._round_tokens)

    def sample(self, position: int) -> CorruptedSample:
        word = hash_words(self._seed, torch.tensor([position]).numpy(), _CORRUPTION_STREAM)[0]
        self._generator.manual_seed(int(word) >> 1)
        return corrupt(self._ids(self._source.clip(position)), self._vocabulary, self._options, self._generator)

    def _ids(self, clip: CodedClip) -> Sample:
        vocabulary = self._vocabulary
        frames, height, width = clip.codes.shape
        text = prompt_tokens(
            self._encode, clip.caption, width=width * vocabulary.strides[2], height=height * vocabulary.strides[1],
            num_frames=clip.num_frames, fps=clip.fps, bos=vocabulary.bos, sep=vocabulary.sep,
        )  # fmt: skip
        header = vocabulary.video_header(*clip_duration(clip.num_frames, clip.fps))
        total = len(text) + len(header) + frames * (height * (width + 1) + 4)
        if total > self._max_tokens:
            raise ValueError(
                f"a clip of {frames} latent frames of {height}x{width} with caption {clip.caption[:60]!r} needs {total} tokens, "
                f"model.max_position_embeddings is {self._max_tokens}"
            )
        return Sample(text, header, clip.codes)
