"""The motions of the moving digits, and the captions that state them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MOTIONS", "STILL", "Motion", "make_caption", "parse_caption"]


@dataclass(frozen=True)
class Motion:
    """A direction and a speed. ``dy`` and ``dx`` are pixels per frame (y grows downwards); diagonals move in both
    axes.
    """

    direction: str
    dy: float
    dx: float

    @property
    def still(self) -> bool:
        return self.dy == 0 and self.dx == 0

    @property
    def slow(self) -> bool:
        return 0 < max(abs(self.dy), abs(self.dx)) < 1

    @property
    def phrase(self) -> str:
        """``moving up left slowly``, ``standing still``."""
        if self.still:
            return "standing still"
        return f"moving {self.direction}{' slowly' if self.slow else ''}"


_DIRECTIONS = {
    "right": (0, 1),
    "left": (0, -1),
    "up": (-1, 0),
    "down": (1, 0),
    "up right": (-1, 1),
    "up left": (-1, -1),
    "down right": (1, 1),
    "down left": (1, -1),
}
STILL = Motion("still", 0.0, 0.0)
MOTIONS: tuple[Motion, ...] = (
    STILL,
    *(Motion(name, dy * speed, dx * speed) for speed in (1.0, 0.5) for name, (dy, dx) in _DIRECTIONS.items()),
)
"""Still, then the eight directions at 1 px per frame, then at 0.5 px per frame ("slowly"): 17 motions."""

_BY_PHRASE = {motion.phrase: motion for motion in MOTIONS}
_OBJECT = re.compile(r"an? (\d) (.+)")


def make_caption(objects: Sequence[tuple[int, Motion]]) -> str:
    """``[(7, left), (8, still)]`` -> ``a 7 moving left and an 8 standing still``."""
    return " and ".join(f"{'an' if digit == 8 else 'a'} {digit} {motion.phrase}" for digit, motion in objects)


def parse_caption(caption: str) -> list[tuple[int, Motion]]:
    """The (digit, motion) of each object that a caption of :func:`make_caption` states.

    Raises:
        ValueError: the caption is not of that form.
    """
    objects = []
    for part in caption.strip().split(" and "):
        match = _OBJECT.fullmatch(part.strip())
        if match is None or match[2] not in _BY_PHRASE:
            raise ValueError(
                f"caption {caption!r} is not of the form 'a 7 moving up left slowly and a 3 standing still' "
                f"(part {part!r})"
            )
        objects.append((int(match[1]), _BY_PHRASE[match[2]]))
    return objects
