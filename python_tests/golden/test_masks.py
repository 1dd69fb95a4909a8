"""Who sees whom, batches included."""

from __future__ import annotations

import torch

from .files import GoldenFile, layouts

FILES = r"attention_masks.*\.npz"
SHARED, CORRECT = "_official_BUGGY", "_correct_per_sample"


def test_visibility(golden: GoldenFile) -> None:
    """Masks of single sequences and of batches, each row by itself; and those that the original shares by mistake."""
    arrays = golden.arrays()
    names = [name.removesuffix(".allowed") for name in arrays if name.endswith(".allowed")]
    assert names
    for name in names:
        ids = arrays[f"{name.replace(CORRECT, SHARED)}.input_ids"]
        layout = layouts(ids, golden.vocabulary)["shared" if name.endswith(SHARED) else "per_sample"]
        for row, allowed in enumerate(arrays[f"{name}.allowed"]):
            assert torch.equal(layout.visible(row), allowed), f"{name}, row {row}"
