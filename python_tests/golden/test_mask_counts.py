"""How many codes stay masked after each step."""

from __future__ import annotations

import math
import re

from lumos_engine.diffusion.schedule import num_masked_tokens

from .files import GoldenFile

FILES = r"mask_len_schedule.*\.npz"


def test_counts_are_those_of_single_precision(golden: GoldenFile) -> None:
    """The original counts in fp32; counts in fp64 are stored to show that they differ."""
    arrays = golden.arrays()
    sizes = [name.removesuffix(".floor_float32") for name in arrays if name.endswith(".floor_float32")]
    assert len(sizes) * 2 == len(arrays) > 0
    for name in sizes:
        num_tokens, num_steps = map(int, re.fullmatch(r"N(\d+)_S(\d+)", name).groups())
        ours, single = num_masked_tokens(num_tokens, num_steps), arrays[f"{name}.floor_float32"].tolist()
        assert ours == single, name
        double = [math.floor(num_tokens * math.cos(math.pi / 2 * (s + 1) / num_steps)) for s in range(num_steps)]
        assert double == arrays[f"{name}.floor_float64"].tolist(), name
        assert sum(a != b for a, b in zip(ours, double, strict=True)) == golden.meta["n_differences"][name], name
