"""The evenly spaced mask of finished frames."""

from __future__ import annotations

import re

import torch

from lumos_engine.tubes import TubePattern

from .files import GoldenFile

FILES = r"history_mask_patterns.*\.npz"


def test_history_patterns(golden: GoldenFile) -> None:
    arrays = golden.arrays()
    assert arrays
    for name, places in arrays.items():
        length, ratio = re.fullmatch(r"L(\d+)_r([\d.]+)", name).groups()
        for row in TubePattern.history(int(length), float(ratio), num_frames=2).masked:
            assert torch.equal(row.nonzero()[:, 0], places.long()), name
