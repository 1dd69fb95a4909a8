"""Images: decoding, alpha, orientation, resize-and-crop, and every kind of file that cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from lumos_engine.io.image import MediaError, cover_and_crop, read_image


def _gradient(height: int, width: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    return np.stack([255 * y // max(1, height - 1), 255 * x // max(1, width - 1), 0 * x + 40], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp"])
def test_read_image(tmp_path: Path, suffix: str) -> None:
    pixels = _gradient(20, 30)
    path = tmp_path / f"a{suffix}"
    Image.fromarray(pixels).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    np.testing.assert_array_equal(read_image(path), pixels)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    rgba = np.zeros((4, 4, 4), dtype=np.uint8)
    rgba[:2] = (255, 0, 0, 255)
    Image.fromarray(rgba).save(tmp_path / "a.png")
    pixels = read_image(tmp_path / "a.png")
    assert (pixels[:2] == (255, 0, 0)).all() and (pixels[2:] == 255).all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to show
    Image.fromarray(_gradient(20, 30)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.rot90(_gradient(20, 30), -1))


def test_grey_and_palette(tmp_path: Path) -> None:
    Image.fromarray(_gradient(8, 8)[..., 0]).save(tmp_path / "grey.png")
    Image.fromarray(_gradient(8, 8)).quantize(16).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "grey.png").shape == read_image(tmp_path / "palette.png").shape == (8, 8, 3)


def test_unusable_files_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(tmp_path / "good.png")
    data = (tmp_path / "good.png").read_bytes()
    cases = {"empty.png": b"", "text.png": b"not an image", "cut.png": data[: len(data) // 2], "head.png": data[:20]}
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(MediaError, match="64x64 pixels, at most 4095"):
        read_image(tmp_path / "good.png", max_pixels=4095)
    with pytest.raises(MediaError, match="not a regular file"):
        read_image(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"none\.png"):
        read_image(tmp_path / "none.png")


@given(st.data())
def test_any_damage_is_a_media_error_or_an_image(data: st.DataObject) -> None:
    import io
    import tempfile

    buffer = io.BytesIO()
    Image.fromarray(_gradient(12, 12)).save(buffer, "png")
    raw = bytearray(buffer.getvalue())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.png")
        path.write_bytes(raw)
        try:
            pixels = read_image(path, max_pixels=10_000)
        except MediaError:
            return
        assert pixels.dtype == np.uint8 and pixels.shape[2] == 3


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 40), st.integers(1, 40), st.sampled_from([1, 3]))
def test_cover_and_crop_keeps_the_centre(h: int, w: int, height: int, width: int, channels: int) -> None:
    flat = np.full((h, w, channels), 77, dtype=np.uint8)
    out = cover_and_crop(flat, height, width)
    assert out.shape == (height, width, channels) and (out == 77).all()  # no border crept in


def test_cover_and_crop_is_symmetric_and_exact_where_nothing_is_to_do() -> None:
    image = _gradient(32, 48)
    np.testing.assert_array_equal(cover_and_crop(image, 32, 48), image)
    np.testing.assert_array_equal(cover_and_crop(image, 32, 32), image[:, 8:40])
    halved = image.astype(float).reshape(16, 2, 24, 2, 3).mean(axis=(1, 3))
    assert np.abs(cover_and_crop(image, 16, 24) - halved).max() <= 0.5


def test_cover_and_crop_refuses() -> None:
    with pytest.raises(ValueError, match="image must be uint8"):
        cover_and_crop(np.zeros((4, 4, 3)), 2, 2)
    with pytest.raises(ValueError, match="image must be uint8"):
        cover_and_crop(np.zeros((4, 4), dtype=np.uint8), 2, 2)
    with pytest.raises(ValueError, match="at least 1 px"):
        cover_and_crop(np.zeros((4, 4, 3), dtype=np.uint8), 0, 2)
