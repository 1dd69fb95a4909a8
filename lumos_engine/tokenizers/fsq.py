"""Finite scalar quantisation (Mentzer et al., arXiv 2309.15505, section 3 and appendix A.1).

Each of a handful of channels is squashed into a bounded interval and rounded to one of ``levels[i]`` values; the code of a
position is the mixed-radix number of its digits. There is no codebook to learn or to keep alive, so the whole method
is the few lines below; a vector quantisation library would add dependencies for features that are not used here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["FiniteScalarQuantizer"]

MAX_LEVELS = 256  # beyond, the slack of the bound (1e-3 of half the range) would round to one level too many


class FiniteScalarQuantizer(nn.Module):
    """Rounds ``[..., len(levels)]`` to a grid; digits, codes and normalised values as in the Cosmos tokenizer.

    ``digit = round(bound(z)) + level // 2`` in ``0..level-1``, ``value = (digit - level // 2) / (level // 2)`` in ``[-1, 1]``,
    ``code = sum(digit_i * basis_i)`` with ``basis = (1, levels[0], levels[0] * levels[1], ...)``.

    Raises:
        ValueError: no level, or a level outside 2..256.
    """

    _level: Tensor
    _basis: Tensor
    _half_range: Tensor
    _offset: Tensor
    _shift: Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or any(not 2 <= level <= MAX_LEVELS for level in levels):
            raise ValueError(f"levels must be one or more integers in 2..{MAX_LEVELS}, got {list(levels)}")
        self.levels = tuple(int(level) for level in levels)
        self.num_codes = math.prod(self.levels)
        level = torch.tensor(self.levels)
        basis = torch.tensor([math.prod(self.levels[:i]) for i in range(len(self.levels))])
        half_range = (level - 1) * (1 + 1e-3) / 2  # slack, so that the outermost levels are reached at finite z
        offset = torch.where(level % 2 == 0, 0.5, 0.0)  # an even number of levels is centred between two of them
        for name, value in {
            "_level": level,
            "_basis": basis,
            "_half_range": half_range,
            "_offset": offset,
            "_shift": torch.atanh(offset / half_range),  # z = 0 lands on the level of value 0
        }.items():
            self.register_buffer(name, value, persistent=False)

    def bound(self, z: Tensor) -> Tensor:
        """Squash ``z`` so that rounding yields ``-(level // 2) .. (level - 1) // 2``."""
        return torch.tanh(z + self._shift) * self._half_range - self._offset

    def forward(self, z: Tensor) -> Tensor:
        """Normalised values nearest to ``bound(z)``, same shape; the gradient passes the rounding unchanged."""
        bounded = self.bound(z)
        rounded = bounded + (bounded.round() - bounded).detach()
        return rounded / (self._level // 2)

    def encode(self, z: Tensor) -> Tensor:
        """Codes int64 ``[...]`` of float ``z [..., len(levels)]``."""
        digits = self.bound(z).round().to(torch.int64) + self._level // 2
        return self.to_codes(digits)

    def decode(self, codes: Tensor) -> Tensor:
        """Normalised values float32 ``[..., len(levels)]`` of codes ``[...]``."""
        half = self._level // 2
        return (self.to_digits(codes) - half).to(torch.float32) / half

    def to_codes(self, digits: Tensor) -> Tensor:
        """Codes int64 ``[...]`` of digits ``[..., len(levels)]``."""
        return (digits.to(torch.int64) * self._basis).sum(-1)

    def to_digits(self, codes: Tensor) -> Tensor:
        """Digits int64 ``[..., len(levels)]`` of codes ``[...]``."""
        return torch.div(codes.to(torch.int64)[..., None], self._basis, rounding_mode="floor") % self._level
