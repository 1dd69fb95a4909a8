"""Size of a clip in pixels, in latents and in the words of its header: which sizes are possible."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass

from ..tokenizers.prompt import clip_duration


def _check_integer(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {reprlib.repr(value)}")
    return value


def check_num_frames(num_frames: int, stride: int, name: str = "num_frames") -> int:
    """Latent frames of a clip of ``num_frames``: the first frame is a latent of its own, then each ``stride`` frames
    are one.

    Raises:
        ValueError: if ``num_frames`` is not 1 + stride * n; the message names the nearest values.
    """
    _check_integer(name, num_frames)
    groups, rest = divmod(num_frames - 1, stride)
    if rest:
        raise ValueError(
            f"{name} must be 1 + {stride} * n, got {num_frames}; "
            f"nearest: {1 + groups * stride} and {1 + (groups + 1) * stride}"
        )
    return 1 + groups


@dataclass(frozen=True)
class ClipShape:
    """A clip of ``num_frames`` frames of ``height`` x ``width`` pixels at ``fps`` frames per second.

    Args:
        num_frames: 1 + n * strides[0]; 1 is an image.
        height, width: pixels, multiples of ``size_unit``.
        fps: frames per second; an image always says 1.
        strides: pixels per latent along (time, height, width).
        size_unit: pixels that one step of a size token stands for, a multiple of the spatial strides.
        max_number: largest number that the vocabulary has a token for.

    Raises:
        ValueError: naming the argument and the nearest possible values.
    """

    num_frames: int
    height: int
    width: int
    fps: int
    strides: tuple[int, int, int]
    size_unit: int = 32
    max_number: int = 999

    def __post_init__(self) -> None:
        check_num_frames(self.num_frames, self.strides[0])
        unit, limit = self.size_unit, self.size_unit * self.max_number
        for name in ("height", "width"):
            pixels = _check_integer(name, getattr(self, name))
            if pixels % unit or pixels > limit:
                below = min(max(pixels // unit * unit, unit), limit)
                raise ValueError(
                    f"{name} must be a multiple of {unit} between {unit} and {limit}, got {pixels}; nearest: "
                    f"{' and '.join(map(str, sorted({below, min(below + unit, limit)})))}"
                )
        _check_integer("fps", self.fps)
        for name, number in (("fps", self.fps), ("the duration in seconds", self.duration)):
            if number > self.max_number:
                raise ValueError(
                    f"{name} must be at most {self.max_number}, the largest number in the vocabulary, got {number}"
                )

    @property
    def latent_frames(self) -> int:
        return 1 + (self.num_frames - 1) // self.strides[0]

    @property
    def latent_height(self) -> int:
        return self.height // self.strides[1]

    @property
    def latent_width(self) -> int:
        return self.width // self.strides[2]

    @property
    def header_fps(self) -> int:
        """Frames per second that header and prompt state; 1 for an image."""
        return clip_duration(self.num_frames, self.fps)[1]

    @property
    def duration(self) -> int:
        """Whole seconds that the header states; the prompt says duration * fps frames."""
        return clip_duration(self.num_frames, self.fps)[0]
