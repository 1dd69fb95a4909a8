"""Any folder of videos and images with captions.

Captions come from ``captions.jsonl`` in the folder (one object a line, keys ``path``, relative to the folder, and
``caption``; other keys and files that it does not list are ignored), or, where there is none, from ``name.txt``
beside ``name.mp4``.

A caption that is null, missing or blank is no caption: by default such a file is left out of a
data set for text to video; ``captions="optional"`` uses it with caption "" (what a visual tokenizer needs).

A file that cannot be used is named in the log (logger ``lumos_engine.data``) with the reason, kept in
:attr:`FolderDataset.skipped`, and never replaced by another one. Headers are read when the data set is opened; damage
inside a file is found when it is decoded, and is a :class:`~lumos_engine.io.image.MediaError` then.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..io.image import IMAGE_SUFFIXES, MediaError, check_media_file, cover_and_crop, read_image
from ..io.video import VIDEO_SUFFIXES, probe_video, read_video
from .buckets import bucket_sizes, nearest_bucket
from .clip import Clip

__all__ = ["FolderDataset", "SkippedFile"]

_LOG = logging.getLogger("lumos_engine.data")
_CAPTIONS_FILE = "captions.jsonl"
_FRAME_TOLERANCE = 0.02  # of a frame: durations are rounded to the container's clock


@dataclass(frozen=True)
class SkippedFile:
    """A file that was left out, path relative to the folder, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class _Item:
    path: str
    caption: str
    start: float  # seconds


class FolderDataset:
    """Clips of ``num_frames`` frames from the middle of each video, and images as clips of one frame at 1 fps; RGB.

    Args:
        folder: the folder; without a ``captions.jsonl`` it is searched with its subfolders, in the order of the names.
        num_frames: frames of a video clip, 1 + temporal_stride * n; 1 takes the middle frame, as an image.
        fps: frame rate to sample videos at. Videos shorter than the clip are left out.
        target_size: area of the buckets, as the side of a square, px (:mod:`lumos_engine.data.buckets`).
        size: (height, width) of every clip instead of buckets.
        captions: "required" leaves files without a caption out, "optional" uses them with caption "".
        temporal_stride: frames per latent frame of the visual tokenizer.

    Attributes:
        skipped: what was left out so far, in the order it was found, each file once.

    Raises:
        NotADirectoryError: there is no such folder.
        ValueError: an option is out of range, ``captions.jsonl`` is malformed (names the line), or no file can be used.
    """

    channels = 3

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        num_frames: int = 25,
        fps: float = 12.0,
        target_size: int = 352,
        size: tuple[int, int] | None = None,
        captions: str = "required",
        temporal_stride: int = 4,
    ) -> None:
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise NotADirectoryError(f"no such folder: {folder}")
        if num_frames < 1 or (num_frames - 1) % temporal_stride:
            near = 1 + temporal_stride * max(0, (num_frames - 1) // temporal_stride)
            raise ValueError(
                f"num_frames must be 1 + {temporal_stride} n, not {num_frames}; "
                f"the nearest are {near} and {near + temporal_stride}"
            )
        if not 0 < fps <= 1000:
            raise ValueError(f"fps must be within (0, 1000], not {fps}")
        if captions not in ("required", "optional"):
            raise ValueError(f"captions is 'required' or 'optional', not {captions!r}")
        if size is not None and min(size) < 1:
            raise ValueError(f"size must be (height, width) of at least 1 px, not {size}")
        bucket_sizes(target_size)
        self.num_frames, self.fps, self.target_size, self.size = num_frames, float(fps), target_size, size
        self.skipped: list[SkippedFile] = []
        listed = self.folder / _CAPTIONS_FILE
        found = _read_captions(listed) if listed.is_file() else _find_files(self.folder)
        self._items = [item for path, caption in found if (item := self._check(path, caption, captions)) is not None]
        if not self._items:
            reasons = "; ".join(f"{file.path}: {file.reason}" for file in self.skipped[:3])
            raise ValueError(
                f"{folder} holds no usable video or image"
                + (f" ({len(self.skipped)} skipped: {reasons})" if reasons else "")
            )
        if self.skipped:
            _LOG.warning("%s: %d files skipped, %d used", folder, len(self.skipped), len(self._items))

    def __len__(self) -> int:
        return len(self._items)

    def sample(self, index: int) -> Clip:
        """Decode clip ``index``.

        Raises:
            IndexError: outside 0..len-1.
            MediaError: the file is damaged, or holds fewer frames than its header promised. It is logged and added to
                :attr:`skipped`.
        """
        if not 0 <= index < len(self._items):
            raise IndexError(f"clip index must be within 0..{len(self._items) - 1}, not {index}")
        item = self._items[index]
        try:
            return self._decode(item)
        except (MediaError, OSError) as error:
            self._skip(item.path, str(error))
            raise MediaError(str(error)) from error

    def _decode(self, item: _Item) -> Clip:
        path = self.folder / item.path
        if _is_image(item.path):
            image = read_image(path)
            return Clip(cover_and_crop(image, *self._size_for(*image.shape[:2]))[None], item.caption, 1.0)
        video = read_video(path, self.fps, self.num_frames, self._size_for, start=item.start)
        if len(video.frames) < self.num_frames:
            raise MediaError(
                f"{path} holds {len(video.frames)} frames at {self.fps:g} fps from {item.start:.2f} s on, "
                f"not {self.num_frames}"
            )
        return Clip(video.frames, item.caption, self.fps if self.num_frames > 1 else 1.0)

    def _size_for(self, height: int, width: int) -> tuple[int, int]:
        return self.size or nearest_bucket(height, width, self.target_size)

    def _check(self, path: str, caption: str, captions: str) -> _Item | None:
        """The item, or None where header or caption already tell that it cannot be used."""
        if not caption and captions == "required":
            self._skip(path, "no caption")
            return None
        try:
            if _is_image(path):
                check_media_file(self.folder / path)
                return _Item(path, caption, 0.0)
            info = probe_video(self.folder / path)
        except (MediaError, OSError) as error:
            self._skip(path, str(error))
            return None
        if info.duration is None:
            return _Item(path, caption, 0.0)
        spare = info.duration - (self.num_frames - _FRAME_TOLERANCE) / self.fps
        if self.num_frames > 1 and spare < 0:
            self._skip(path, f"{info.duration:.2f} s are shorter than {self.num_frames} frames at {self.fps:g} fps")
            return None
        # A start within the tolerance is the beginning; seeking there could miss the first frame.
        return _Item(path, caption, spare / 2 if spare * self.fps > 1 else 0.0)

    def _skip(self, path: str, reason: str) -> None:
        if any(file.path == path for file in self.skipped):
            return  # damaged, and met again in a later epoch
        self.skipped.append(SkippedFile(path, reason))
        _LOG.warning("skipped %s: %s", path, reason)


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def _find_files(folder: Path) -> Iterator[tuple[str, str]]:
    for path in sorted(folder.rglob("*"), key=lambda path: path.relative_to(folder).as_posix()):
        if path.suffix.lower() in (*VIDEO_SUFFIXES, *IMAGE_SUFFIXES) and path.is_file():
            text = path.with_suffix(".txt")
            caption = text.read_text(encoding="utf-8", errors="replace") if text.is_file() else ""
            yield path.relative_to(folder).as_posix(), " ".join(caption.split())


def _read_captions(file: Path) -> Iterator[tuple[str, str]]:
    with open(file, encoding="utf-8", errors="replace") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file} line {number} is not JSON: {error}") from None
            path = row.get("path") if isinstance(row, dict) else None
            caption = row.get("caption") if isinstance(row, dict) else None
            if not isinstance(path, str) or not path or not isinstance(caption, (str, type(None))):
                raise ValueError(
                    f"{file} line {number} must be an object with a string 'path' and a 'caption' that is a string or "
                    "null"
                )
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ValueError(f"{file} line {number}: path {path!r} leaves the folder; paths are relative to it")
            yield path, " ".join((caption or "").split())
