"""The moving-digits world: handwritten digits that move over a black frame, with a caption that says so.

Frames are 32x32 grey, 13 of them (1 + 4*3) at 6 fps. Digits are 12x12 px, start on a grid of 4 px such that their
whole path stays in the frame, and move at 1 px per frame, or 0.5 ("slowly"), in eight directions (diagonals in both
axes at that speed), or stand still. With two digits (never of the same class) the corners of the boxes stay 15 px
apart in x or in y all the time. Speeds are whole or half latent tokens (4 px) per latent frame (4 frames).

Every clip is a function of (options, seed, index). Digit images of "train" and "test" are disjoint. 26 of the 170
(digit, motion) pairs, :data:`HELD_OUT`, appear with ``pairs="unseen"`` or ``"all"`` only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .clip import Clip
from .digit_images import DIGIT_SIZE, SPRITE_SIZE, digit_split, digit_sprites
from .hashing import hash_uniform, shuffled
from .motion import MOTIONS, STILL, Motion, make_caption

__all__ = ["HELD_OUT", "ClipBatch", "DigitObject", "MovingDigits"]

_GRID = 4
_MIN_DISTANCE = 15
_HELD_OUT_SEED = 43  # leaves every digit standing still, and the examples of the documentation, among the seen pairs
_HELD_OUT_SHARE = 0.15
_VIDEO_FPS = 6.0


def _choose_held_out() -> frozenset[tuple[int, int]]:
    """26 (digit, motion index) pairs: at most 3 of a digit and 2 of a motion, so that every word stays common in
    training.
    """
    wanted = round(_HELD_OUT_SHARE * 10 * len(MOTIONS))
    chosen: list[tuple[int, int]] = []
    for pair in shuffled(_HELD_OUT_SEED, 10 * len(MOTIONS)):
        digit, motion = divmod(int(pair), len(MOTIONS))
        if sum(d == digit for d, _ in chosen) < 3 and sum(m == motion for _, m in chosen) < 2:
            chosen.append((digit, motion))
        if len(chosen) == wanted:
            break
    return frozenset(chosen)


_HELD_OUT_IDS = _choose_held_out()
HELD_OUT: frozenset[tuple[int, Motion]] = frozenset((digit, MOTIONS[motion]) for digit, motion in _HELD_OUT_IDS)
"""The (digit, motion) pairs that never appear with ``pairs="seen"``."""


@dataclass(frozen=True)
class DigitObject:
    """Ground truth of one digit of a clip.

    Attributes:
        digit: class, 0..9.
        motion: direction and speed.
        image: index into :func:`~lumos_engine.data.digit_images.load_digit_images`.
        positions: float64 [T, 2], (y, x) of the top left corner of the 12x12 box in each frame, px.
    """

    digit: int
    motion: Motion
    image: int
    positions: np.ndarray


@dataclass(frozen=True)
class ClipBatch:
    """Clips of one call. N clips, at most two objects each; absent objects have digit and motion -1.

    Attributes:
        frames: uint8 [N, T, H, W, 1].
        captions: N strings.
        fps: of every clip.
        digits, motions, images: int64 [N, 2]; motions are indices into :data:`~lumos_engine.data.motion.MOTIONS`.
        positions: float64 [N, 2, T, 2], (y, x) of the box corner; NaN where absent.
    """

    frames: np.ndarray
    captions: list[str]
    fps: float
    digits: np.ndarray
    motions: np.ndarray
    images: np.ndarray
    positions: np.ndarray

    def clip(self, i: int) -> Clip:
        objects = tuple(
            DigitObject(
                int(self.digits[i, k]), MOTIONS[self.motions[i, k]], int(self.images[i, k]), self.positions[i, k]
            )
            for k in range(2)
            if self.digits[i, k] >= 0
        )
        return Clip(self.frames[i], self.captions[i], self.fps, objects)


class MovingDigits:
    """A data set of clips made on demand.

    Args:
        split: "train" or "test": which digit images are used.
        seed: 0 <= seed < 2**63. The two splits differ with the same seed.
        num_clips: length of the data set; indices are 0..num_clips-1.
        num_frames: 1 gives images, all "standing still", fps 1.
        pairs: "seen" leaves the pairs of :data:`HELD_OUT` out, "unseen" uses only those (for every object), "all" both.
        num_objects: 1, 2, or None for a mixture.
        two_digit_share: share of clips with two digits where ``num_objects`` is None.
        height, width: size of the frame, px.

    Raises:
        ValueError: an option is out of range, or no clip fits (a frame too small for the path of any digit).
        ImportError: scikit-learn is not installed.
    """

    channels = 1

    def __init__(
        self,
        split: str = "train",
        seed: int = 0,
        *,
        num_clips: int = 1_000_000,
        num_frames: int = 13,
        pairs: str = "seen",
        num_objects: int | None = None,
        two_digit_share: float = 0.5,
        height: int = 32,
        width: int = 32,
    ) -> None:
        if not 0 <= seed < 2**63:
            raise ValueError(f"seed must be 0 <= seed < 2**63, not {seed}")
        if num_clips < 1 or num_frames < 1:
            raise ValueError(f"num_clips and num_frames must be at least 1, not {num_clips} and {num_frames}")
        if pairs not in ("seen", "unseen", "all"):
            raise ValueError(f"pairs is 'seen', 'unseen' or 'all', not {pairs!r}")
        if num_objects not in (None, 1, 2):
            raise ValueError(f"num_objects is 1, 2 or None (a mixture), not {num_objects!r}")
        if not 0.0 <= two_digit_share <= 1.0:
            raise ValueError(f"two_digit_share must be within [0, 1], not {two_digit_share}")
        if min(height, width) < DIGIT_SIZE:
            raise ValueError(f"height and width must be at least {DIGIT_SIZE} px (one digit), not {height}x{width}")
        self.split, self.seed, self.pairs, self.num_frames = split, seed, pairs, num_frames
        self.height, self.width, self.num_clips = height, width, num_clips
        self.fps = _VIDEO_FPS if num_frames > 1 else 1.0
        self.two_digit_share = two_digit_share if num_objects is None else float(num_objects - 1)

        by_digit = digit_split(split)
        self._image_begin = np.cumsum([0, *map(len, by_digit)])
        self._images = np.concatenate(by_digit)
        self._world = _world(num_frames, height, width)
        self._pairs = _allowed_pairs(pairs, self._world.possible)
        self._doubles = _allowed_doubles(self._pairs, self._world.possible_doubles)
        if self.two_digit_share < 1.0 and len(self._pairs) == 0:
            raise ValueError(
                f"no {pairs} pair of digit and motion fits a frame of {height}x{width} px over {num_frames} frames"
            )
        if self.two_digit_share > 0.0 and len(self._doubles) == 0:
            raise ValueError(
                f"no two digits of {pairs} pairs stay {_MIN_DISTANCE} px apart in a frame of {height}x{width} px over "
                f"{num_frames} frames; use num_objects=1"
            )

    def __len__(self) -> int:
        return self.num_clips

    def clip(self, i: int) -> Clip:
        """Clip ``i``, equal to the one in any :meth:`batch` that lists it. Raises IndexError outside 0..len-1."""
        return self.batch([i]).clip(0)

    sample = clip

    def batch(self, indices: Sequence[int] | np.ndarray) -> ClipBatch:
        """The clips at ``indices``, in that order. Raises IndexError outside 0..len-1."""
        index = np.asarray(indices, dtype=np.int64).reshape(-1)
        if len(index) and not (index.min() >= 0 and index.max() < self.num_clips):
            raise IndexError(f"clip indices must be within 0..{self.num_clips - 1}, got {index.min()}..{index.max()}")
        digits, motions, images, start = self._draw(index)
        step = np.array([(motion.dy, motion.dx) for motion in MOTIONS])[motions]  # [N, 2, 2]; row -1 is unused
        positions = start[:, :, None, :] + step[:, :, None, :] * np.arange(self.num_frames)[:, None]
        positions[digits < 0] = np.nan
        frames = self._render(images, positions)
        return ClipBatch(frames, self._captions(digits, motions), self.fps, digits, motions, images, positions)

    def _draw(self, index: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        salt = 2 * ("train", "test").index(self.split)

        def draw(stream: int, count: np.ndarray | int) -> np.ndarray:
            """Uniform in 0..count-1; float64 has more than enough bits for the small counts here."""
            return np.floor(hash_uniform(self.seed, index, 16 * salt + stream) * count).astype(np.int64)

        two = hash_uniform(self.seed, index, 16 * salt) < self.two_digit_share
        digits, motions, images = (np.full((len(index), 2), -1, dtype=np.int64) for _ in range(3))
        start = np.zeros((len(index), 2, 2))
        if len(self._pairs):
            digits[:, 0], motions[:, 0] = self._pairs[draw(1, len(self._pairs))].T
            begin = self._world.start_offsets[motions[:, 0]]
            count = self._world.start_offsets[motions[:, 0] + 1] - begin
            start[:, 0] = self._world.starts[begin + draw(2, count)]
        if two.any():
            double = self._doubles[draw(3, len(self._doubles))[two]]  # [n, 4]: digit, motion, digit, motion
            digits[two], motions[two] = double[:, 0::2], double[:, 1::2]
            row = double[:, 1] * len(MOTIONS) + double[:, 3]
            begin = self._world.double_offsets[row]
            count = self._world.double_offsets[row + 1] - begin
            u = hash_uniform(self.seed, index, 16 * salt + 4)[two]
            start[two] = self._world.double_starts[begin + np.floor(u * count).astype(np.int64)]
        for k in range(2):
            digit = np.maximum(digits[:, k], 0)
            begin = self._image_begin[digit]
            chosen = self._images[begin + draw(5 + k, self._image_begin[digit + 1] - begin)]
            images[:, k] = np.where(digits[:, k] >= 0, chosen, -1)
        return digits, motions, images, start

    def _render(self, images: np.ndarray, positions: np.ndarray) -> np.ndarray:
        num_clips = len(images)
        pitch = self.width + 1  # one spare row and column: a sprite is 1 px larger than its digit
        frames = np.zeros((num_clips * self.num_frames, (self.height + 1) * pitch), dtype=np.uint8)
        box = (np.arange(SPRITE_SIZE)[:, None] * pitch + np.arange(SPRITE_SIZE)).reshape(-1)
        sprites = digit_sprites().reshape(-1, SPRITE_SIZE * SPRITE_SIZE)
        frame_rows = np.arange(num_clips * self.num_frames).reshape(num_clips, self.num_frames)
        for k in range(2):
            present = images[:, k] >= 0
            half = np.rint(2 * positions[present, k]).astype(np.int64)  # [n, T, 2] in half pixels
            phase = half & 1
            sprite = (images[present, k][:, None] * 2 + phase[..., 0]) * 2 + phase[..., 1]
            corner = (half[..., 0] >> 1) * pitch + (half[..., 1] >> 1)
            target = frame_rows[present][..., None] * frames.shape[1] + corner[..., None] + box
            frames.reshape(-1)[target] = sprites[sprite]
        grid = frames.reshape(num_clips, self.num_frames, self.height + 1, pitch)
        return np.ascontiguousarray(grid[:, :, : self.height, : self.width, None])

    @staticmethod
    def _captions(digits: np.ndarray, motions: np.ndarray) -> list[str]:
        return [
            make_caption([(d, MOTIONS[m]) for d, m in zip(ds, ms, strict=True) if d >= 0])
            for ds, ms in zip(digits.tolist(), motions.tolist(), strict=True)
        ]


@dataclass(frozen=True)
class _World:
    """Where digits may start, for each motion and each ordered pair of motions (compressed rows)."""

    possible: np.ndarray  # bool [motions]
    starts: np.ndarray  # float64 [S, 2]
    start_offsets: np.ndarray  # int64 [motions + 1]
    possible_doubles: np.ndarray  # bool [motions, motions]
    double_starts: np.ndarray  # float64 [D, 2, 2]
    double_offsets: np.ndarray  # int64 [motions^2 + 1]


@lru_cache(maxsize=4)
def _world(num_frames: int, height: int, width: int) -> _World:
    time = np.arange(num_frames)[:, None]
    corners = [np.arange(0, size - DIGIT_SIZE + 1, _GRID) for size in (height, width)]
    grid = np.stack(np.meshgrid(*corners, indexing="ij"), axis=-1).reshape(-1, 2)
    limit = np.array([height, width]) - DIGIT_SIZE
    starts, paths = [], []
    for motion in MOTIONS:
        path = grid[:, None, :] + time * np.array([motion.dy, motion.dx])  # [starts, T, 2]
        inside = ((path >= 0) & (path <= limit)).all(axis=(1, 2)) & (num_frames > 1 or motion is STILL)
        starts.append(grid[inside].astype(np.float64))
        paths.append(path[inside])
    doubles = []
    for a, path_a in enumerate(paths):
        for b, path_b in enumerate(paths):
            apart = np.abs(path_a[:, None] - path_b[None]).max(axis=-1) >= _MIN_DISTANCE  # [A, B, T]
            i, j = np.nonzero(apart.all(axis=-1))
            doubles.append(np.stack([starts[a][i], starts[b][j]], axis=1))
    counts = np.array([len(rows) for rows in starts])
    double_counts = np.array([len(rows) for rows in doubles])
    return _World(
        possible=counts > 0,
        starts=np.concatenate(starts),
        start_offsets=np.concatenate([[0], np.cumsum(counts)]),
        possible_doubles=(double_counts > 0).reshape(len(MOTIONS), len(MOTIONS)),
        double_starts=np.concatenate(doubles),
        double_offsets=np.concatenate([[0], np.cumsum(double_counts)]),
    )


def _allowed_pairs(pairs: str, possible: np.ndarray) -> np.ndarray:
    """int64 [P, 2] (digit, motion) in a fixed order."""
    every = [(digit, motion) for digit in range(10) for motion in range(len(MOTIONS)) if possible[motion]]
    wanted = {"seen": (False,), "unseen": (True,), "all": (False, True)}[pairs]
    return np.array([pair for pair in every if (pair in _HELD_OUT_IDS) in wanted], dtype=np.int64).reshape(-1, 2)


def _allowed_doubles(pairs: np.ndarray, possible: np.ndarray) -> np.ndarray:
    """int64 [Q, 4]: ordered pairs of allowed (digit, motion) pairs, digits different, motions that fit into the
    frame together.
    """
    a, b = (grid.reshape(-1) for grid in np.meshgrid(np.arange(len(pairs)), np.arange(len(pairs)), indexing="ij"))
    fits = (pairs[a, 0] != pairs[b, 0]) & possible[pairs[a, 1], pairs[b, 1]]
    return np.concatenate([pairs[a[fits]], pairs[b[fits]]], axis=1)
