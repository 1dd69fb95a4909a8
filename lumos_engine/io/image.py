"""Images: reading (Pillow), and resizing to cover and crop as Lumos-1 prepares its training data."""

from __future__ import annotations

import os
from io import BytesIO
from pathlib import Path

import numpy as np

__all__ = ["IMAGE_SUFFIXES", "MAX_PIXELS", "MediaError", "check_media_file", "cover_and_crop", "read_image"]

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
MAX_PIXELS = 64 * 1024 * 1024
"""Largest declared height * width that is decoded: a header may claim any size, memory is spent on what it claims."""


class MediaError(ValueError):
    """A video or image that cannot be used; the message names the file and the reason."""


def check_media_file(path: str | os.PathLike[str]) -> Path:
    """``path`` as an absolute path of a non-empty regular file.

    Raises:
        FileNotFoundError: nothing is there.
        MediaError: it is a folder or a device, or holds no bytes.
    """
    file = Path(path).absolute()
    if not file.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not file.is_file():
        raise MediaError(f"{path} is not a regular file")
    if file.stat().st_size == 0:
        raise MediaError(f"{path} is empty (0 bytes)")
    return file


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """uint8 RGB [H, W, 3], turned upright by its EXIF tag; transparent parts on white. Of an animation, the first
    frame.

    Raises:
        FileNotFoundError: no such file.
        MediaError: not an image, truncated, or more than ``max_pixels`` pixels by its header or, at 8 bytes each, by
            its size.
    """
    from PIL import Image, ImageOps, UnidentifiedImageError

    file = check_media_file(path)
    if file.stat().st_size > max_pixels * 8:
        raise MediaError(f"{path} has {file.stat().st_size} bytes, at most {max_pixels * 8} are read")
    try:
        # From memory: a file would set aside as many bytes as a damaged chunk claims to have.
        with Image.open(BytesIO(file.read_bytes())) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise MediaError(f"{path} declares {width}x{height} pixels, at most {max_pixels} pixels are read")
            upright = ImageOps.exif_transpose(image)
            if upright.has_transparency_data:
                rgba = upright.convert("RGBA")
                upright = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
            return np.array(upright.convert("RGB"))
    except MediaError:
        raise
    except UnidentifiedImageError as error:
        raise MediaError(f"{path} is not an image that Pillow can read") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise all of these on damaged files; PNG chunks even SyntaxError.
        raise MediaError(f"{path} cannot be decoded: {error}") from error


def cover_and_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """uint8 [H, W, 3|1] -> uint8 [height, width, 3|1]: shrink or enlarge until both sides are covered, then crop the
    centre.

    As the original: halve with a box filter while both sides are at least twice the target, then bicubic to the scale
    that covers.

    Raises:
        ValueError: not a uint8 image of 1 or 3 channels, or a target below 1 px.
        MediaError: so narrow an image that the one that covers has more than :data:`MAX_PIXELS`.
    """
    from PIL import Image

    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] not in (1, 3) or 0 in image.shape:
        raise ValueError(f"image must be uint8 [H, W, 1 or 3], not {image.dtype} {list(image.shape)}")
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 px, not {height}x{width}")
    channels = image.shape[2]
    picture = Image.fromarray(image if channels == 3 else image[..., 0])
    while picture.width >= 2 * width and picture.height >= 2 * height:
        picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    scale = max(width / picture.width, height / picture.height)
    covering = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
    if covering[0] * covering[1] > MAX_PIXELS:
        raise MediaError(
            f"an image of {image.shape[0]}x{image.shape[1]} covers {height}x{width} only when enlarged to "
            f"{covering[1]}x{covering[0]}, above the {MAX_PIXELS} pixels that are made"
        )
    if covering != picture.size:
        picture = picture.resize(covering, Image.Resampling.BICUBIC)
    left, top = (picture.width - width) // 2, (picture.height - height) // 2
    return np.array(picture.crop((left, top, left + width, top + height))).reshape(height, width, channels)
