"""The prompt of Lumos-1: one template for all tasks, part of the format that checkpoints were trained on.

The resolution, the number of frames and their rate are stated in words before the caption. The same rule gives the duration and rate
of the video header that follows the prompt in a sequence.
"""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["MAX_CAPTION_CHARACTERS", "PROMPT_TEMPLATE", "build_prompt", "clip_duration", "prompt_tokens"]

PROMPT_TEMPLATE = (
    "Generate a video with a resolution of {width}x{height}, consisting of {frames} frames at {fps} frames per second, "
    "according to the following prompt:\n {caption}"
)
"""Byte for byte that of the original (``inference_t2v.py``); ``frames`` is duration times fps."""

MAX_CAPTION_CHARACTERS = 100_000
"""Longest caption that is encoded at all; no model has room for one of that length."""


def clip_duration(num_frames: int, fps: int) -> tuple[int, int]:
    """Duration in whole seconds and frames per second that header and prompt state for a clip; ``(1, 1)`` for one frame.

    Raises:
        ValueError: ``num_frames`` or ``fps`` is not a positive integer.
    """
    for name, value in (("num_frames", num_frames), ("fps", fps)):
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    if num_frames == 1:
        return 1, 1
    return max(1, round((num_frames - 1) / fps)), int(fps)


def build_prompt(caption: str, width: int, height: int, num_frames: int, fps: int) -> str:
    """The text in front of a clip of ``num_frames`` frames (an image for 1) of ``width`` x ``height`` px.

    Raises:
        ValueError: the caption is empty or too long, or a size is not a positive integer.
    """
    if len(caption) > MAX_CAPTION_CHARACTERS:
        raise ValueError(f"the prompt must have at most {MAX_CAPTION_CHARACTERS} characters, got {len(caption)}")
    if not caption.strip():
        raise ValueError("the prompt must not be empty: say what is to be seen")
    for name, value in (("width", width), ("height", height)):
        if isinstance(value, bool) or int(value) != value or value < 1:
            raise ValueError(f"{name} must be a positive integer, got {value!r}")
    duration, fps = clip_duration(num_frames, fps)
    return PROMPT_TEMPLATE.format(width=int(width), height=int(height), frames=duration * fps, fps=fps, caption=caption)


def prompt_tokens(
    encode: Callable[[str], list[int]],
    caption: str,
    *,
    width: int,
    height: int,
    num_frames: int,
    fps: int,
    bos: int,
    sep: int,
    max_tokens: int | None = None,
) -> list[int]:
    """Ids ``[bos, text..., sep]`` of :func:`build_prompt`.

    Args:
        encode: text to ids, such as :meth:`~lumos_engine.tokenizers.text.TextTokenizer.encode`.
        bos, sep: ids of the vocabulary.
        max_tokens: the most ids that fit, ``bos`` and ``sep`` included; None: any number.

    Raises:
        ValueError: the caption is empty or the prompt longer than ``max_tokens``.
    """
    ids = [bos, *encode(build_prompt(caption, width, height, num_frames, fps)), sep]
    if max_tokens is not None and len(ids) > max_tokens:
        raise ValueError(f"the prompt must fit into {max_tokens} tokens, got {len(ids)}: shorten it")
    return ids
