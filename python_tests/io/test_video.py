"""Videos: frame-rate sampling, seeking, the three output formats, and every kind of file that cannot be used."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from lumos_engine.io import video as video_module
from lumos_engine.io.video import MediaError, probe_video, read_video, save_video


def _numbered(num_frames: int, height: int = 32, width: int = 48) -> np.ndarray:
    """Frame k is flat grey 8k+4, so that a decoded frame tells its number."""
    return np.broadcast_to(
        (8 * np.arange(num_frames) + 4).astype(np.uint8)[:, None, None, None], (num_frames, height, width, 1)
    ).copy()


def _numbers(frames: np.ndarray) -> list[int]:
    return [int(value) for value in np.floor(frames.mean(axis=(1, 2, 3)) / 8)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    save_video(_numbered(24), tmp_path / "clip.mp4", 24)
    return tmp_path / "clip.mp4"


def test_mp4_round_trip(tmp_path: Path, clip: Path) -> None:
    read = read_video(clip)
    assert read.frames.shape == (24, 32, 48, 3) and read.fps == 24
    assert _numbers(read.frames) == list(range(24))
    info = probe_video(clip)
    assert (info.height, info.width, info.fps, info.duration) == (32, 48, 24.0, 1.0)
    data = clip.read_bytes()
    assert 0 < data.index(b"moov") < data.index(b"mdat")  # faststart
    with av.open(str(clip)) as container:
        assert (
            container.streams.video[0].pix_fmt == "yuv420p" and container.streams.video[0].codec_context.name == "h264"
        )
    assert os.listdir(tmp_path) == ["clip.mp4"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"fps": 12}, list(range(0, 24, 2))),
        ({"fps": 8}, list(range(0, 24, 3))),
        ({"fps": 48}, [k // 2 for k in range(48)]),
        ({"fps": 10}, [0, 2, 4, 7, 9, 12, 14, 16, 19, 21]),
        ({"fps": 12, "max_frames": 3}, [0, 2, 4]),
        ({"start": 0.5}, list(range(12, 24))),
        ({"start": 0.51}, list(range(12, 24))),
        ({"start": 0.5, "fps": 6}, [12, 16, 20]),
        ({"start": 0.97}, [23]),
    ],
)
def test_sampling(clip: Path, options: dict, expected: list[int]) -> None:
    read = read_video(clip, **options)
    assert _numbers(read.frames) == expected
    assert read.fps == options.get("fps", 24)


def test_size_covers_and_crops(clip: Path) -> None:
    assert read_video(clip, size=(16, 16), max_frames=2).frames.shape == (2, 16, 16, 3)


def test_display_rotation_is_applied(tmp_path: Path) -> None:
    pixels = np.zeros((2, 32, 64, 1), dtype=np.uint8)
    pixels[:, :, :32] = 200  # bright left half
    save_video(pixels, tmp_path / "a.mp4", 4)
    one = (1 << 16).to_bytes(4, "big")
    zero, minus_one = bytes(4), (-(1 << 16)).to_bytes(4, "big", signed=True)
    identity = one + zero + zero + zero + one + zero + zero + zero + (1 << 30).to_bytes(4, "big")
    clockwise = zero + one + zero + minus_one + zero + zero + zero + zero + (1 << 30).to_bytes(4, "big")
    data = (tmp_path / "a.mp4").read_bytes()
    track = data.index(b"tkhd")
    assert data.count(identity, track) == 1
    (tmp_path / "a.mp4").write_bytes(data[:track] + data[track:].replace(identity, clockwise))
    frames = read_video(tmp_path / "a.mp4").frames
    assert frames.shape == (2, 64, 32, 3)
    assert frames[:, :30].mean() > 150 and frames[:, 34:].mean() < 50  # the left edge is now on top


@pytest.mark.parametrize(("height", "width"), [(31, 33), (1, 1), (32, 17)])
def test_odd_sizes_are_padded_with_the_edge(tmp_path: Path, height: int, width: int) -> None:
    save_video(np.full((2, height, width, 3), 180, dtype=np.uint8), tmp_path / "a.mp4", 6)
    frames = read_video(tmp_path / "a.mp4").frames
    assert frames.shape == (2, height + height % 2, width + width % 2, 3)
    assert np.abs(frames.astype(int) - 180).max() <= 3


def test_scale_makes_squares(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (1, 4, 5, 3), dtype=np.uint8)
    save_video(pixels, tmp_path / "a.png", 6, scale=3)
    np.testing.assert_array_equal(np.array(Image.open(tmp_path / "a.png")), pixels[0].repeat(3, 0).repeat(3, 1))


def test_png_strip_and_gif(tmp_path: Path) -> None:
    pixels = _numbered(5, 8, 8)
    save_video(pixels, tmp_path / "a.png", 6)
    np.testing.assert_array_equal(
        np.array(Image.open(tmp_path / "a.png")), np.concatenate(list(pixels[..., 0]), axis=1)
    )
    save_video(pixels, tmp_path / "a.GIF", 10)
    with Image.open(tmp_path / "a.GIF") as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (5, 100, 0)
    assert _numbers(read_video(tmp_path / "a.GIF").frames) == list(range(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "a.webm"}, "must be one of .mp4, .gif, .png, not '.webm'"),
        ({"path": "a"}, "must be one of"),
        ({"frames": np.zeros((2, 8, 8, 3))}, "frames must be uint8"),
        ({"frames": np.zeros((2, 8, 8), dtype=np.uint8)}, "frames must be uint8"),
        ({"frames": np.zeros((0, 8, 8, 3), dtype=np.uint8)}, "at least one frame"),
        ({"frames": np.zeros((2, 8, 8, 2), dtype=np.uint8)}, "1 or 3"),
        ({"fps": 0}, "fps must be"),
        ({"fps": float("nan")}, "fps must be"),
        ({"scale": 0}, "scale must be"),
        ({"scale": 1.5}, "scale must be"),
    ],
)
def test_save_refuses(tmp_path: Path, change: dict, message: str) -> None:
    call = {"frames": np.zeros((2, 8, 8, 3), dtype=np.uint8), "path": "a.mp4", "fps": 6} | change
    call["path"] = tmp_path / call["path"]
    with pytest.raises(ValueError, match=message):
        save_video(**call)
    assert os.listdir(tmp_path) == []


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"a\.mp4"):
        save_video(_numbered(2), tmp_path / "none" / "a.mp4", 6)


@pytest.mark.parametrize("suffix", [".mp4", ".gif", ".png"])
def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, suffix: str) -> None:
    """The limit on file size makes write() fail midway, as a full disk does; in a process of its own."""
    target = tmp_path / f"a{suffix}"
    target.write_bytes(b"old")
    code = (
        "import resource, signal, sys, numpy as np\n"
        "from lumos_engine.io.video import save_video\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))\n"
        "frames = np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), dtype=np.uint8)\n"
        "try:\n    save_video(frames, sys.argv[1], 6)\n"
        "except OSError as error:\n    print(type(error).__name__, error.errno)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(target)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["OSError", str(errno.EFBIG)], done
    assert os.listdir(tmp_path) == [target.name] and target.read_bytes() == b"old"


def _write_audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def test_unusable_files_are_named(tmp_path: Path, clip: Path) -> None:
    data = clip.read_bytes()
    _write_audio_only(tmp_path / "audio.mp4")
    cases = {
        "empty.mp4": b"",
        "text.mp4": b"not a video" * 50,
        "head.mp4": data[:200],
        "half.mp4": data[: len(data) * 2 // 3],
    }
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
    for name, reason in {**dict.fromkeys(cases, ""), "audio.mp4": "no video stream"}.items():
        with pytest.raises(MediaError, match=f"{name}.*{reason}"):
            read_video(tmp_path / name)
    with pytest.raises(MediaError, match="declares 48x32 pixels, at most 1000"):
        read_video(clip, max_pixels=1000)
    with pytest.raises(MediaError, match="holds no frame after 5 s"):
        read_video(clip, start=5)
    with pytest.raises(FileNotFoundError, match=r"none\.mp4"):
        read_video(tmp_path / "none.mp4")
    with pytest.raises(MediaError, match="not a regular file"):
        read_video(tmp_path)


def test_a_file_that_ends_before_its_declared_duration_is_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off between two packets, every packet that is there decodes; only the declared duration tells."""
    save_video(_numbered(12), tmp_path / "a.mp4", 24)
    read_video(tmp_path / "a.mp4")
    honest = video_module.VideoInfo
    monkeypatch.setattr(video_module, "VideoInfo", lambda height, width, fps, _: honest(height, width, fps, 1.0))
    with pytest.raises(MediaError, match=r"truncated: it declares 1\.00 s and ends at 0\.5"):
        read_video(tmp_path / "a.mp4")
    assert len(read_video(tmp_path / "a.mp4", max_frames=5).frames) == 5  # what is asked for is there


def test_playlists_reach_no_network(tmp_path: Path) -> None:
    (tmp_path / "list.m3u8").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nhttp://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n"
    )
    with pytest.raises(MediaError, match=r"list\.m3u8"):
        read_video(tmp_path / "list.m3u8")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"fps": 0}, "fps"), ({"fps": float("inf")}, "fps"), ({"max_frames": 0}, "max_frames"), ({"start": -1}, "start")],
)
def test_read_refuses(clip: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_video(clip, **options)
