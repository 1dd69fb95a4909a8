"""Folders of media: captions, windows, buckets, and unusable files that are named and counted, never replaced."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

from lumos_engine.data import FolderDataset, MovingDigits, epoch_order, iterate_epoch, open_dataset
from lumos_engine.io.image import MediaError
from lumos_engine.io.video import save_video


def _video(path: Path, num_frames: int = 24, fps: float = 12.0, height: int = 36, width: int = 64) -> None:
    """Frame k is flat grey 8k+4."""
    path.parent.mkdir(exist_ok=True)
    values = (8 * np.arange(num_frames) + 4).astype(np.uint8)
    save_video(np.broadcast_to(values[:, None, None, None], (num_frames, height, width, 1)), path, fps)


def _numbers(frames: np.ndarray) -> list[int]:
    return [int(value) for value in np.floor(frames.mean(axis=(1, 2, 3)) / 8)]


def _captions(folder: Path, *rows: object) -> None:
    (folder / "captions.jsonl").write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    _video(tmp_path / "b.mp4")
    _video(tmp_path / "sub" / "c.mp4", height=64, width=36)
    save_video(np.full((1, 50, 40, 3), 99, dtype=np.uint8), tmp_path / "a.png", 1)
    (tmp_path / "a.txt").write_text("  an image,\n grey ")
    (tmp_path / "b.txt").write_text("a video")
    return tmp_path


def test_texts_beside_the_files(folder: Path) -> None:
    data = FolderDataset(folder, num_frames=5)
    assert [(data.sample(i).caption, data.sample(i).frames.shape, data.sample(i).fps) for i in range(len(data))] == [
        ("an image, grey", (1, 384, 320, 3), 1.0),
        ("a video", (5, 256, 448, 3), 12.0),
    ]
    assert [(file.path, file.reason) for file in data.skipped] == [("sub/c.mp4", "no caption")]


def test_optional_captions_and_fixed_size(folder: Path) -> None:
    data = FolderDataset(folder, num_frames=5, captions="optional", size=(16, 24))
    assert [data.sample(i).caption for i in range(3)] == ["an image, grey", "a video", ""]
    assert {data.sample(i).frames.shape[1:] for i in range(3)} == {(16, 24, 3)} and data.skipped == []


@pytest.mark.parametrize(
    ("num_frames", "fps", "expected"),
    [
        (5, 12, [9, 10, 11, 12, 13]),
        (9, 6, [3, 5, 7, 9, 11, 13, 15, 17, 19]),
        (1, 12, [11]),
        (21, 12, list(range(1, 22))),
    ],
)
def test_the_clip_is_the_middle(folder: Path, num_frames: int, fps: float, expected: list[int]) -> None:
    clip = FolderDataset(folder, num_frames=num_frames, fps=fps, size=(32, 32)).sample(1)
    assert _numbers(clip.frames) == expected
    assert clip.fps == (fps if num_frames > 1 else 1.0)


def test_the_whole_video_fits_exactly(tmp_path: Path) -> None:
    _video(tmp_path / "a.mp4", num_frames=25)
    data = FolderDataset(tmp_path, num_frames=25, captions="optional", size=(32, 32))
    assert _numbers(data.sample(0).frames) == list(range(25))
    with pytest.raises(ValueError, match=r"a.mp4: 2.08 s are shorter than 29 frames at 12 fps"):
        FolderDataset(tmp_path, num_frames=29, captions="optional")


def test_captions_file_decides_what_is_used(folder: Path) -> None:
    _captions(
        folder,
        {"path": "sub/c.mp4", "caption": "tall", "note": "ignored"},
        "",
        {"path": "b.mp4", "caption": None},
        {"path": "a.png", "caption": "  "},
        {"path": "none.mp4", "caption": "lost"},
    )
    data = FolderDataset(folder, num_frames=5)
    assert len(data) == 1 and data.sample(0).caption == "tall" and data.sample(0).frames.shape == (5, 448, 256, 3)
    assert [file.path for file in data.skipped] == ["b.mp4", "a.png", "none.mp4"]
    assert [file.reason for file in data.skipped][:2] == ["no caption"] * 2 and "no such file" in data.skipped[2].reason


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "line 2 is not JSON"),
        ("[" * 100_000, "line 2 is not JSON"),
        ('{"path": 1' + "0" * 5000 + "}", "line 2 is not JSON"),
        ("[1]", "line 2 must be an object"),
        ('{"caption": "x"}', "line 2 must be an object"),
        ('{"path": "b.mp4", "caption": 3}', "line 2 must be an object"),
        ('{"path": "../b.mp4", "caption": "x"}', "line 2: path '../b.mp4' leaves the folder"),
        ('{"path": "/b.mp4", "caption": "x"}', "leaves the folder"),
    ],
)
def test_a_malformed_captions_file_names_the_line(folder: Path, row: str, message: str) -> None:
    _captions(folder, {"path": "b.mp4", "caption": "x"}, row)
    with pytest.raises(ValueError, match=message):
        FolderDataset(folder)


def test_unreadable_files_are_named_counted_and_not_replaced(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = (folder / "b.mp4").read_bytes()
    (folder / "cut.mp4").write_bytes(data[:200])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "bad.png").write_bytes(b"not an image")  # found when it is decoded
    with caplog.at_level(logging.WARNING, logger="lumos_engine.data"):
        dataset = FolderDataset(folder, num_frames=5, captions="optional", size=(32, 32))
    assert len(dataset) == 4
    assert sorted(file.path for file in dataset.skipped) == ["cut.mp4", "empty.mp4"]
    for _ in range(2):
        clips = list(iterate_epoch(dataset, seed=0, epoch=0))
        assert len(clips) == 3 and len({position for position, _ in clips}) == 3
        assert sorted(file.path for file in dataset.skipped) == ["bad.png", "cut.mp4", "empty.mp4"]
    for name in ("bad.png", "cut.mp4", "empty.mp4"):
        assert sum(name in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(MediaError, match=r"bad\.png"):
        dataset.sample(2)


def test_nothing_usable(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no usable video or image"):
        FolderDataset(tmp_path)
    (tmp_path / "bad.png").write_bytes(b"not an image")
    with pytest.raises(MediaError, match=r"not one of 1 clips could be decoded; the last: .*bad\.png"):
        list(iterate_epoch(FolderDataset(tmp_path, captions="optional"), 0, 0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 24}, r"1 \+ 4 n, not 24; the nearest are 21 and 25"),
        ({"num_frames": 0}, "the nearest are 1 and 5"),
        ({"fps": 0}, "fps must be"),
        ({"captions": "some"}, "captions is"),
        ({"size": (0, 5)}, "size must be"),
        ({"target_size": 5}, "target_size must be"),
    ],
)
def test_bad_options(folder: Path, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FolderDataset(folder, **options)


def test_index_outside_and_missing_folder(folder: Path) -> None:
    with pytest.raises(IndexError, match=r"within 0\.\.1, not 2"):
        FolderDataset(folder, num_frames=5).sample(2)
    with pytest.raises(NotADirectoryError, match="nowhere"):
        FolderDataset(folder / "nowhere")


def test_open_dataset(folder: Path) -> None:
    assert isinstance(open_dataset("moving-digits", split="test"), MovingDigits)
    assert isinstance(open_dataset("moving_digits"), MovingDigits)
    assert isinstance(open_dataset(folder, num_frames=5), FolderDataset)
    with pytest.raises(ValueError, match="neither 'moving-digits' nor a folder"):
        open_dataset("moving-digit")
    with pytest.raises(ValueError, match="no option 'num_frame'; did you mean 'num_frames'"):
        open_dataset(folder, num_frame=5)
    with pytest.raises(ValueError, match="no option 'folder'"):
        open_dataset(folder, folder="x")


def test_epochs_are_permutations_that_resume_by_position() -> None:
    orders = [tuple(epoch_order(50, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4 and all(sorted(order) == list(range(50)) for order in orders)
    data = MovingDigits(num_clips=20)
    whole = [(position, clip.caption) for position, clip in iterate_epoch(data, 3, 1)]
    rest = [(position, clip.caption) for position, clip in iterate_epoch(data, 3, 1, begin=12)]
    assert whole[12:] == rest and [position for position, _ in whole] == list(range(20))
