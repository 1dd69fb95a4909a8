"""The clips of the demo page: prompts, the pipeline calls that answer them, and the files they become."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.moving_digits import MovingDigits
from ..io.video import save_video

if TYPE_CHECKING:
    import numpy as np

    from ..pipeline import LumosPipeline

VIDEO_PROMPTS = (
    "a 7 moving right",
    "a 3 moving up left",
    "a 0 moving down slowly",
    "a 5 standing still",
    "a 4 moving left",
    "a 7 moving left and a 3 standing still",
)
IMAGE_PROMPTS = ("a 2 standing still", "an 8 standing still and a 1 standing still")
GIVEN_FRAMES = 5  # 1 + 4: the first latent frame and one group after it
SCALE = 6  # the clips are 32 pixels wide


@dataclass(frozen=True)
class Card:
    """One figure of the page: a caption and its media as (label, file name) pairs."""

    caption: str
    media: tuple[tuple[str, str], ...]


def _save(frames: np.ndarray, folder: Path, name: str, fps: float) -> str:
    """Save ``frames`` uint8 [T, H, W, C]; one frame becomes a picture, several a clip."""
    name += ".png" if len(frames) == 1 else ".mp4"
    save_video(frames, folder / name, fps=fps, scale=SCALE)
    return name


def make_cards(pipeline: LumosPipeline, folder: Path, *, seed: int = 0) -> dict[str, list[Card]]:
    """Generate the demo's clips into ``folder`` and return its sections.

    Args:
        pipeline: the shipped model; ``fps`` and sizes are its defaults.
        folder: an existing folder.
        seed: of the noise; the held-back clips are always the same.
    """
    fps = pipeline.defaults["fps"]
    sections: dict[str, list[Card]] = {}

    frames = pipeline(list(VIDEO_PROMPTS), seed=seed).frames
    sections["Text to video"] = [
        Card(prompt, (("", _save(clip, folder, f"text_to_video_{i}", fps)),))
        for i, (prompt, clip) in enumerate(zip(VIDEO_PROMPTS, frames, strict=True))
    ]

    world = MovingDigits(split="test", seed=seed, num_objects=1, pairs="seen")
    true_clips = [clip for clip in map(world.clip, range(32)) if "still" not in clip.caption][:3]
    cards = []
    for i, clip in enumerate(true_clips[:2]):
        made = pipeline(clip.caption, image=clip.frames[0], seed=seed).frames[0]
        media = (
            ("generated", _save(made, folder, f"image_to_video_{i}", fps)),
            ("true", _save(clip.frames, folder, f"image_to_video_{i}_true", fps)),
        )
        cards.append(Card(f"{clip.caption} (first frame given)", media))
    sections["Image to video"] = cards

    frames = pipeline(list(IMAGE_PROMPTS), num_frames=1, seed=seed).frames
    sections["Text to image"] = [
        Card(prompt, (("", _save(clip, folder, f"text_to_image_{i}", fps)),))
        for i, (prompt, clip) in enumerate(zip(IMAGE_PROMPTS, frames, strict=True))
    ]

    clip = true_clips[2]
    made = pipeline(clip.caption, video=clip.frames[:GIVEN_FRAMES], seed=seed).frames[0]
    media = (
        ("continued", _save(made, folder, "continuation", fps)),
        ("true future", _save(clip.frames, folder, "continuation_true", fps)),
    )
    sections["Continuation"] = [Card(f"{clip.caption} (first {GIVEN_FRAMES} frames given)", media)]
    return sections
