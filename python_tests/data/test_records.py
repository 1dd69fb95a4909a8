"""Records of the original as samples: against what its own data pipeline made of one of them."""

from __future__ import annotations

import pickle  # only to write what our own reader is given; nothing here unpickles
from pathlib import Path

import numpy as np
import pytest

from lumos_engine.data.records import read_recorded_clip
from lumos_engine.io.records import RecordError
from lumos_engine.layout import Vocabulary
from lumos_engine.train.ar_df import Sample, corrupt_with
from lumos_engine.tubes import TubePattern

VOCABULARY = Vocabulary()
PROMPT = [0, 22807, 16604, 65539, 32559, 16604, 65540, 24643, 16409, 16582]  # the constant part, shortened
CAPTION = [17000, 17001, 17002]


def frame(height: int, width: int, first_code: int) -> list[int]:
    """Ids of a frame of ``height`` x ``width`` codes that count up from ``first_code``."""
    ids = VOCABULARY.frame_header(height, width)
    for row in range(height):
        ids += [VOCABULARY.visual(first_code + row * width + column) for column in range(width)] + [VOCABULARY.newline]
    return [*ids, VOCABULARY.image_end]


def record_ids(num_frames: int = 3, fps: int = 12, caption: list[int] = CAPTION) -> list[int]:
    frames = [token for k in range(num_frames) for token in frame(4, 8, 100 * k)]
    return [
        *PROMPT,
        *caption,
        VOCABULARY.sep,
        *VOCABULARY.video_header(7, fps),
        *frames,
        VOCABULARY.video_end,
        VOCABULARY.sep,
    ]


def write(folder: Path, ids: list[int], **more: object) -> Path:
    path = folder / "0.pkl"
    value = {"token": ids, "label": [-100] * len(ids), "id": 5, **more}
    path.write_bytes(pickle.dumps(value))
    return path


def test_a_record_becomes_a_sample(tmp_path: Path) -> None:
    clip = read_recorded_clip(write(tmp_path, record_ids()), latent_frames=2)
    assert clip.codes.tolist() == [
        [[100 * k + 8 * row + column for column in range(8)] for row in range(4)] for k in range(2)
    ]
    assert (clip.duration, clip.fps, clip.record_id, clip.caption) == (1, 12, 5, CAPTION)
    digits = [16400, 16401]  # 12 frames at 12 frames per second
    assert clip.text == [0, 22807, 16604, *digits, 32559, 16604, *digits, 24643, 16409, 16582, *CAPTION, VOCABULARY.sep]
    assert read_recorded_clip(tmp_path / "0.pkl").codes.shape == (3, 4, 8)
    image = read_recorded_clip(write(tmp_path, record_ids(1, fps=1)))
    assert (image.duration, image.fps, image.text.count(16400)) == (1, 1, 2)


def test_as_the_original_prepares_its_record(golden_dir: Path, tmp_path: Path) -> None:
    golden = np.load(golden_dir / "datapipe_test_video_0.npz")
    ids = golden["ids"].tolist()
    begin = ids.index(VOCABULARY.video_start)
    text = ids[:begin]
    for digits, placeholder in (([16401, 16403], 65539), ([16400, 16401], 65540)):
        place = next(i for i in range(begin) if text[i : i + 4] == [16604, *digits, 32559])
        text[place + 1 : place + 3] = [placeholder]
    frame_tokens = 48 * 85 + 4
    frames = ids[begin + 3 : -2]
    recorded = [*text, *VOCABULARY.video_header(7, 12), *frames, *frames[:frame_tokens] * 15, *ids[-2:]]
    assert len(recorded) == int(golden["raw_len"][0])
    clip = read_recorded_clip(write(tmp_path, recorded), latent_frames=7)
    sample = Sample(clip.text, VOCABULARY.video_header(clip.duration, clip.fps), clip.codes)
    nothing = TubePattern.history(48 * 85, 0.0, 7)
    assert corrupt_with(sample, VOCABULARY, nothing).tokens.tolist() == ids


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, 2], "a dict with a list 'token'"),
        ({"token": 3}, "a dict with a list 'token'"),
        ({"token": []}, "list of ids"),
        ({"token": [1, "a"]}, "list of ids"),
        ({"token": [-1]}, "list of ids"),
        ({"token": [2**31]}, "list of ids"),
        ({"token": [0], "label": [1, 2]}, "'label' must be a list as long"),
        ({"token": [0], "id": "a"}, "'id' must be an int"),
        ({"token": [0, 1, 2]}, "text and frames of one size"),
        ({"token": frame(4, 4, 0)}, "text and frames of one size"),
        ({"token": [0, *frame(4, 4, 0)]}, "before the frames"),
        ({"token": record_ids()[:-20]}, "cut short"),
        ({"token": [*record_ids()[:-2], *frame(4, 4, 0), 9005, 8710]}, "frames of one size"),
        (
            {"token": [9003 if token == VOCABULARY.visual(101) else token for token in record_ids()]},
            "holds the mask id",
        ),
        ({"token": [0 if token == 16582 else token for token in record_ids()]}, "no caption begins"),
        ({"token": [16 if token == 8816 else token for token in record_ids()]}, "rate of the video header"),
    ],
)
def test_other_records_are_refused(tmp_path: Path, value: object, message: str) -> None:
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(value))
    with pytest.raises(RecordError, match=rf"bad\.pkl: .*{message}") as caught:
        read_recorded_clip(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("count", [0, 4])
def test_frames_asked_for_must_be_there(tmp_path: Path, count: int) -> None:
    with pytest.raises(ValueError, match=r"latent_frames must be within 1\.\.3"):
        read_recorded_clip(write(tmp_path, record_ids()), latent_frames=count)
