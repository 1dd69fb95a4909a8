"""Bucket lists and choices of the original data preparation (LUMOS-1; the counts are those of its lists)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.data.buckets import bucket_sizes, nearest_bucket


@pytest.mark.parametrize(
    ("target", "count", "wide"), [(352, 31, (256, 448)), (528, 49, (384, 672)), (656, 61, (480, 832))]
)
def test_lists_of_the_original(target: int, count: int, wide: tuple[int, int]) -> None:
    assert len(bucket_sizes(target)) == len(set(bucket_sizes(target))) == count
    assert nearest_bucket(720, 1280, target) == wide


@given(st.integers(32, 1200))
def test_buckets_keep_their_bounds(target: int) -> None:
    sizes = bucket_sizes(target)
    assert sizes and all(
        h % 32 == w % 32 == 0 and h * w <= target * target and max(h, w) <= 4 * min(h, w) for h, w in sizes
    )
    assert [w for _, w in sizes] == sorted((w for _, w in sizes), reverse=True)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([32, 352, 528]))
def test_nearest_bucket_loses_least(height: int, width: int, target: int) -> None:
    def lost(size: tuple[int, int]) -> float:
        scale = max(size[0] / height, size[1] / width)
        return 1 - size[0] * size[1] / (height * width * scale * scale)

    chosen = nearest_bucket(height, width, target)
    assert lost(chosen) <= min(map(lost, bucket_sizes(target))) + 1e-9


def test_refusals() -> None:
    with pytest.raises(ValueError, match="at least 32 px, not 31"):
        bucket_sizes(31)
    with pytest.raises(ValueError, match="at least 1 px, not 0x5"):
        nearest_bucket(0, 5, 352)
