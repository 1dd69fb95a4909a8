"""Which sizes are possible, and what the header says of them."""

from __future__ import annotations

import pytest

from lumos_engine.diffusion.clip_shape import ClipShape, check_num_frames


def shape(**changes: object) -> ClipShape:
    return ClipShape(**{"num_frames": 25, "height": 256, "width": 448, "fps": 12, "strides": (4, 8, 8), **changes})


def test_the_sizes_of_the_original() -> None:
    clip = shape()
    assert (clip.latent_frames, clip.latent_height, clip.latent_width) == (7, 32, 56)
    assert (clip.duration, clip.header_fps) == (2, 12)


@pytest.mark.parametrize(
    ("num_frames", "fps", "duration", "header_fps"), [(1, 12, 1, 1), (13, 6, 2, 6), (5, 12, 1, 12), (85, 12, 7, 12)]
)
def test_duration(num_frames: int, fps: int, duration: int, header_fps: int) -> None:
    clip = shape(num_frames=num_frames, fps=fps)
    assert (clip.duration, clip.header_fps) == (duration, header_fps)


@pytest.mark.parametrize(("changes", "message"), [
    ({"num_frames": 24}, r"num_frames must be 1 \+ 4 \* n, got 24; nearest: 21 and 25"),
    ({"num_frames": 2}, "nearest: 1 and 5"),
    ({"num_frames": 0}, "num_frames must be an integer of at least 1, got 0"),
    ({"num_frames": True}, "num_frames must be an integer"),
    ({"height": 250}, "height must be a multiple of 32 between 32 and 31968, got 250; nearest: 224 and 256"),
    ({"width": 8}, "width must be a multiple of 32 .* got 8; nearest: 32 and 64"),
    ({"width": 40000}, "width must be a multiple of 32 .* got 40000; nearest: 31968$"),
    ({"height": -32}, "height must be an integer of at least 1, got -32"),
    ({"fps": 0}, "fps must be an integer of at least 1"),
    ({"fps": 1000}, "fps must be at most 999"),
    ({"fps": 40, "max_number": 31}, "fps must be at most 31"),
    ({"fps": 1, "num_frames": 41, "max_number": 31}, "the duration in seconds must be at most 31"),
])  # fmt: skip
def test_impossible_sizes_name_the_nearest(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape(**changes)


def test_check_num_frames_counts_latents() -> None:
    assert [check_num_frames(n, 4) for n in (1, 5, 9, 25)] == [1, 2, 3, 7]
