"""Uniform numbers that depend on (seed, index, stream) alone, so that clips can be made in any order."""

from __future__ import annotations

import numpy as np

__all__ = ["hash_uniform", "hash_words", "shuffled"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(x: np.ndarray) -> np.ndarray:
    """The finalizer of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64-bit words that avalanches."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def hash_words(seed: int, index: np.ndarray, stream: int) -> np.ndarray:
    """uint64 words, one per element of ``index``. Seed and stream: 0 <= value < 2**63."""
    key = _mix(np.asarray([seed], dtype=np.uint64) + _GOLDEN)
    key = _mix(key + np.asarray([stream + 1], dtype=np.uint64) * _GOLDEN)
    return _mix(_mix(key + np.asarray(index).astype(np.uint64) * _GOLDEN))


def hash_uniform(seed: int, index: np.ndarray, stream: int) -> np.ndarray:
    """float64 in [0, 1) with 53 random bits, shape of ``index``."""
    return (hash_words(seed, index, stream) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def shuffled(seed: int, num_items: int, stream: int = 0) -> np.ndarray:
    """A permutation of range(num_items): items sorted by their hash. int64 [num_items]."""
    return np.argsort(hash_words(seed, np.arange(num_items), stream), kind="stable")
