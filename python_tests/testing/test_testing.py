"""The test equipment finds what it is there to find."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from torch import Tensor

from lumos_engine.layout import SequenceLayout, Text
from lumos_engine.testing import poison, strategies, tolerances


@pytest.mark.parametrize("order", strategies.MEMORY_ORDERS)
@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_memory_orders_keep_the_values_and_poison_the_rest(order: str, dtype: torch.dtype) -> None:
    x = strategies.randn((5, 3, 32), dtype, 0)
    ordered = strategies.in_order(x, order)
    assert torch.equal(ordered, x)
    assert ordered.data_ptr() != x.data_ptr()
    assert ordered.stride(-1) == 1
    assert [s * x.element_size() % 16 for s in (*ordered.stride()[:-1], ordered.storage_offset())] == [0] * 3
    storage = ordered.as_strided((ordered.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    assert int(storage.isnan().sum()) == len(storage) - x.numel()
    assert (order in ("contiguous", "heads_first")) == (len(storage) == x.numel())


def test_an_unknown_memory_order_is_refused() -> None:
    with pytest.raises(ValueError, match="order is 'diagonal'; allowed: contiguous"):
        strategies.in_order(torch.zeros(1, 1, 32), "diagonal")


@given(strategies.attention_inputs())
def test_attention_inputs_fit_their_layout(inputs: tuple[SequenceLayout, Tensor, Tensor, Tensor]) -> None:
    layout, q, k, v = inputs
    assert len(q) == len(k) == len(v) == layout.num_tokens
    assert q.shape[1] % k.shape[1] == 0
    assert k.shape == v.shape
    assert not (torch.equal(q[:, :1], k[:, :1]) or torch.equal(k, v))


def test_poisoned_outputs_fill_new_memory() -> None:
    with poison.poisoned_outputs():
        assert torch.empty(1000).isnan().all()
        assert torch.empty(1000, dtype=torch.bfloat16).isnan().all()
        assert (torch.empty(1000, dtype=torch.int64) == torch.iinfo(torch.int64).max).all()
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64, torch.bool])
def test_guards_notice_a_write_past_either_end(dtype: torch.dtype) -> None:
    for element in (-1, 6):
        guarded = poison.GuardedTensor((2, 3), dtype)
        guarded.tensor.zero_()
        guarded.assert_untouched()
        guarded.tensor.as_strided((1,), (1,), guarded.tensor.storage_offset() + element).zero_()
        with pytest.raises(AssertionError, match="1 elements outside the tensor were written"):
            guarded.assert_untouched()


def test_only_unseen_keys_are_poisoned() -> None:
    layout = SequenceLayout.from_intervals([3], torch.tensor([[0, 0, 0, 0, 1]] * 3), segments=[[Text(3)]])
    k, v = poison.poison_unseen_keys(torch.ones(3, 1, 32), torch.ones(3, 1, 32), layout)
    for x in (k, v):
        assert x.isnan().all(-1).flatten().tolist() == [False, True, True]


@pytest.mark.parametrize(
    ("dtype", "magnitude", "expected"),
    [
        (torch.float32, 1.0, 2**-23),
        (torch.float32, 3.9, 2**-22),
        (torch.bfloat16, 0.7, 2**-8),
        (torch.float64, 0.0, 5e-324),
    ],
)
def test_ulp(dtype: torch.dtype, magnitude: float, expected: float) -> None:
    assert tolerances.ulp(dtype, magnitude) == expected


def test_the_bound_is_twice_eagers_error_and_one_ulp() -> None:
    exact, eager = torch.tensor([1.0, -0.25]).double(), torch.tensor([1.0, -0.26])
    assert tolerances.error_bound(exact, eager, torch.float32) == pytest.approx(0.02, rel=1e-4)
    tolerances.assert_within_bound(torch.tensor([1.019, -0.25]), exact, eager)
    with pytest.raises(AssertionError, match=r"thing misses the fp64 reference by 0.021 at \(0,\); allowed: 0.02"):
        tolerances.assert_within_bound(torch.tensor([1.021, -0.25]), exact, eager, "thing")
    assert tolerances.error_bound(exact, exact, torch.float32) == 2**-23
    both = tolerances.error_bound(exact, [exact, eager], torch.float32)
    assert both == tolerances.error_bound(exact, eager, torch.float32), "the largest error of all runs counts"


@pytest.mark.parametrize("wrong", [[0.0, 1.0], [float("nan"), 1.0], [float("-inf"), float("nan")], [float("inf"), 1.0]])
def test_infinity_and_nan_must_be_where_the_reference_has_them(wrong: list[float]) -> None:
    exact = torch.tensor([float("-inf"), 1.0]).double()
    tolerances.assert_within_bound(exact.float(), exact, exact)
    with pytest.raises(AssertionError):
        tolerances.assert_within_bound(torch.tensor(wrong), exact, exact)


def test_bitwise_equality_tells_signs_of_zero_and_accepts_nan() -> None:
    x = torch.tensor([0.0, float("nan")])
    tolerances.assert_bitwise_equal(x, x.clone())
    with pytest.raises(AssertionError, match="differs in 1 of 2"):
        tolerances.assert_bitwise_equal(x, torch.tensor([-0.0, float("nan")]))
