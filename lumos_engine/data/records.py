"""The original's pre-tokenised clips: one record a clip, ``{"token": [...], "label": [...], "id": n}``.

``token`` is ``bos text sep video_start duration fps frames video_end sep`` in the ids of the released models. The text is the prompt in
whose place of frame count and rate two placeholders stand, because both are known only when a part of the clip is chosen. ``label`` follows
from it (nothing before video_start is predicted) and is not used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..io.records import RecordError, read_record_file
from ..layout import Frame, Vocabulary
from ..layout.parse import parse_tokens
from ..tokenizers.prompt import clip_duration

__all__ = ["RecordedClip", "read_recorded_clip"]

_FRAMES, _FPS = 65539, 65540  # placeholders; of the text tokenizer, hence they collide with visual ids
_DIGIT_ZERO = 16399
_PROMPT_END = [16409, 16582]  # colon and line end, behind which the caption begins
_MAX_ID = 2**31 - 1


@dataclass(frozen=True)
class RecordedClip:
    """The leading frames of a recorded clip.

    text: ids ``bos .. sep`` with frame count and rate filled in. caption: ids of the caption alone, a part of them.
    duration (seconds), fps: of the video header. codes: int64 [frames, height, width], 0..visual_size-1. record_id: of the record.
    """

    text: list[int]
    caption: list[int]
    duration: int
    fps: int
    codes: Tensor
    record_id: int


def read_recorded_clip(
    path: str | os.PathLike[str], vocabulary: Vocabulary | None = None, latent_frames: int | None = None
) -> RecordedClip:
    """Read one record (with :func:`lumos_engine.io.records.read_record_file`, which runs nothing) and take its first ``latent_frames``.

    Args:
        vocabulary: of the tokens; by default that of the released models.
        latent_frames: how many to take, at most those of the record; None takes all.

    Raises:
        FileNotFoundError, OSError: the file cannot be read.
        RecordError: it is no record, or its tokens are not text and one video of frames of one size.
        ValueError: ``latent_frames`` is below 1 or above what the record holds.
    """
    vocabulary = vocabulary or Vocabulary()
    value = read_record_file(path)
    ids, record_id = _tokens(path, value)
    try:
        segments = parse_tokens(torch.tensor(ids), vocabulary)[0]
        frames = [segment for segment in segments if isinstance(segment, Frame)]
        if (
            not frames
            or len(set(frames)) != 1
            or segments[1 : 1 + len(frames)] != frames
            or len(segments) > len(frames) + 2
        ):
            raise ValueError("tokens: a record is text and frames of one size, side by side")
        lead = segments[0].num_tokens
        if ids[0] != vocabulary.bos or ids[lead - 4 : lead - 2] != [vocabulary.sep, vocabulary.video_start]:
            raise ValueError("tokens: before the frames a record holds bos, text, sep, video_start, duration, fps")
        codes = _codes(torch.tensor(ids[lead:]), frames, vocabulary)
    except ValueError as error:
        raise RecordError(f"{path}: {error}") from None
    count = len(frames) if latent_frames is None else latent_frames
    if not 1 <= count <= len(frames):
        raise ValueError(f"latent_frames must be within 1..{len(frames)}, the frames of {path}, got {count}")
    recorded_fps = ids[lead - 1] - vocabulary.size_zero
    if not vocabulary.is_number(ids[lead - 1]) or recorded_fps < 1:
        raise RecordError(f"{path}: the rate of the video header is id {ids[lead - 1]}, which is no number")
    duration, fps = clip_duration(1 + vocabulary.strides[0] * (count - 1), recorded_fps)
    text = _filled(ids[: lead - 3], {_FRAMES: duration * fps, _FPS: fps})
    return RecordedClip(text, _caption(path, text), duration, fps, codes[:count], record_id)


def _tokens(path: Any, value: Any) -> tuple[list[int], int]:
    if not isinstance(value, dict) or not isinstance(value.get("token"), list):
        raise RecordError(f"{path}: a record is a dict with a list 'token'")
    ids, labels, record_id = value["token"], value.get("label"), value.get("id", 0)
    if not ids or not all(type(token) is int and 0 <= token <= _MAX_ID for token in ids):
        raise RecordError(f"{path}: 'token' must be a list of ids in 0..{_MAX_ID}, at least one")
    if labels is not None and (not isinstance(labels, list) or len(labels) != len(ids)):
        raise RecordError(f"{path}: 'label' must be a list as long as 'token', {len(ids)}")
    if type(record_id) is not int:
        raise RecordError(f"{path}: 'id' must be an int")
    return ids, record_id


def _codes(ids: Tensor, frames: list[Frame], vocabulary: Vocabulary) -> Tensor:
    frame = frames[0]
    content = ids[: len(frames) * frame.num_tokens].view(len(frames), frame.num_tokens)[:, frame.header : -frame.footer]
    rows = content.view(len(frames), frame.height, frame.row_tokens)
    if (rows == vocabulary.mask).any():
        raise ValueError("tokens: a recorded frame holds the mask id")
    return rows[..., : frame.width] - vocabulary.visual_begin


def _filled(text: list[int], numbers: dict[int, int]) -> list[int]:
    return [token for word in text for token in (_digits(numbers[word]) if word in numbers else [word])]


def _digits(number: int) -> list[int]:
    return [_DIGIT_ZERO + int(digit) for digit in str(number)]


def _caption(path: Any, text: list[int]) -> list[int]:
    for place in range(len(text) - 1):
        if text[place : place + 2] == _PROMPT_END:
            return text[place + 2 : -1]
    raise RecordError(f"{path}: the text is not the prompt of a recorded clip: no caption begins in it")
