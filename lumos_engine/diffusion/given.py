"""Frames that the caller gives: files, pictures or arrays, brought to the size of the clip."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .clip_shape import ClipShape, check_num_frames

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    Media = str | Path | np.ndarray | Tensor | Image


def read_given(
    image: Media | Sequence[Media] | None,
    video: Media | Sequence[Media] | None,
    shape: ClipShape,
    num_prompts: int,
    given_frames: int | None = None,
) -> list[np.ndarray] | None:
    """Frames uint8 [given, height, width, 1 or 3] of each prompt, or None if nothing is given.

    Files and PIL pictures are resized to cover the clip and cropped at the centre; arrays must have the clip's size.

    Args:
        image: first frame: a path, a PIL picture, or uint8 [H, W] or [H, W, 1 | 3]; one for all prompts, or a list of
            one each.
        video: several first frames: a path, or uint8 [T, H, W] or [T, H, W, 1 | 3]; one for all, or a list of one each.
        shape: of the clip to be made.
        num_prompts: number of prompts.
        given_frames: use only so many frames of ``video``.

    Raises:
        TypeError: of another type than these. ValueError: both given; a size, a frame count or a list length that does
            not fit; an unreadable file. FileNotFoundError: no such file.
    """
    if image is not None and video is not None:
        raise ValueError("give image or video, not both: image is the first frame, video several first frames")
    if image is None and video is None:
        if given_frames is not None:
            raise ValueError(f"given_frames={given_frames} says how much of video to use, but no video was given")
        return None
    name, media = ("image", image) if video is None else ("video", video)
    each = list(media) if isinstance(media, (list, tuple)) else [media]
    if len(each) not in (1, num_prompts):
        raise ValueError(
            f"{name} must be one for all prompts or a list of {num_prompts}, one per prompt; got {len(each)}"
        )
    if given_frames is not None:
        if name == "image":
            raise ValueError(f"given_frames={given_frames} applies to video; image is always one frame")
        check_num_frames(given_frames, shape.strides[0], "given_frames")
    read = [_read_image(one, shape) if name == "image" else _read_video(one, shape, given_frames) for one in each]
    for clip in read:
        if len(clip) >= shape.num_frames:
            hint = "" if name == "image" else "; choose fewer with given_frames"
            raise ValueError(
                f"{name} has {len(clip)} frames, which leaves none of num_frames={shape.num_frames} to generate{hint}"
            )
        check_num_frames(len(clip), shape.strides[0], f"the number of frames of {name}")
    if len({len(clip) for clip in read}) > 1:
        raise ValueError(f"all videos of one call must have equally many frames, got {[len(clip) for clip in read]}")
    return read * (num_prompts if len(read) == 1 else 1)


def _read_image(image: Any, shape: ClipShape) -> np.ndarray:
    from ..io.image import cover_and_crop, read_image

    if isinstance(image, (str, os.PathLike)):
        return cover_and_crop(read_image(image), shape.height, shape.width)[None]
    if hasattr(image, "convert"):  # a PIL picture; Pillow need not be imported to know
        return cover_and_crop(np.array(image.convert("RGB")), shape.height, shape.width)[None]
    pixels = _pixels(image, "image")
    if pixels.ndim not in (2, 3):
        raise ValueError(f"image must be [H, W] or [H, W, 1 or 3], got shape {list(pixels.shape)}")
    return _check_size(pixels[None, :, :, None] if pixels.ndim == 2 else pixels[None], "image", shape)


def _read_video(video: Any, shape: ClipShape, given_frames: int | None) -> np.ndarray:
    from ..io.video import read_video

    if isinstance(video, (str, os.PathLike)):
        limit = (
            shape.num_frames if given_frames is None else given_frames
        )  # more than leaves room is refused, however long the file
        frames = read_video(video, fps=shape.fps, max_frames=limit, size=(shape.height, shape.width)).frames
    else:
        pixels = _pixels(video, "video")
        if pixels.ndim not in (3, 4) or not len(pixels):
            raise ValueError(
                f"video must be [T, H, W] or [T, H, W, 1 or 3] with at least one frame, got shape {list(pixels.shape)}"
            )
        frames = _check_size(pixels[..., None] if pixels.ndim == 3 else pixels, "video", shape)[:given_frames]
    if given_frames is not None and len(frames) < given_frames:
        raise ValueError(
            f"given_frames={given_frames}, but video has only {len(frames)} frames at {shape.fps} frames per second"
        )
    return frames


def _pixels(value: Any, name: str) -> np.ndarray:
    if not (hasattr(value, "__array__") or hasattr(value, "numpy")):
        raise TypeError(f"{name} must be a path, a picture or a uint8 array, got {type(value).__name__}")
    pixels = np.asarray(value.cpu() if hasattr(value, "cpu") else value)
    if pixels.dtype != np.uint8:
        raise TypeError(f"{name} must be uint8 with values 0..255, got {pixels.dtype}")
    return pixels


def _check_size(frames: np.ndarray, name: str, shape: ClipShape) -> np.ndarray:
    if frames.shape[1:3] != (shape.height, shape.width) or frames.shape[3] not in (1, 3):
        raise ValueError(
            f"{name} must be {shape.height} x {shape.width} pixels (height x width) with 1 or 3 channels, "
            f"got {list(frames.shape[1:])}; "
            f"pass a file or a PIL picture to have it resized, or other height and width"
        )
    return frames
