"""Clips of a folder as visual codes: encoded once, kept beside the run, visited in a new order each epoch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from ..data import epoch_order, open_dataset
from ..io.checkpoint import load_safetensors, read_header, save_safetensors
from ..io.image import MediaError
from ..tokenizers import VisualTokenizer
from .config import DataOptions
from .sources import CodedClip, image_ordinal

__all__ = ["EncodedFolder", "FolderSource", "encode_folder"]

_HELD_BACK_EVERY = 8
_SPLIT_SEED = 8801


@dataclasses.dataclass(frozen=True)
class EncodedFolder:
    """All usable clips of a folder, and those of them that are held back."""

    training: list[CodedClip]
    held_back: list[CodedClip]


class FolderSource:
    """Images and videos in a mixture of ``image_fraction``, each kind in an order of its own that changes every epoch.

    Where there is only one kind the fraction does not matter.
    """

    def __init__(self, clips: Sequence[CodedClip], *, seed: int, image_fraction: float) -> None:
        self._images = [clip for clip in clips if clip.num_frames == 1]
        self._videos = [clip for clip in clips if clip.num_frames > 1]
        self._seed = seed
        self._image_fraction = float(not self._videos) if not self._images or not self._videos else image_fraction
        self._order = lru_cache(maxsize=4)(lambda count, epoch: epoch_order(count, seed, epoch).tolist())

    def clip(self, position: int) -> CodedClip:
        ordinal = image_ordinal(position, self._image_fraction)
        clips = self._videos if ordinal is None else self._images
        if ordinal is None:
            ordinal = position - int(position * self._image_fraction)
        epoch, place = divmod(ordinal, len(clips))
        return clips[self._order(len(clips), epoch)[place]]


def encode_folder(
    data: DataOptions,
    tokenizer: VisualTokenizer,
    cache: Path | None,
    on_progress: Callable[[int, int], None] | None = None,
) -> EncodedFolder:
    """Encode every clip that can be decoded; the data set logs and counts the others.

    cache: safetensors file that keeps the codes; used again while folder, options and tokenizer are the same.
    on_progress: called with clips done and clips in all.

    Raises:
        ValueError: no such folder, no usable file, or fewer than two usable clips.
    """
    key = _key(data, tokenizer)
    clips = _read_cache(cache, key) if cache is not None else None
    if clips is None:
        clips = _encode(data, tokenizer, on_progress)
        if cache is not None:
            _write_cache(cache, key, clips)
    if len(clips) < 2:
        raise ValueError(
            f"data.dataset {data.dataset} must hold at least 2 usable clips, one of them to hold back, got {len(clips)}"
        )
    order = epoch_order(len(clips), _SPLIT_SEED, 0).tolist()
    held_back = set(order[::_HELD_BACK_EVERY][: data.validation_clips])
    return EncodedFolder(
        [clip for i, clip in enumerate(clips) if i not in held_back],
        [clip for i, clip in enumerate(clips) if i in held_back],
    )


def _encode(
    data: DataOptions, tokenizer: VisualTokenizer, on_progress: Callable[[int, int], None] | None
) -> list[CodedClip]:
    sizes = {"target_size": data.target_size} if data.target_size else {"size": (data.height, data.width)}
    dataset = open_dataset(
        data.dataset, num_frames=data.num_frames, fps=data.fps, temporal_stride=tokenizer.compression[0], **sizes
    )
    clips = []
    for i in range(len(dataset)):
        with suppress(MediaError):
            clip = dataset.sample(i)
            codes = tokenizer.encode(torch.from_numpy(clip.frames)).clone()
            clips.append(CodedClip(codes, clip.caption, len(clip.frames), round(clip.fps)))
        if on_progress is not None:
            on_progress(i + 1, len(dataset))
    return clips


def _key(data: DataOptions, tokenizer: VisualTokenizer) -> str:
    """Hash of what the codes depend on: names, sizes and times of the files, options, weights of the tokenizer."""
    folder = Path(data.dataset)
    files = sorted(
        (str(p.relative_to(folder)), p.stat().st_size, p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()
    )
    used = ("num_frames", "fps", "height", "width", "target_size")
    digest = hashlib.sha256(json.dumps([str(folder), files, [getattr(data, name) for name in used]]).encode())
    for name, weight in sorted(tokenizer.model.state_dict().items()):
        digest.update(name.encode() + weight.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _write_cache(path: Path, key: str, clips: Sequence[CodedClip]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {f"{i:08d}": clip.codes.to(torch.int32) for i, clip in enumerate(clips)}
    texts = [[clip.caption, clip.num_frames, clip.fps] for clip in clips]
    save_safetensors(path, tensors, {"key": key, "clips": json.dumps(texts)})


def _read_cache(path: Path, key: str) -> list[CodedClip] | None:
    """The clips, or None where the file is absent, damaged or of other data."""
    try:
        metadata = read_header(path).metadata
        if metadata.get("key") != key:
            return None
        tensors: dict[str, Tensor] = load_safetensors(path)
        texts = json.loads(metadata["clips"])
        return [CodedClip(tensors[f"{i:08d}"].long(), *text) for i, text in enumerate(texts)]
    except (FileNotFoundError, ValueError, KeyError, TypeError, RecursionError):
        return None
