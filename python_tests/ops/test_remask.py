"""Which tokens are masked again: the m lowest scores of each sample, exactly, with ties as the reference decides."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.testing import poison, strategies
from lumos_engine.testing.backends import BACKENDS, COMPILED, running

every_backend = pytest.mark.parametrize("backend", BACKENDS)
compiled_backends = pytest.mark.parametrize("backend", COMPILED)

# Far enough apart that scores are equal, or ordered alike whichever way a logarithm is rounded.
CONFIDENCES = torch.tensor([1.0, 0.7, 0.3, 0.1, 1e-15, 1e-20, 1e-30, 0.0, torch.inf, torch.nan])
GUMBELS = torch.tensor([0.0, -0.0, 0.25, -1.5, 40.0, -torch.inf, torch.nan])


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    samples, rows = draw(st.integers(1, 4)), draw(st.sampled_from([1, 2, 3, 31, 32, 33, 70, 257, 1100]))
    generator = torch.Generator().manual_seed(draw(strategies.seeds()))

    def some(values: Tensor, how_many: int) -> Tensor:
        return values[torch.randint(0, how_many, (samples, rows), generator=generator)]

    case: dict[str, Any] = {
        "confidence": some(CONFIDENCES, draw(st.sampled_from([1, 4, len(CONFIDENCES)]))),
        "known": torch.rand(samples, rows, generator=generator) < draw(st.sampled_from([0.0, 0.5, 0.99, 1.0])),
        "temperature": draw(st.sampled_from([0.0, 3.0])),
        "gumbel": some(GUMBELS, draw(st.sampled_from([1, 4, len(GUMBELS)]))),
        "num_masked": draw(st.sampled_from([-(2**40), 0, 1, 2, rows // 2, rows - 1, rows, 2**40])),
    }
    if draw(st.booleans()):
        case["num_masked"] = torch.randint(-1, rows + 2, (samples,), generator=generator)
    return case


def run(case: dict[str, Any], backend: str, schedule: int | None = None) -> Tensor:
    with running(backend, schedule) as place, poison.poisoned_outputs():
        return ops.remask(**{k: place(x) if isinstance(x, Tensor) else x for k, x in case.items()}).cpu()


@compiled_backends
@given(case=calls(), schedule=strategies.seeds())
def test_equal_to_the_reference(case: dict[str, Any], schedule: int, backend: str) -> None:
    assert torch.equal(run(case, backend, schedule), run(case, "reference"))


@every_backend
@given(
    rows=st.integers(1, 300),
    num_masked=st.integers(-2, 305),
    share=st.sampled_from([0.0, 0.5]),
    seed=strategies.seeds(),
)
def test_the_lowest_scores_and_so_many(rows: int, num_masked: int, share: float, seed: int, backend: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    confidence = (torch.randperm(rows, generator=generator) + 1.0) / rows
    known = torch.rand(rows, generator=generator) < share
    masked = run({"confidence": confidence[None], "known": known[None], "num_masked": num_masked}, backend)[0]
    unknown = int((~known).sum())
    lowest = confidence.masked_fill(known, torch.inf).argsort()[: max(min(num_masked, unknown - 1), min(unknown, 1))]
    assert masked.nonzero()[:, 0].tolist() == sorted(lowest.tolist())


@every_backend
def test_of_equal_scores_at_the_cut_off_none_is_masked(backend: str) -> None:
    case: dict[str, Any] = {"confidence": torch.tensor([[0.1, 0.5, 0.5, 0.5, 0.9]]), "known": torch.zeros(1, 5) > 0}
    for num_masked, expected in ((1, 1), (2, 1), (3, 1), (4, 4)):
        assert run({**case, "num_masked": num_masked}, backend).sum() == expected


@every_backend
def test_scores_that_differ_in_their_last_bit(backend: str) -> None:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    for sign in (1, -1):
        gumbel = sign * (torch.full((64,), 0x3F800000, dtype=torch.int32) + order.int()).view(torch.float32)
        case: dict[str, Any] = {"confidence": torch.ones(1, 64), "known": torch.zeros(1, 64) > 0, "temperature": 1.0}
        for num_masked in (1, 30, 31, 62):
            masked = run({**case, "gumbel": gumbel[None], "num_masked": num_masked}, backend)[0]
            assert torch.equal(masked, gumbel < gumbel.sort().values[num_masked])


@every_backend
def test_infinite_scores_are_told_apart_from_known_rows(backend: str) -> None:
    confidence = torch.tensor([[torch.inf, 0.5, 0.1, torch.nan, torch.nan]])
    known = torch.tensor([[False, False, True, False, False]])
    for num_masked, expected in ((1, [0, 1, 0, 0, 0]), (2, [0, 1, 0, 0, 0]), (3, [0, 0, 0, 0, 0])):
        masked = run({"confidence": confidence, "known": known, "num_masked": num_masked}, backend)
        assert masked.int().tolist() == [expected]


@every_backend
@pytest.mark.parametrize("rows", [8192, 8193, 9000])
@pytest.mark.parametrize("num_masked", [300, 5000])  # the cut-off lies in a further row, and in one that is held
def test_more_rows_than_threads_hold(rows: int, num_masked: int, backend: str) -> None:
    confidence = torch.arange(rows).flip(0) / rows
    confidence[: rows - 1000] = confidence[torch.randperm(rows - 1000, generator=torch.Generator().manual_seed(0))]
    known = torch.arange(rows) % 5 == 0
    masked = run({"confidence": confidence[None], "known": known[None], "num_masked": num_masked}, backend, 4)[0]
    assert masked.sum() == num_masked and not masked[known].any()
    assert confidence[masked].max() < confidence[~masked & ~known].min()


@compiled_backends
def test_samples_without_rows_and_no_samples(backend: str) -> None:
    for shape in (0, 3), (2, 0):
        case: dict[str, Any] = {"confidence": torch.zeros(shape), "known": torch.zeros(shape) > 0, "num_masked": 1}
        assert run({**case, "temperature": 1.0, "gumbel": torch.zeros(shape)}, backend).shape == shape
