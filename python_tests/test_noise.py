"""Philox4x32-10 and the numbers made from it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lumos_engine.noise import gumbel, philox4x32, philox_uniform

ONES = 0xFFFFFFFF


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [  # the known answers published with Random123
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)  # fmt: skip
def test_known_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    assert tuple(int(word) for word in philox4x32(counter, key)) == expected


def by_hand(seed: int, sample: int, frame: int, step: int, token: int, stream: int) -> float:
    """The same number in Python's own integers."""
    c = [token // 4, sample, frame, stream * 2**24 + step]
    k = [seed % 2**32, seed // 2**32]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & ONES, (a >> 32) ^ c[3] ^ k[1], a & ONES]
        k = [(k[0] + 0x9E3779B9) & ONES, (k[1] + 0xBB67AE85) & ONES]
    return (c[token % 4] >> 8) / 2**24


@given(
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(0, 2**24 - 1),
    st.integers(1, 40), st.integers(0, 255),
)  # fmt: skip
def test_every_number_is_a_function_of_its_coordinates(
    seed: int, sample: int, frame: int, step: int, num: int, stream: int
) -> None:
    numbers = philox_uniform(seed, sample, frame, step, num, stream)
    assert numbers.dtype == torch.float32
    assert numbers.tolist() == [by_hand(seed, sample, frame, step, token, stream) for token in range(num)]


def test_samples_of_a_batch_are_those_of_single_calls() -> None:
    batch = philox_uniform([5, 5, 2**63], [0, 7, 7], 1, 2, 9, 3)
    single = [philox_uniform(seed, sample, 1, 2, 9, 3) for seed, sample in ((5, 0), (5, 7), (2**63, 7))]
    assert torch.equal(batch, torch.stack(single))
    assert torch.equal(philox_uniform(5, [0, 7], 1, 2, 9, 3), batch[:2])
    assert torch.equal(gumbel([5, 5], [0, 7], 1, 2, 9, 3)[1], gumbel(5, 7, 1, 2, 9, 3))


def test_a_longer_draw_begins_with_the_shorter_one() -> None:
    long = philox_uniform(1, 2, 3, 4, 1000)
    for num in (0, 1, 4, 5, 999):
        assert torch.equal(philox_uniform(1, 2, 3, 4, num), long[:num])


def test_uniforms_are_uniform_and_streams_independent() -> None:
    n = 2**16
    draws = torch.stack(
        [
            philox_uniform(9, 0, frame, step, n, stream)
            for frame, step, stream in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
        ]
    )
    assert (draws >= 0).all()
    assert (draws < 1).all()
    counts = torch.stack([draw.histc(64, 0, 1) for draw in draws])
    chi_square = ((counts - n / 64) ** 2 / (n / 64)).sum(1)
    assert (chi_square < 120).all(), "63 degrees of freedom: about 1 in 100 000 exceeds this"
    correlation = torch.corrcoef(draws.double()) - torch.eye(4)
    assert correlation.abs().max() < 5 / n**0.5


def test_gumbel_numbers_have_their_distribution_and_are_finite() -> None:
    numbers = gumbel(3, 0, 0, 0, 2**16).double()
    assert numbers.isfinite().all()
    assert abs(float(numbers.mean()) - 0.57722) < 0.03
    assert abs(float(numbers.var()) - torch.pi**2 / 6) < 0.06


def test_gumbel_of_a_uniform_of_zero_is_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    import lumos_engine.noise as module

    monkeypatch.setattr(module, "philox_uniform", lambda *_: torch.tensor([0.0, 1 - 2**-24]))
    low, high = gumbel(0, 0, 0, 0, 2).tolist()
    assert -3 < low < -2.8
    assert 16 < high < 17


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ValueError, r"seed must be in 0\.\.18446744073709551615, got -1", (-1, 0, 0, 0, 1)),
        (ValueError, "seed must be in", (2**64, 0, 0, 0, 1)),
        (ValueError, "sample must be in", (0, 2**32, 0, 0, 1)),
        (ValueError, "step must be in", (0, 0, 0, 2**24, 1)),
        (ValueError, "num must be in", (0, 0, 0, 0, -1)),
        (ValueError, "stream must be in", (0, 0, 0, 0, 1, 256)),
        (TypeError, "seed must be an int, got float", (1.5, 0, 0, 0, 1)),
        (TypeError, "sample must be an int, got bool", (0, True, 0, 0, 1)),
        (ValueError, "seed lists 2 values and sample 3", ([1, 2], [1, 2, 3], 0, 0, 1)),
    ],
)
def test_bad_coordinates_are_named(error: type[Exception], message: str, arguments: tuple[int, ...]) -> None:
    with pytest.raises(error, match=message):
        philox_uniform(*arguments)
