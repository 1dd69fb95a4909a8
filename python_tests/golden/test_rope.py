"""Positions, rotations and tables of MM-RoPE."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumos_engine import SequenceLayout, ops
from lumos_engine.testing.tolerances import GOLDEN

from .files import GoldenFile

FILES = r"rope_.*\.npz"


def layout_of(golden: GoldenFile, ids: Tensor) -> SequenceLayout:
    return SequenceLayout.from_tokens(ids.reshape(-1), golden.vocabulary, [ids.shape[1]] * len(ids))


def expected_positions(arrays: dict[str, Tensor]) -> Tensor:
    """int32 [batch, tokens, 3]."""
    grid = torch.stack([arrays[f"pos_{axis}"] for axis in "thw"], -1)
    return torch.where(arrays["content_flag"][..., None] != 0, grid, arrays["pos_text"][..., None])


def stored(arrays: dict[str, Tensor]) -> Tensor:
    """Positions [batch * idx, 3] of the tokens whose rotations are stored."""
    return expected_positions(arrays)[:, arrays["idx"].long()].flatten(0, 1)


def test_positions(golden: GoldenFile) -> None:
    """Read off the ids alone, for every token."""
    arrays = golden.arrays()
    layout = layout_of(golden, arrays["input_ids"])
    assert torch.equal(layout.content, arrays["content_flag"].flatten() != 0)
    assert torch.equal(layout.positions, expected_positions(arrays).flatten(0, 1))


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("name", ["q", "k"])
def test_rotation(golden: GoldenFile, name: str, backend: str) -> None:
    arrays = golden.arrays()
    x, expected = (arrays[key].transpose(1, 2).flatten(0, 1) for key in (name, f"{name}_rot"))
    inv_freq = ops.inverse_frequencies(x.shape[-1], golden.meta.get("theta", 10000.0))
    rotated = ops.mm_rope(x.contiguous(), stored(arrays), inv_freq, backend=backend)
    torch.testing.assert_close(rotated, expected, rtol=0, atol=GOLDEN["rotation"])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_tables(golden: GoldenFile, backend: str) -> None:
    """The rotation of (1, 0) is a pair of table entries: within tolerance in fp32, the very bits in bf16 parity."""
    arrays = golden.arrays()
    positions, width = stored(arrays), arrays["cos"].shape[-1]
    inv_freq = ops.inverse_frequencies(width, golden.meta.get("theta", 10000.0))
    x = torch.zeros(len(positions), 1, width)
    x[..., : width // 2] = 1.0
    table = ops.mm_rope(x, positions, inv_freq, backend=backend)[:, 0]
    bits = ops.mm_rope(x.bfloat16(), positions, inv_freq, parity=True, backend=backend)[:, 0].view(torch.int16)
    for name, half in (("cos", slice(width // 2)), ("sin", slice(width // 2, width))):
        expected = arrays[name].flatten(0, 1)
        assert torch.equal(expected, torch.cat([expected[:, : width // 2]] * 2, dim=1))
        torch.testing.assert_close(table[:, half], expected[:, half], rtol=0, atol=GOLDEN["rotation"])
        assert torch.equal(bits[:, half], arrays[f"{name}_bf16_bits"].flatten(0, 1)[:, half])
