"""Resolution buckets: sizes of about the same number of pixels and different shape (Lumos-1's training data, after
Lumina-mGPT).
"""

from __future__ import annotations

from functools import lru_cache

__all__ = ["bucket_sizes", "nearest_bucket"]

_UNIT = 32
_MAX_ASPECT = 4.0


@lru_cache
def bucket_sizes(target_size: int) -> tuple[tuple[int, int], ...]:
    """The (height, width) of every bucket, px, from the widest to the tallest.

    Sides are multiples of 32, aspects at most 4, areas at most ``target_size`` squared (counted in whole units).

    Raises:
        ValueError: ``target_size`` is below 32.
    """
    if target_size < _UNIT:
        raise ValueError(f"target_size must be at least {_UNIT} px, not {target_size}")
    units = (target_size // _UNIT) ** 2
    sizes = []
    width, height = units, 1
    while width > 0:
        if max(width, height) / min(width, height) <= _MAX_ASPECT:
            sizes.append((height * _UNIT, width * _UNIT))
        if (height + 1) * width <= units:
            height += 1
        else:
            width -= 1
    return tuple(sizes)


def nearest_bucket(height: int, width: int, target_size: int) -> tuple[int, int]:
    """The bucket (height, width) whose shape loses least of a ``height`` x ``width`` picture to the crop; of equals
    the widest.

    Raises:
        ValueError: a size below 1, or ``target_size`` below 32.
    """
    if height < 1 or width < 1:
        raise ValueError(f"height and width must be at least 1 px, not {height}x{width}")

    def kept(size: tuple[int, int]) -> tuple[float, int, int]:
        scale_y, scale_x = size[0] / height, size[1] / width
        return min(scale_x, scale_y) / max(scale_x, scale_y), size[1], size[0]

    return max(bucket_sizes(target_size), key=kept)
