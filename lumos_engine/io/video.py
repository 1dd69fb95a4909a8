"""Videos: reading (PyAV) at a chosen frame rate and size; writing as .mp4 (PyAV), .gif and .png (Pillow)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from .atomic import replace_file
from .image import MAX_PIXELS, MediaError, check_media_file, cover_and_crop

__all__ = ["VIDEO_SUFFIXES", "MediaError", "Video", "VideoInfo", "probe_video", "read_video", "save_video"]

VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif")
_SAVE_SUFFIXES = (".mp4", ".gif", ".png")
_TIME_TOLERANCE_S = 1e-3
MAX_FRAMES = 100_000
MAX_CLIP_BYTES = 1 << 30
"""Most frames, and bytes of all frames, that :func:`read_video` returns: a small file may hold any number of equal frames."""


@dataclass(frozen=True)
class VideoInfo:
    """What the container declares. ``duration`` in seconds, None where it declares none; ``fps`` is the average
    rate.
    """

    height: int
    width: int
    fps: float
    duration: float | None


@dataclass(frozen=True)
class Video:
    """``frames`` uint8 [T, H, W, 3] at ``fps`` frames per second."""

    frames: np.ndarray
    fps: float


@contextmanager
def _open_stream(path: str | os.PathLike[str], max_pixels: int) -> Iterator[tuple[Any, Any, VideoInfo]]:
    """(container, video stream, what it declares); every failure of the library becomes a MediaError that names
    ``path``.
    """
    import av

    file = check_media_file(path)
    try:
        # Only this file: a playlist must not make the demuxer fetch from a network.
        with av.open(str(file), options={"protocol_whitelist": "file"}, metadata_errors="replace") as container:
            if not container.streams.video:
                raise MediaError(f"{path} holds no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise MediaError(f"{path} holds a video stream of a codec that is not known")
            if stream.width < 1 or stream.height < 1:
                raise MediaError(f"{path} declares no frame size")
            if stream.width * stream.height > max_pixels:
                raise MediaError(
                    f"{path} declares {stream.width}x{stream.height} pixels, at most {max_pixels} pixels are read"
                )
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise MediaError(f"{path} declares no frame rate")
            duration = None
            if stream.duration is not None and stream.time_base is not None:
                duration = stream.duration * float(stream.time_base)
            elif container.duration is not None:
                duration = container.duration / av.time_base
            yield container, stream, VideoInfo(stream.height, stream.width, float(rate), duration)
    except av.FFmpegError as error:
        raise MediaError(f"{path} cannot be decoded: {error.strerror}") from error


def probe_video(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> VideoInfo:
    """Declared size, rate and duration, without decoding a frame. Raises as :func:`read_video`."""
    with _open_stream(path, max_pixels) as (_, _, info):
        return info


def read_video(
    path: str | os.PathLike[str],
    fps: float | None = None,
    max_frames: int | None = None,
    size: tuple[int, int] | Callable[[int, int], tuple[int, int]] | None = None,
    *,
    start: float = 0.0,
    max_pixels: int = MAX_PIXELS,
) -> Video:
    """Decode the first video stream.

    Args:
        fps: frames per second returned: the frame shown at each k/fps (so frames repeat above the source's rate).
            None: every frame.
        max_frames: stop after that many. None: to the end, which must come within :data:`MAX_FRAMES`.
        size: (height, width), or a function that gives it for the (height, width) of the first upright frame; frames
            are resized to cover it and cropped (:func:`cover_and_crop`). None: as they are.
        start: seconds to skip.
        max_pixels: refuse what declares more height * width than this.

    Raises:
        FileNotFoundError: no such file.
        MediaError: not a video, no video stream, truncated or damaged, too large (a frame, or all returned ones together above
            :data:`MAX_CLIP_BYTES`), or no frame after ``start``.
        ValueError: an argument out of range.
    """
    if fps is not None and not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps must be a positive number or None, not {fps}")
    if max_frames is not None and max_frames < 1:
        raise ValueError(f"max_frames must be at least 1 or None, not {max_frames}")
    if not (math.isfinite(start) and start >= 0):
        raise ValueError(f"start must be at least 0 seconds, not {start}")
    with _open_stream(path, max_pixels) as (container, stream, info):
        timed = _decode(path, container, stream, info, start)
        shown = _at_rate(timed, fps, 1.0 / info.fps)
        frames = []
        num_bytes = 0
        for frame in shown:
            # The display matrix of phone videos: degrees counterclockwise, as rot90 turns.
            image = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
            if callable(size):
                size = size(*image.shape[:2])
            frames.append(image if size is None else cover_and_crop(np.ascontiguousarray(image), *size))
            num_bytes += frames[-1].nbytes
            if num_bytes > MAX_CLIP_BYTES or len(frames) > MAX_FRAMES:
                raise MediaError(
                    f"{path} holds more than {MAX_FRAMES} frames or {MAX_CLIP_BYTES} bytes of them; give max_frames or size"
                )
            if len(frames) == max_frames:
                break
    if not frames:
        raise MediaError(f"{path} holds no frame" + (f" after {start} s" if start else ""))
    if any(frame.shape != frames[0].shape for frame in frames):
        raise MediaError(f"{path} changes its frame size midway; give size=(height, width)")
    return Video(np.stack(frames), info.fps if fps is None else float(fps))


def _decode(path: Any, container: Any, stream: Any, info: VideoInfo, start: float) -> Iterator[tuple[float, Any]]:
    """(seconds since ``start``, frame) in order of presentation. The frame on screen at ``start`` is the first, at
    time <= 0.
    """
    tick = float(stream.time_base)
    origin = (stream.start_time or 0) * tick
    if start > 0:
        container.seek(int((start + origin) / tick), stream=stream)  # to the key frame before
    time, count, held = -math.inf, 0, None
    for frame in container.decode(stream):
        shown_at = count / info.fps if frame.pts is None else frame.pts * float(frame.time_base) - origin
        time = max(time, shown_at - start)  # some muxers write the same time twice
        count += 1
        if frame.is_corrupt:
            if time <= 0:  # refers to frames before the key frame, and is not shown
                continue
            raise MediaError(f"{path} is damaged at {shown_at:.3f} s")
        if time <= _TIME_TOLERANCE_S:
            held = (time, frame)  # a later frame may still begin before `start`
            continue
        if held is not None:
            yield held
            held = None
        yield time, frame
    if held is not None and (start == 0 or held[0] + 1.0 / info.fps > _TIME_TOLERANCE_S):
        yield held
    # A file cut off between two packets decodes without an error; what it declares tells.
    end = time + start + 1.0 / info.fps
    if count and info.duration is not None and end < 0.9 * info.duration - 1.0 / info.fps:
        raise MediaError(f"{path} is truncated: it declares {info.duration:.2f} s and ends at {max(end, 0.0):.2f} s")


def _at_rate(timed: Iterator[tuple[float, Any]], fps: float | None, frame_s: float) -> Iterator[Any]:
    """The frame on screen at each k/fps until the last one has been shown for ``frame_s``; with ``fps`` None, every
    frame.
    """
    if fps is None:
        yield from (frame for _, frame in timed)
        return
    current, end, k = None, 0.0, 0
    for time, frame in timed:
        while current is not None and k / fps < time - _TIME_TOLERANCE_S:
            yield current
            k += 1
        current, end = frame, time + frame_s
    while current is not None and k / fps < end - _TIME_TOLERANCE_S:
        yield current
        k += 1


def save_video(frames: Any, path: str | os.PathLike[str], fps: float, *, scale: int = 1) -> None:
    """Write frames; the suffix of ``path`` chooses the format. The file appears whole or not at all.

    - ``.mp4``: H.264, yuv420p (odd sides get one more row or column, a copy of the edge), index at the front
      (faststart).
    - ``.gif``: endless loop; GIF counts time in 1/100 s.
    - ``.png``: one frame as an image; several as a contact sheet, side by side from left to right.

    Args:
        frames: uint8 [T, H, W, 3 or 1], array or CPU tensor.
        fps: frames per second (ignored by .png).
        scale: enlarge by a whole factor, each pixel a square: a 32x32 clip wants 8.

    Raises:
        ValueError: unknown suffix, wrong shape or dtype, no frame, fps or scale out of range.
        OSError: the file cannot be written (disk full, no such folder); nothing is left behind.
    """
    target, pixels = Path(path), np.asarray(frames)
    suffix = target.suffix.lower()
    if suffix not in _SAVE_SUFFIXES:
        raise ValueError(
            f"cannot save {str(path)!r}: the suffix must be one of {', '.join(_SAVE_SUFFIXES)}, not {target.suffix!r}"
        )
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or 0 in pixels.shape:
        raise ValueError(
            f"frames must be uint8 [T, H, W, 1 or 3] with at least one frame, not {pixels.dtype} {list(pixels.shape)}"
        )
    if not (math.isfinite(fps) and 0 < fps <= 1000):
        raise ValueError(f"fps must be within (0, 1000], not {fps}")
    if int(scale) != scale or scale < 1:
        raise ValueError(f"scale must be a whole number of at least 1, not {scale}")
    pixels = pixels.repeat(int(scale), axis=1).repeat(int(scale), axis=2)
    with replace_file(target) as temporary:
        if suffix == ".mp4":
            _write_mp4(pixels, temporary, fps)
        elif suffix == ".gif":
            images = _pictures(pixels)
            # Delays are rounded to 1/100 s, and players take 0 and 1 for "slow".
            delay_ms = max(20, 10 * round(100 / fps))
            images[0].save(temporary, save_all=True, append_images=images[1:], duration=delay_ms, loop=0)
        else:
            _pictures(np.concatenate(list(pixels), axis=1)[None])[0].save(temporary)


def _pictures(pixels: np.ndarray) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(frame if frame.shape[2] == 3 else frame[..., 0]) for frame in pixels]


def _write_mp4(pixels: np.ndarray, path: Path, fps: float) -> None:
    import av

    height, width = pixels.shape[1:3]
    pixels = np.pad(pixels, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001), options={"crf": "17"})
            stream.height, stream.width, stream.pix_fmt = *pixels.shape[1:3], "yuv420p"
            for image in pixels:
                rgb = np.ascontiguousarray(np.broadcast_to(image, (*image.shape[:2], 3)))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(rgb, format="rgb24")))
            container.mux(stream.encode())
    except av.FFmpegError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
