"""Blobs, tracks and motions read off frames."""

from __future__ import annotations

import numpy as np
import pytest

from lumos_engine.data import MovingDigits
from lumos_engine.data.motion import MOTIONS, STILL
from lumos_engine.evals.tracker import CROP_SIZE, find_blobs, read_motion, track_objects


def _frame(*boxes: tuple[int, int, int, int], value: float = 1.0) -> np.ndarray:
    frame = np.zeros((32, 32), dtype=np.float32)
    for top, left, height, width in boxes:
        frame[top : top + height, left : left + width] = value
    return frame


def test_blobs_heaviest_first_with_centre_and_crop() -> None:
    frame = _frame((2, 3, 4, 3), (20, 10, 6, 8))
    heavy, light = find_blobs(frame)
    assert (heavy.mass, heavy.centre) == (48.0, (22.5, 13.5))
    assert (light.mass, light.centre) == (12.0, (3.5, 4.0))
    assert heavy.crop.shape == (CROP_SIZE, CROP_SIZE) and heavy.crop.dtype == np.float32
    np.testing.assert_array_equal(np.argwhere(heavy.crop)[[0, -1]], [[5, 4], [10, 11]])  # in the middle, alone


@pytest.mark.parametrize(("gap", "count"), [(1, 1), (2, 1), (3, 2)])
def test_strokes_two_pixels_apart_are_one_blob(gap: int, count: int) -> None:
    assert len(find_blobs(_frame((5, 5, 6, 4), (5, 9 + gap, 6, 4)))) == count


def test_specks_and_haze_are_no_blobs() -> None:
    assert find_blobs(_frame((5, 5, 2, 2))) == []
    assert find_blobs(_frame((5, 5, 20, 20), value=0.2)) == []


@pytest.mark.parametrize("box", [(0, 0, 12, 12), (20, 20, 12, 12), (0, 0, 32, 32), (0, 10, 32, 3)])
def test_blobs_at_the_border_and_too_large_are_cut(box: tuple[int, int, int, int]) -> None:
    (blob,) = find_blobs(_frame(box))
    assert blob.crop.sum() == min(box[2], CROP_SIZE) * min(box[3], CROP_SIZE)


@pytest.mark.parametrize("num_objects", [1, 2])
def test_true_clips_are_tracked_and_their_motion_read(num_objects: int) -> None:
    world = MovingDigits("test", seed=1, pairs="all", num_objects=num_objects)
    for i in range(60):
        clip = world.clip(i)
        blobs = [find_blobs(frame) for frame in clip.frames[..., 0] / np.float32(255)]
        assert all(len(found) == num_objects for found in blobs)
        tracks = track_objects(blobs, num_objects)
        for item in clip.objects:
            middle = item.positions + 6
            track = min(tracks, key=lambda track: np.abs(track.centres - middle).max())
            assert (
                np.abs(track.centres - middle).max() < 3
            )  # the ink is not centred in its box, but stays where it is in it
            np.testing.assert_allclose(np.diff(track.centres, axis=0), np.diff(item.positions, axis=0), atol=0.05)
            assert read_motion(track.centres) == item.motion


def test_a_missing_object_leaves_a_gap_and_comes_back() -> None:
    frames = [_frame((10, 5 + t, 6, 6)) for t in range(8)]
    frames[3] = _frame()
    (track,) = track_objects([find_blobs(frame) for frame in frames], 1)
    assert [blob is not None for blob in track.blobs] == [True] * 3 + [False] + [True] * 4
    assert read_motion(track.centres).phrase == "moving right"


def test_a_stray_blob_far_away_is_not_the_object() -> None:
    frames = [_frame((10, 2 + t, 6, 6)) for t in range(8)]
    frames[4] = _frame((24, 24, 7, 7))
    (track,) = track_objects([find_blobs(frame) for frame in frames], 1)
    assert track.blobs[4] is None and sum(blob is not None for blob in track.blobs) == 7


@pytest.mark.parametrize("motion", MOTIONS, ids=lambda motion: motion.phrase)
def test_motions_are_read_through_noise_and_gaps(motion: object) -> None:
    centres = np.array([10.0, 10.0]) + np.arange(13)[:, None] * np.array([motion.dy, motion.dx])
    centres += np.random.default_rng(0).normal(0, 0.3, centres.shape)
    centres[[2, 3, 7]] = np.nan
    assert read_motion(centres) == motion


def test_too_little_to_tell() -> None:
    assert read_motion(np.full((13, 2), np.nan)) is None
    assert read_motion(np.zeros((1, 2))) is None
    half = np.full((12, 2), np.nan)
    half[:5] = 0
    assert read_motion(half) is None
    half[5] = 0
    assert read_motion(half) is STILL


def test_number_of_objects_is_checked() -> None:
    with pytest.raises(ValueError, match=r"within 1\.\.4, not 0"):
        track_objects([], 0)
