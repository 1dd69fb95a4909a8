"""Scores as a function of clips and captions: true clips reach all, spoiled ones lose what was spoiled."""

from __future__ import annotations

import numpy as np
import pytest

from lumos_engine.data import MovingDigits
from lumos_engine.data.motion import STILL, make_caption, parse_caption
from lumos_engine.evals.scoring import METRICS, score_clips, summarize


def _shares(clips: np.ndarray, captions: list[str]) -> dict[str, float]:
    return {metric: found["share"] for metric, found in summarize(score_clips(clips, captions)).items()}


@pytest.fixture(scope="module", params=[1, 2])
def batch(request: pytest.FixtureRequest) -> object:
    return MovingDigits("test", seed=21, pairs="all", num_objects=request.param).batch(range(100))


def test_true_clips_reach_all(batch: object) -> None:
    shares = _shares(batch.frames, batch.captions)
    assert shares["direction_accuracy"] == shares["speed_accuracy"] == shares["count_accuracy"] == 1.0
    assert shares["digit_accuracy"] >= 0.98 and shares["identity_accuracy"] >= 0.96 and shares["clip_accuracy"] >= 0.96


def test_rgb_equals_grey_and_the_order_of_objects_does_not_matter(batch: object) -> None:
    reversed_captions = [make_caption(parse_caption(caption)[::-1]) for caption in batch.captions]
    rgb = np.repeat(batch.frames, 3, axis=-1)
    assert _shares(rgb, reversed_captions) == _shares(batch.frames, batch.captions)


def test_reversed_time_loses_direction_only(batch: object) -> None:
    moving = [i for i in range(100) if all(motion is not STILL for _, motion in parse_caption(batch.captions[i]))]
    shares = _shares(batch.frames[moving, ::-1], [batch.captions[i] for i in moving])
    assert shares["direction_accuracy"] <= 0.15  # a swap of two objects may pass for a direction
    assert shares["identity_accuracy"] >= 0.9


def test_frozen_clips_lose_motion(batch: object) -> None:
    frozen = np.broadcast_to(batch.frames[:, :1], batch.frames.shape)
    shares = _shares(frozen, batch.captions)
    still = np.mean([motion is STILL for caption in batch.captions for _, motion in parse_caption(caption)])
    assert shares["direction_accuracy"] == pytest.approx(still)
    assert shares["identity_accuracy"] >= 0.96


def test_half_speed_keeps_direction_and_loses_speed() -> None:
    world = MovingDigits("test", seed=5, num_objects=1).batch(range(200))
    fast = [
        i
        for i in range(200)
        if max(abs(parse_caption(world.captions[i])[0][1].dy), abs(parse_caption(world.captions[i])[0][1].dx)) == 1
    ]
    slowed = world.frames[fast][:, np.arange(13) // 2]
    shares = _shares(slowed, [world.captions[i] for i in fast])
    assert shares["direction_accuracy"] == 1.0 and shares["speed_accuracy"] == 0.0


def test_a_digit_that_changes_loses_identity() -> None:
    world = MovingDigits("test", seed=6, num_objects=1, num_clips=3000, pairs="all")
    clips = world.batch(range(3000))
    first = clips.captions.index("a 3 standing still")
    sevens = [i for i in range(3000) if clips.captions[i] == "a 7 standing still"]
    start = clips.positions[:, 0, 0]
    other = next(i for i in sevens if (start[i] == start[first]).all())
    for frames_of_other, expected in ((1, True), (2, False), (6, False)):
        mixed = clips.frames[first].copy()
        mixed[13 - frames_of_other :] = clips.frames[other, 13 - frames_of_other :]
        (score,) = score_clips([mixed], ["a 3 standing still"])
        assert score.digit_accuracy == 1 and score.identity_accuracy is expected  # 12 of 13 frames are 92 %
    assert list(score.readings[0].digits) == [3] * 7 + [7] * 6


def test_empty_and_crowded_clips() -> None:
    black = np.zeros((13, 32, 32, 1), dtype=np.uint8)
    (score,) = score_clips([black], ["a 3 moving left and a 4 standing still"])
    assert (score.digit_accuracy, score.direction_accuracy, score.identity_accuracy, score.count_accuracy) == (
        0,
        0,
        False,
        False,
    )
    two = MovingDigits("test", num_objects=2).clip(0)
    (score,) = score_clips([two.frames], [make_caption([(two.objects[0].digit, two.objects[0].motion)])])
    assert score.count_accuracy is False


def test_summary_counts_objects_and_clips() -> None:
    clips = MovingDigits("test", num_objects=2).batch(range(5))
    summary = summarize(score_clips(clips.frames, clips.captions))
    assert list(summary) == list(METRICS)
    assert summary["digit_accuracy"]["trials"] == 10 and summary["identity_accuracy"]["trials"] == 5
    assert summary["direction_accuracy"]["low"] < 1.0 and summary["direction_accuracy"]["high"] == 1.0
    assert summarize([])["digit_accuracy"] == {"share": None, "low": 0.0, "high": 1.0, "successes": 0, "trials": 0}


@pytest.mark.parametrize(
    ("clips", "captions", "message"),
    [
        (np.zeros((2, 13, 32, 32, 1), np.uint8), ["a 3 standing still"], "one caption for each clip, not 1 for 2"),
        (np.zeros((1, 13, 32, 32, 1), np.uint8), ["a cat"], "is not of the form"),
        (np.zeros((1, 13, 32, 32, 1)), ["a 3 standing still"], "a clip must be uint8"),
        (np.zeros((1, 1, 32, 32, 1), np.uint8), ["a 3 standing still"], "T >= 2"),
        (np.zeros((1, 13, 32, 32), np.uint8), ["a 3 standing still"], "a clip must be uint8"),
    ],
)
def test_refusals(clips: np.ndarray, captions: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        score_clips(clips, captions)
