"""What clips show against what their captions state: a pure function of both."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np

from ..data.motion import Motion, parse_caption
from .classifier import DigitClassifier, load_classifier
from .tracker import find_blobs, read_motion, track_objects
from .wilson import wilson_interval

__all__ = ["METRICS", "ClipScore", "score_clips", "summarize"]

IDENTITY_SHARE = 0.9
"""Share of the frames on which the right digit must be read for its identity to count as kept."""

METRICS = {
    "digit_accuracy": "objects whose digit, by majority over the frames, is the stated one",
    "direction_accuracy": "objects that move in the stated direction, or stand still as stated",
    "speed_accuracy": "objects of which direction and speed are as stated",
    "identity_accuracy": "clips in which every object is read as the stated digit on at least 90 % of the frames",
    "count_accuracy": "clips that show the stated number of objects on at least 90 % of the frames",
    "clip_accuracy": "clips in which digit and direction of every object are right",
}
"""Each metric and what its share counts. Shares of objects take the objects of a clip as independent trials."""
_OF_OBJECTS = ("digit_accuracy", "direction_accuracy", "speed_accuracy")


@dataclass(frozen=True)
class ObjectReading:
    """What was read of one object: the digit on each frame (int64 [T], -1 where none was seen) and the motion."""

    digits: np.ndarray
    motion: Motion | None

    @property
    def vote(self) -> int:
        """The digit read most often, -1 when none was."""
        seen = self.digits[self.digits >= 0]
        return int(np.bincount(seen).argmax()) if len(seen) else -1


@dataclass(frozen=True)
class ClipScore:
    """One clip. The first three count objects, of ``num_objects`` stated; the readings are in the order of the
    caption.
    """

    num_objects: int
    digit_accuracy: int
    direction_accuracy: int
    speed_accuracy: int
    identity_accuracy: bool
    count_accuracy: bool
    readings: tuple[ObjectReading, ...]

    @property
    def clip_accuracy(self) -> bool:
        return self.digit_accuracy == self.direction_accuracy == self.num_objects


def score_clips(
    clips: Sequence[np.ndarray] | np.ndarray, captions: Sequence[str], classifier: DigitClassifier | None = None
) -> list[ClipScore]:
    """Read every clip and compare it with its caption.

    Args:
        clips: uint8 [N, T, H, W, 1 or 3], or a list of clips of any lengths; T at least 2.
        captions: N captions of :func:`~lumos_engine.data.motion.make_caption`.
        classifier: None loads the shipped one.

    Raises:
        ValueError: not as many clips as captions, a clip of another form, or a caption that states no digits.
    """
    if len(clips) != len(captions):
        raise ValueError(f"there must be one caption for each clip, not {len(captions)} for {len(clips)}")
    stated = [parse_caption(caption) for caption in captions]
    tracked, counts, crops = [], [], []
    for clip, objects in zip(clips, stated, strict=True):
        blobs = [find_blobs(frame) for frame in _grey(clip)]
        tracks = track_objects(blobs, len(objects))
        tracked.append(tracks)
        counts.append(np.mean([len(found) == len(objects) for found in blobs]) >= IDENTITY_SHARE)
        crops += [blob.crop for track in tracks for blob in track.blobs if blob]
    read = iter((classifier or load_classifier()).read(crops).tolist())
    scores = []
    for tracks, objects, count in zip(tracked, stated, counts, strict=True):
        readings = [
            ObjectReading(np.array([next(read) if blob else -1 for blob in track.blobs]), read_motion(track.centres))
            for track in tracks
        ]
        scores.append(_best_assignment(readings, objects, bool(count)))
    return scores


def summarize(scores: Iterable[ClipScore]) -> dict[str, dict[str, Any]]:
    """Each metric of :data:`METRICS` as {"share", "low", "high", "successes", "trials"}: share with its 95 % Wilson
    interval.
    """
    rows = list(scores)
    summary = {}
    for metric in METRICS:
        successes = sum(int(getattr(score, metric)) for score in rows)
        trials = sum(score.num_objects if metric in _OF_OBJECTS else 1 for score in rows)
        low, high = wilson_interval(successes, trials)
        share = successes / trials if trials else None
        summary[metric] = {"share": share, "low": low, "high": high, "successes": successes, "trials": trials}
    return summary


def _grey(clip: np.ndarray) -> np.ndarray:
    """float32 [T, H, W] in [0, 1]."""
    frames = np.asarray(clip)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[0] < 2 or frames.shape[3] not in (1, 3):
        raise ValueError(f"a clip must be uint8 [T >= 2, H, W, 1 or 3], not {frames.dtype} {list(frames.shape)}")
    return frames.astype(np.float32).mean(axis=-1) / 255


def _best_assignment(readings: list[ObjectReading], objects: list[tuple[int, Motion]], count: bool) -> ClipScore:
    """The clip does not tell which blob is which object: of all assignments the one that agrees best with the
    caption counts.
    """

    def score(order: tuple[int, ...]) -> ClipScore:
        pairs = [(readings[i], digit, motion) for i, (digit, motion) in zip(order, objects, strict=True)]
        return ClipScore(
            num_objects=len(objects),
            digit_accuracy=sum(reading.vote == digit for reading, digit, _ in pairs),
            direction_accuracy=sum(
                reading.motion is not None and reading.motion.direction == motion.direction
                for reading, _, motion in pairs
            ),
            speed_accuracy=sum(reading.motion == motion for reading, _, motion in pairs),
            identity_accuracy=all((reading.digits == digit).mean() >= IDENTITY_SHARE for reading, digit, _ in pairs),
            count_accuracy=count,
            readings=tuple(reading for reading, _, _ in pairs),
        )

    def agreement(score: ClipScore) -> tuple[int, int, int]:
        frames = sum(
            int((reading.digits == digit).sum()) for reading, (digit, _) in zip(score.readings, objects, strict=True)
        )
        return score.digit_accuracy + score.direction_accuracy, frames, score.speed_accuracy

    return max(map(score, permutations(range(len(objects)))), key=agreement)
