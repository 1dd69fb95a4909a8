"""Images and videos of any content, read by a process with 3 GiB to spend and a minute for each: never a crash, a hang, or more memory.

Running out of memory counts as too much: the limit is the promise, so a MemoryError is a failure.
"""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from lumos_engine.io.video import save_video

from .helpers import MAX_MESSAGE_CHARACTERS, damaged

files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
Ask = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def ask() -> Iterator[Ask]:
    """``ask(path, **options)``: shape, or error and message."""
    command = [sys.executable, str(Path(__file__).with_name("media_reader.py"))]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    reader, writer = process.stdout, process.stdin
    assert reader.readline() == "ready\n"

    def call(path: Path, **options: Any) -> dict[str, Any]:
        writer.write(json.dumps({"path": str(path), "options": options}) + "\n")
        writer.flush()
        line = reader.readline()
        assert line, f"the reader of {path} ended with {process.wait()}"
        answer = json.loads(line)
        if "error" in answer:
            assert answer["error"] in ("MediaError", "ValueError"), answer
            message = answer["message"]
            assert message and "\n" not in message and len(message) <= MAX_MESSAGE_CHARACTERS, answer
            assert path.name in message or answer["error"] == "ValueError" or "covers" in message, answer
        return answer

    yield call
    process.communicate()


def encoded(suffix: str) -> bytes:
    """A small picture, or a clip of twelve frames, in the format of ``suffix``."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 48, 3), dtype=np.uint8)
    if suffix in (".png", ".jpg", ".webp", ".bmp"):
        buffer = BytesIO()
        Image.fromarray(pixels[0]).save(buffer, Image.registered_extensions()[suffix])
        return buffer.getvalue()
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"a{suffix}"
        save_video(pixels, path, 12)
        return path.read_bytes()


GOOD = {suffix: encoded(suffix) for suffix in (".png", ".jpg", ".webp", ".bmp", ".mp4", ".gif")}


@pytest.mark.parametrize("suffix", list(GOOD))
@files
@given(data=st.data())
def test_any_damage(ask: Ask, tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data.draw(damaged(GOOD[suffix])))
    options = data.draw(st.sampled_from([{}, {"size": [16, 16]}]))
    if suffix in (".mp4", ".gif"):
        options |= data.draw(st.sampled_from([{}, {"fps": 5}, {"fps": 1000, "max_frames": 20}, {"start": 0.4}]))
    ask(path, **options)


def test_a_chunk_that_claims_gigabytes(ask: Ask, tmp_path: Path) -> None:
    path, content = tmp_path / "a.png", bytearray(GOOD[".png"])
    content[content.index(b"IDAT") - 4] = 0xFF
    path.write_bytes(content)
    assert ask(path) == {"shape": [32, 48, 3]}, "all that the picture needs is there"


def test_names_that_are_not_unicode(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    assert b"VideoHandler" in GOOD[".mp4"] and b"Lavf" in GOOD[".mp4"]
    path.write_bytes(GOOD[".mp4"].replace(b"VideoHandler", b"\x80ideoHandler").replace(b"Lavf", b"\x80avf"))
    assert ask(path) == {"shape": [12, 32, 48, 3]}


@pytest.mark.parametrize("suffix", [*GOOD, ".mkv", ".webm", ".avi", ".mov"])
def test_other_content_than_the_suffix_says(ask: Ask, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    for content in (b"", b"\x00", b"\x00" * 100_000, b"#!/bin/sh\n", b"#EXTM3U\nfile:///etc/passwd\n", *GOOD.values()):
        path.write_bytes(content)
        answer = ask(path)
        assert "error" in answer or content in GOOD.values()


def png(width: int, height: int, rows: bytes | None = None) -> bytes:
    """A grey picture of ``width`` x ``height``; ``rows`` in place of what belongs to that size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    if rows is None:
        compressor = zlib.compressobj(9)
        rows = b"".join(compressor.compress(bytes(width + 1)) for _ in range(height)) + compressor.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("width", "height"), [(2**31 - 1, 2**31 - 1), (2**31 - 1, 1), (1, 2**31 - 1), (8193, 8193), (0, 5)]
)
def test_declared_sizes_are_refused_before_anything_is_decoded(
    ask: Ask, tmp_path: Path, width: int, height: int
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height, b"x"))
    assert ask(path)["error"] == "MediaError"


@pytest.mark.parametrize(("width", "height"), [(1 << 20, 1), (1, 1 << 20), (8192, 8192)])
def test_small_files_of_large_pictures(ask: Ask, tmp_path: Path, width: int, height: int) -> None:
    """A picture of one row would need 2^20 rows to cover a square; one at the limit of pixels is read."""
    path = tmp_path / "a.png"
    path.write_bytes(png(width, height))
    assert path.stat().st_size < 100_000
    assert ask(path)["shape"] == [height, width, 3]
    answer = ask(path, size=[256, 256])
    assert answer == {"shape": [256, 256, 3]} if width == height else "enlarged" in answer["message"]


def gif(width: int, height: int, num_frames: int, delay: int = 1) -> bytes:
    """Frames of one pixel on a screen of ``width`` x ``height``."""
    screen = b"GIF89a" + struct.pack("<HHBBB", width, height, 0x80, 0, 0) + bytes(3) + b"\xff" * 3
    frame = (
        b"!\xf9\x04\x00" + struct.pack("<H", delay) + b"\x00\x00,\x00\x00\x00\x00\x01\x00\x01\x00\x00\x02\x02D\x01\x00"
    )
    return screen + frame * num_frames + b";"


def test_small_files_of_many_large_frames(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(gif(4096, 4096, 40))
    assert path.stat().st_size < 10_000
    assert "more than" in ask(path)["message"]
    assert ask(path, size=[32, 32], max_frames=3) == {"shape": [3, 32, 32, 3]}


@pytest.mark.slow
def test_a_clip_at_the_limit_is_read(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(gif(4096, 4096, 21))
    assert ask(path) == {"shape": [21, 4096, 4096, 3]}


def test_a_pause_of_minutes_is_not_filled_with_frames_without_end(ask: Ask, tmp_path: Path) -> None:
    path = tmp_path / "a.gif"
    path.write_bytes(gif(8, 8, 3, delay=65535))
    assert "more than" in ask(path, fps=1000)["message"]
    assert ask(path, fps=1000, max_frames=7) == {"shape": [7, 8, 8, 3]}
