"""The moving-digits world: determinism, the promises about splits, held-out pairs, paths and distances, and bad
input.
"""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.data import HELD_OUT, MovingDigits
from lumos_engine.data.digit_images import digit_split, digit_sprites, load_digit_images
from lumos_engine.data.motion import MOTIONS, make_caption, parse_caption

PINNED_CAPTIONS = [
    "an 8 moving up right slowly and a 0 moving left",
    "a 4 standing still",
    "a 2 moving up",
    "a 9 moving left slowly",
]
PINNED_FRAMES_SHA256 = "b6a2209b6128b3da53f74d7d23891f4d4d97abf2f5d881e7a19e15c6d74c0149"


def test_split_is_disjoint_and_covers_every_image() -> None:
    train, test = (np.concatenate(digit_split(name)) for name in ("train", "test"))
    assert (len(train), len(test)) == (1437, 360)
    assert sorted([*train, *test]) == list(range(1797))
    _, labels = load_digit_images()
    for name in ("train", "test"):
        for digit, members in enumerate(digit_split(name)):
            assert (labels[members] == digit).all()
    assert all(34 <= len(members) <= 37 for members in digit_split("test"))


def test_held_out_pairs_are_fixed_and_spread() -> None:
    assert len(HELD_OUT) == 26  # 15 % of 10 digits x 17 motions
    assert max(sum(digit == d for digit, _ in HELD_OUT) for d in range(10)) <= 3
    assert max(sum(motion is m for _, motion in HELD_OUT) for m in MOTIONS) <= 2
    images = MovingDigits(num_frames=1, num_objects=1).batch(range(300))
    assert set(images.digits[:, 0].tolist()) == set(range(10))  # no digit is missing from images


@pytest.mark.parametrize("num_frames", [1, 5, 13])
@pytest.mark.parametrize("split", ["train", "test"])
def test_clips_keep_every_promise(split: str, num_frames: int) -> None:
    data = MovingDigits(split, seed=3, num_frames=num_frames)
    batch = data.batch(range(1500))
    assert batch.frames.shape == (1500, num_frames, 32, 32, 1) and batch.frames.dtype == np.uint8
    two = batch.digits[:, 1] >= 0
    assert 0.4 < two.mean() < 0.6
    present = batch.digits >= 0
    allowed = np.concatenate(digit_split(split))
    assert np.isin(batch.images[present], allowed).all()
    assert (load_digit_images()[1][batch.images[present]] == batch.digits[present]).all()
    path = batch.positions[present]
    assert (path >= 0).all() and (path <= 20).all()
    assert (path[:, 0] % 4 == 0).all()
    apart = np.abs(batch.positions[two, 0] - batch.positions[two, 1]).max(axis=-1)
    assert (apart >= 15).all()
    assert (batch.digits[two, 0] != batch.digits[two, 1]).all()
    for i in range(200):
        clip = batch.clip(i)
        stated = [(item.digit, item.motion) for item in clip.objects]
        assert parse_caption(clip.caption) == stated
        assert not set(stated) & HELD_OUT
        for item in clip.objects:
            expected = np.array([item.motion.dy, item.motion.dx]) * np.arange(num_frames)[:, None]
            np.testing.assert_array_equal(item.positions - item.positions[0], expected)
    assert data.fps == (1.0 if num_frames == 1 else 6.0)


def test_unseen_clips_hold_only_held_out_pairs() -> None:
    for num_objects in (1, 2):
        data = MovingDigits("test", pairs="unseen", num_objects=num_objects)
        found = {(o.digit, o.motion) for i in range(400) for o in data.clip(i).objects}
        assert found <= HELD_OUT
        assert len(data.clip(0).objects) == num_objects
    assert {(o.digit, o.motion) for i in range(400) for o in MovingDigits(pairs="all").clip(i).objects} - HELD_OUT


@given(
    st.integers(0, 2**63 - 1),
    st.lists(st.integers(0, 999_999), min_size=1, max_size=8),
    st.sampled_from(["train", "test"]),
)
def test_a_clip_depends_on_seed_and_index_alone(seed: int, indices: list[int], split: str) -> None:
    batch = MovingDigits(split, seed).batch(indices)
    for i, index in enumerate(indices):
        clip = MovingDigits(split, seed).clip(index)
        np.testing.assert_array_equal(batch.frames[i], clip.frames)
        assert batch.captions[i] == clip.caption


def test_seeds_and_splits_give_other_clips() -> None:
    captions = {
        MovingDigits(split, seed).batch(range(20)).captions.__str__() for split in ("train", "test") for seed in (0, 1)
    }
    assert len(captions) == 4


def test_the_first_clips_are_the_ones_of_every_release() -> None:
    batch = MovingDigits(seed=0).batch(range(4))
    assert batch.captions == PINNED_CAPTIONS
    assert hashlib.sha256(batch.frames).hexdigest() == PINNED_FRAMES_SHA256


def test_sprites_move_by_half_pixels() -> None:
    sprites = digit_sprites().astype(float)
    centre = (sprites * np.arange(13)).sum(axis=(-1, -2)) / sprites.sum(axis=(-1, -2))  # centre of mass in x
    np.testing.assert_allclose(centre[:, :, 1] - centre[:, :, 0], 0.5, atol=0.03)
    assert (sprites[:, 0, 0, 12] == 0).all() and (sprites[:, 0, 0, :, 12] == 0).all()


def test_frames_show_the_sprites_where_the_positions_say() -> None:
    clip = MovingDigits(num_objects=2, seed=5).clip(11)
    expected = np.zeros((13, 33, 33), dtype=np.uint8)
    for item in clip.objects:
        for t, (y, x) in enumerate(item.positions):
            sprite = digit_sprites()[item.image, int(2 * y) % 2, int(2 * x) % 2]
            window = expected[t, int(y) : int(y) + 13, int(x) : int(x) + 13]
            np.maximum(window, sprite, out=window)
    np.testing.assert_array_equal(clip.frames[..., 0], expected[:, :32, :32])


def test_empty_batch() -> None:
    assert MovingDigits().batch([]).frames.shape == (0, 13, 32, 32, 1)


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(MOTIONS)), min_size=1, max_size=3))
def test_captions_round_trip(objects: list) -> None:
    assert parse_caption(make_caption(objects)) == objects


@pytest.mark.parametrize(
    "caption", ["", "a cat moving left", "a 7 moving", "a 7 moving left and", "a 12 standing still", "a 7  moving left"]
)
def test_other_captions_are_refused(caption: str) -> None:
    with pytest.raises(ValueError, match="is not of the form"):
        parse_caption(caption)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "valid"}, "split is 'train' or 'test'"),
        ({"seed": -1}, "seed must be"),
        ({"num_frames": 0}, "at least 1"),
        ({"num_clips": 0}, "at least 1"),
        ({"pairs": "some"}, "pairs is"),
        ({"num_objects": 3}, "num_objects is"),
        ({"two_digit_share": 1.5}, "two_digit_share"),
        ({"height": 11}, "at least 12 px"),
        ({"height": 16, "width": 16}, "no two digits of seen pairs .* use num_objects=1"),
        ({"num_objects": 1, "pairs": "unseen", "num_frames": 1}, "no unseen pair of digit and motion fits"),
        ({"num_objects": 1, "height": 12, "width": 12, "num_frames": 400}, None),
    ],
)
def test_bad_options(options: dict, message: str | None) -> None:
    if message is None:  # a digit that stands still fits any number of frames
        assert {o.motion.phrase for o in MovingDigits(**options).clip(0).objects} == {"standing still"}
        return
    with pytest.raises(ValueError, match=message):
        MovingDigits(**options)


@pytest.mark.parametrize("index", [-1, 10])
def test_index_outside(index: int) -> None:
    with pytest.raises(IndexError, match=r"within 0\.\.9"):
        MovingDigits(num_clips=10).clip(index)
