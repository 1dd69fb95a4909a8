"""Mask counts and temperatures, by hand."""

from __future__ import annotations

import numpy as np
import pytest

from lumos_engine.diffusion.schedule import TemperatureSchedule, num_masked_tokens


def test_counts_are_those_of_single_precision() -> None:
    # cos(pi/3) is 1/2: fp64 comes out at 16, the original's fp32 just below.
    assert num_masked_tokens(32, 6)[3] == 15
    assert num_masked_tokens(1, 1) == [-1]  # cos(pi/2) is slightly negative in fp32; the last step ignores the count


@pytest.mark.parametrize(("num_tokens", "num_steps"), [(0, 4), (4, 0), (-1, 4)])
def test_counts_refuse_nonsense(num_tokens: int, num_steps: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        num_masked_tokens(num_tokens, num_steps)


def test_temperature_falls_to_zero_in_every_frame() -> None:
    schedule = TemperatureSchedule(2.0, 4)
    for first in (True, False):
        assert [schedule.at(step, first_generated=first) for step in range(4)] == [1.5, 1.0, 0.5, 0.0]


def test_compounding_temperature_is_the_product_and_never_returns() -> None:
    schedule = TemperatureSchedule(1.0, 50, compounding=True)
    first = [schedule.at(step, first_generated=True) for step in range(50)]
    assert first[0] == 0.98
    assert first[1] == 0.98 * 0.96
    assert first[49] == 0.0
    assert [round(first[step - 1], 4) for step in (5, 10, 20)] == [
        round(float(np.prod(1 - np.arange(1, s + 1) / 50)), 4) for s in (5, 10, 20)
    ]
    assert all(schedule.at(step, first_generated=False) == 0.0 for step in range(50))
