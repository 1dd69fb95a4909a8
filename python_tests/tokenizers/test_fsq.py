"""Finite scalar quantisation: grid, codes and gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.tokenizers.fsq import MAX_LEVELS, FiniteScalarQuantizer

LEVELS = st.lists(st.integers(2, 9), min_size=1, max_size=5)


@given(LEVELS)
def test_codes_digits_and_values_correspond(levels):
    quantizer = FiniteScalarQuantizer(levels)
    codes = torch.arange(math.prod(levels))
    digits = quantizer.to_digits(codes)
    assert quantizer.num_codes == len(codes)
    assert len(digits.unique(dim=0)) == len(codes)
    assert (digits >= 0).all() and (digits < torch.tensor(levels)).all()
    assert torch.equal(quantizer.to_codes(digits), codes)
    half = torch.tensor(levels) // 2
    assert torch.equal(quantizer.decode(codes), (digits - half).float() / half)
    assert quantizer.decode(codes).abs().max() <= 1


def test_cosmos_levels_have_the_published_basis():
    quantizer = FiniteScalarQuantizer([8, 8, 8, 5, 5, 5])
    assert quantizer.num_codes == 64000
    assert quantizer.to_codes(torch.eye(6, dtype=torch.int64)).tolist() == [1, 8, 64, 512, 2560, 12800]


@given(LEVELS, st.integers(0, 2**31))
def test_encode_agrees_with_forward(levels, seed):
    quantizer = FiniteScalarQuantizer(levels)
    z = 4 * torch.randn(50, len(levels), generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(quantizer.decode(quantizer.encode(z)), quantizer(z), rtol=0, atol=1e-6)


@pytest.mark.parametrize("level", [*range(2, 12), 255, MAX_LEVELS])
def test_every_level_is_reached_and_none_beyond(level):
    quantizer = FiniteScalarQuantizer([level])
    z = torch.cat([torch.linspace(-12, 12, 40001), torch.tensor([-1e30, 1e30, -torch.inf, torch.inf])])
    assert quantizer.encode(z[:, None]).unique().tolist() == list(range(level))


@given(LEVELS)
def test_zero_is_the_value_zero(levels):
    """In the middle of its interval, not at the edge between two levels."""
    quantizer = FiniteScalarQuantizer(levels)
    zero = torch.zeros(1, len(levels))
    assert not quantizer(zero).any()
    assert quantizer.bound(zero).abs().max() < 1e-3


def test_gradient_passes_the_rounding():
    quantizer = FiniteScalarQuantizer([8, 5])
    z = torch.randn(7, 2, dtype=torch.float32, requires_grad=True)
    quantizer(z).sum().backward()
    smooth = z.detach().clone().requires_grad_()
    (quantizer.bound(smooth) / torch.tensor([4, 2])).sum().backward()
    torch.testing.assert_close(z.grad, smooth.grad)


@pytest.mark.parametrize("levels", [[], [1], [8, 0], [MAX_LEVELS + 1]])
def test_levels_out_of_range_are_refused(levels):
    with pytest.raises(ValueError, match="levels must be"):
        FiniteScalarQuantizer(levels)
