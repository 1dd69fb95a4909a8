"""Samples as the original's data pipeline prepares them from its records."""

from __future__ import annotations

import pickle  # only to write what our own reader is given; nothing here unpickles
from pathlib import Path

import torch

from lumos_engine import SequenceLayout
from lumos_engine.data.records import read_recorded_clip
from lumos_engine.layout import Frame, Text
from lumos_engine.tokenizers.prompt import clip_duration
from lumos_engine.train.ar_df import IGNORED, Sample, corrupt_with
from lumos_engine.tubes import TubePattern

from .files import GoldenFile

FILES = r"datapipe_.*\.npz"
DIGIT_ZERO, SPACE, FRAMES_WORD, FPS_WORD = 16399, 16604, 32559, 16972  # " ", "frames", "per" in the prompt
FRAMES_PLACEHOLDER, FPS_PLACEHOLDER = 65539, 65540


class Prepared:
    """Parts of the ids: text ``bos .. sep``, header, codes [frames, height, width]."""

    def __init__(self, golden: GoldenFile) -> None:
        arrays, self.vocabulary = golden.arrays(), golden.vocabulary
        self.ids, self.labels = arrays["ids"].long(), arrays["labels"].long()
        self.raw_length = int(arrays["raw_len"])
        self.begin = int((self.ids == self.vocabulary.video_start).nonzero()[0])
        self.text, self.header = self.ids[: self.begin].tolist(), self.ids[self.begin : self.begin + 3].tolist()
        self.fps = self.header[2] - self.vocabulary.size_zero
        layout = SequenceLayout.from_tokens(self.ids, self.vocabulary)
        frames = layout.sequences[0][1:-1]
        self.frame = frames[0]
        assert isinstance(self.frame, Frame)
        assert layout.sequences[0] == (Text(self.begin + 3), *[self.frame] * len(frames), Text(2))
        codes = self.ids[layout.content & ~layout.newline] - self.vocabulary.visual_begin
        self.codes = codes.view(len(frames), self.frame.height, self.frame.width)
        self.num_frames = 1 + self.vocabulary.strides[0] * (len(frames) - 1)


def digits(number: int) -> list[int]:
    return [DIGIT_ZERO + int(digit) for digit in str(number)]


def with_placeholders(text: list[int], duration: int, fps: int) -> list[int]:
    """The text of the record: one id each in the places of frame count and rate."""
    for number, word, placeholder in (
        (duration * fps, [FRAMES_WORD, 16767], FRAMES_PLACEHOLDER),
        (fps, [FRAMES_WORD, FPS_WORD], FPS_PLACEHOLDER),
    ):
        wanted = [SPACE, *digits(number), *word]
        place = next(i for i in range(len(text)) if text[i : i + len(wanted)] == wanted)
        text = [*text[: place + 1], placeholder, *text[place + len(wanted) - len(word) :]]
    return text


def test_our_sample_has_the_same_ids(golden: GoldenFile) -> None:
    prepared = Prepared(golden)
    vocabulary, codes = prepared.vocabulary, prepared.codes
    assert prepared.header == vocabulary.video_header(*clip_duration(prepared.num_frames, prepared.fps))
    sample = Sample(prepared.text, prepared.header, codes)
    nothing = TubePattern.history(prepared.frame.content_tokens, 0.0, len(codes))
    assert torch.equal(corrupt_with(sample, vocabulary, nothing).tokens, prepared.ids)


def test_labels_are_the_ids_of_the_video(golden: GoldenFile) -> None:
    prepared = Prepared(golden)
    assert bool((prepared.labels[: prepared.begin] == IGNORED).all())
    assert torch.equal(prepared.labels[prepared.begin :], prepared.ids[prepared.begin :])


def test_our_reading_of_the_record(golden: GoldenFile, tmp_path: Path) -> None:
    """The record, put together again from what is left of it, gives the sample; frames that were cut off are made up."""
    prepared = Prepared(golden)
    vocabulary, frame_tokens = prepared.vocabulary, prepared.frame.num_tokens
    duration, fps = clip_duration(prepared.num_frames, prepared.fps)
    text = with_placeholders(prepared.text, duration, fps)
    num_recorded, rest = divmod(prepared.raw_length - len(text) - 5, frame_tokens)
    assert rest == 0 and num_recorded >= len(prepared.codes)
    header = vocabulary.video_header(*clip_duration(1 + vocabulary.strides[0] * (num_recorded - 1), prepared.fps))
    frames = prepared.ids[prepared.begin + 3 : -2].tolist()
    frames += frames[:frame_tokens] * (num_recorded - len(prepared.codes))
    ids = [*text, *header, *frames, vocabulary.video_end, vocabulary.sep]
    assert len(ids) == prepared.raw_length
    (tmp_path / "0.pkl").write_bytes(pickle.dumps({"token": ids, "label": [*ids], "id": 0}))
    clip = read_recorded_clip(tmp_path / "0.pkl", latent_frames=len(prepared.codes))
    assert clip.text == prepared.text
    assert vocabulary.video_header(clip.duration, clip.fps) == prepared.header
    assert torch.equal(clip.codes, prepared.codes)
