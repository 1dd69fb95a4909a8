"""Where training clips come from: data sets encoded to visual codes, addressed by position in the run."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from ..data import MovingDigits
from ..tokenizers import VisualTokenizer
from .config import DataOptions

__all__ = ["ClipSource", "CodedClip", "MovingDigitsSource", "image_ordinal", "open_sources"]

_CHUNK = 256


@dataclass(frozen=True)
class CodedClip:
    """codes: int64 [latent frames, height, width]. num_frames, fps: of the pixels, fps whole."""

    codes: Tensor
    caption: str
    num_frames: int
    fps: int


class ClipSource(Protocol):
    """``clip(position)`` depends on the source's options and ``position >= 0`` alone, so that a run resumes by its step."""

    def clip(self, position: int) -> CodedClip: ...


def image_ordinal(position: int, image_fraction: float) -> int | None:
    """Which image the sample at ``position`` is, None for a video: image n is the first position with floor((position + 1) f) > n."""
    before = int(position * image_fraction)
    return before if int((position + 1) * image_fraction) > before else None


class MovingDigitsSource:
    """Clips of the moving-digits world, made and encoded in chunks of 256 as the run meets them; none comes twice.

    Chunk boundaries are fixed, because the number of clips in one call of the encoder may move a code (see
    :meth:`VisualTokenizer.encode_batch`).
    """

    def __init__(
        self,
        tokenizer: VisualTokenizer,
        *,
        split: str,
        seed: int,
        num_frames: int,
        height: int,
        width: int,
        two_digit_share: float,
        image_fraction: float,
    ) -> None:
        self._tokenizer, self._image_fraction = tokenizer, image_fraction
        self._videos, self._images = (
            MovingDigits(split, seed, num_clips=2**62, num_frames=frames, height=height, width=width, two_digit_share=two_digit_share)
            for frames in (num_frames, 1)
        )  # fmt: skip
        self._chunks: dict[int, list[CodedClip]] = {}

    def clip(self, position: int) -> CodedClip:
        number, offset = divmod(position, _CHUNK)
        if number not in self._chunks:
            while len(self._chunks) > 1:
                del self._chunks[next(iter(self._chunks))]
            self._chunks[number] = self._encode(number)
        return self._chunks[number][offset]

    def _encode(self, number: int) -> list[CodedClip]:
        positions = range(number * _CHUNK, (number + 1) * _CHUNK)
        is_image = [image_ordinal(p, self._image_fraction) is not None for p in positions]
        clips: dict[int, CodedClip] = {}
        for dataset, kind in ((self._videos, False), (self._images, True)):
            chosen = [p for p, image in zip(positions, is_image, strict=True) if image is kind]
            if not chosen:
                continue
            batch = dataset.batch(chosen)
            codes = self._tokenizer.encode_batch(batch.frames)
            for p, clip_codes, caption in zip(chosen, codes.clone(), batch.captions, strict=True):
                clips[p] = CodedClip(clip_codes, caption, dataset.num_frames, int(dataset.fps))
        return [clips[p] for p in positions]


def open_sources(
    data: DataOptions,
    tokenizer: VisualTokenizer,
    seed: int,
    cache: Path | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> tuple[ClipSource, ClipSource]:
    """Training clips and held-back ones; ``cache`` and ``on_progress`` as in :func:`encode_folder`.

    Raises ValueError for a data set that does not exist or does not fit.
    """
    if data.dataset.replace("_", "-") != "moving-digits":
        from .folder_source import FolderSource, encode_folder

        folder = encode_folder(data, tokenizer, cache, on_progress)
        return tuple(
            FolderSource(clips, seed=seed, image_fraction=data.image_fraction)
            for clips in (folder.training, folder.held_back)
        )  # type: ignore[return-value]
    if tokenizer.channels != MovingDigits.channels:
        raise ValueError(f"moving-digits are grey, the visual tokenizer has {tokenizer.channels} channels")
    training, held_back = (
        MovingDigitsSource(
            tokenizer,
            split=split,
            seed=number,
            num_frames=data.num_frames,
            height=data.height,
            width=data.width,
            two_digit_share=data.two_digit_share,
            image_fraction=data.image_fraction,
        )
        for split, number in (("train", seed), ("test", 0))
    )
    return training, held_back
