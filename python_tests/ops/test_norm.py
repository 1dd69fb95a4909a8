"""Root-mean-square normalisation of rows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.ops import _registry as registry
from lumos_engine.testing import eager, poison, strategies, tolerances

from .nearby import runs_nearby

NAMES = ("out", "dx", "dweight")


def with_gradients(
    x: Tensor,
    weight: Tensor,
    how: str | int | None = None,
    dtype: torch.dtype | None = None,
    grad: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """NAMES, of x and weight in ``dtype``. ``how``: a backend, None for the one in use, or the order of eager torch."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in (x, weight)]
    out = eager.rms_norm(*leaves, order=how) if isinstance(how, int) else ops.rms_norm(*leaves, backend=how)
    grad = strategies.randn(x.shape, torch.bfloat16, 7) if grad is None else grad
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def assert_exact(x: Tensor, weight: Tensor) -> None:
    with poison.poisoned_outputs():
        actual = with_gradients(x, weight)

    def wide(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return with_gradients(*inputs, "reference", torch.float64)

    exact = wide([x, weight])
    runs = [with_gradients(x, weight, order) for order in tolerances.ORDERS]
    runs.extend(runs_nearby([x, weight], exact, lambda near: with_gradients(*near, 0), wide))
    for name, result, reference, *baselines in zip(NAMES, actual, exact, *runs, strict=True):
        tolerances.assert_within_bound(result, reference, baselines, name)


def example(tokens: int = 200, dtype: torch.dtype = torch.bfloat16, width: int = 104) -> tuple[Tensor, Tensor]:
    """Rows that end within a vector, more than one block of the weight's partial sums."""
    return strategies.randn((tokens, width), dtype, 0), strategies.randn((width,), dtype, 1)


# ---- the right numbers


@given(
    tokens=st.integers(1, 80),
    width=st.integers(1, 100),
    dtype=st.sampled_from(strategies.DTYPES),
    seed=strategies.seeds(),
    scale=st.sampled_from([1e-4, 1.0, 1e4]),
)
def test_results_and_gradients_are_as_exact_as_promised(
    tokens: int, width: int, dtype: torch.dtype, seed: int, scale: float
) -> None:
    x, weight = (strategies.randn(shape, dtype, seed + i) for i, shape in enumerate([(tokens, width), (width,)]))
    assert_exact(x * scale, weight)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_every_instruction_set_is_exact(isa: str, dtype: torch.dtype) -> None:
    assert_exact(*example(dtype=dtype))


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens: int) -> None:
    """None at all: the gradient of the weight is a sum over nothing."""
    x, weight = example(tokens)
    with poison.poisoned_outputs():
        out, dx, dweight = with_gradients(x, weight)
    assert out.shape == dx.shape == x.shape
    assert bool(dweight.any()) == bool(tokens)


def test_eps_is_passed_on() -> None:
    x, weight = torch.full((1, 32), 0.5), torch.ones(32)
    torch.testing.assert_close(ops.rms_norm(x, weight, eps=0.75), x, **tolerances.CLOSED_FORM)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_left_to_torch(dtype: torch.dtype) -> None:
    x, weight = example(3, dtype)
    tolerances.assert_bitwise_equal(ops.rms_norm(x, weight), torch.nn.functional.rms_norm(x, (104,), weight, 1e-6))


# ---- bits


@given(dtype=st.sampled_from(strategies.DTYPES), seed=strategies.seeds())
def test_strides_and_neighbours_change_no_bit(dtype: torch.dtype, seed: int) -> None:
    x, weight = strategies.randn((9, 50), dtype, seed), strategies.randn((50,), dtype, seed + 1)
    grad = strategies.randn((9, 50), dtype, seed + 2)
    whole = with_gradients(x, weight, grad=grad)
    wide = torch.cat((x, grad), 1)  # rows further apart, of which part is another's
    apart = with_gradients(wide[:, :50], weight, grad=wide[:, 50:])
    turned = with_gradients(x.T.contiguous().T, weight, grad=grad.T.contiguous().T)
    for name, *results in zip(NAMES, whole, apart, turned, strict=True):
        for result in results[1:]:
            tolerances.assert_bitwise_equal(result, results[0], name)
    for row in (slice(0, 1), slice(5, 6)):
        for name, part, result in zip(NAMES[:2], with_gradients(x[row], weight, grad=grad[row]), whole, strict=False):
            tolerances.assert_bitwise_equal(part, result[row], name)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_threads_and_runs_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    x, weight = example(1000, dtype)
    weight = weight.float()  # its gradient is not rounded to bf16 then
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = with_gradients(x, weight)
        for threads in (2, 3, 3):
            torch.set_num_threads(threads)
            for name, result, expected in zip(NAMES, with_gradients(x, weight), one, strict=True):
                tolerances.assert_bitwise_equal(result, expected, name)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
@pytest.mark.parametrize("width", [1, 31, 64])
def test_nothing_outside_the_results_is_written(dtype: torch.dtype, width: int) -> None:
    x, weight = example(3, dtype, width)
    guarded = [poison.GuardedTensor((3, width), dtype) for _ in range(2)] + [
        poison.GuardedTensor((width,), torch.float32)
    ]
    out, dx, dweight = (g.tensor for g in guarded)
    registry.call("rms_norm", x, weight.float(), out, 1e-6)
    registry.call("rms_norm_backward", x, x, weight.float(), dx, dweight, 1e-6)
    for g in guarded:
        assert g.tensor.isfinite().all()
        g.assert_untouched()


def test_nan_stays_in_its_row() -> None:
    x, weight = example(5)
    clean = with_gradients(x, weight)
    x[2, 7] = torch.nan
    for spoilt, expected in zip(with_gradients(x, weight)[:2], clean, strict=False):
        assert spoilt[2].isnan().all()
        spoilt[2] = expected[2]
        tolerances.assert_bitwise_equal(spoilt, expected)


# ---- bad input


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "x has dtype int64; allowed: float32", {"x": torch.ones(2, 8, dtype=torch.int64)}),
        (ValueError, r"x has shape \(8,\); it must be \[tokens, width\]", {"x": torch.ones(8)}),
        (ValueError, r"weight has shape \(7,\); it must be \[8\]", {"weight": torch.ones(7)}),
        (TypeError, "weight is a list; it must be a tensor", {"weight": [1.0]}),
        (ValueError, "eps is -1.0; it must be finite and not negative", {"eps": -1.0}),
        (ValueError, "eps is nan", {"eps": float("nan")}),
        (ValueError, "backend is 'gpu'; allowed", {"backend": "gpu"}),
        (TypeError, "x has dtype float64; allowed: float32, bfloat16", {"x": torch.ones(2, 8).double(), "backend": "cpu"}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, object]) -> None:
    arguments: dict[str, object] = {"x": torch.ones(2, 8), "weight": torch.ones(8)}
    with pytest.raises(error, match=f"^rms_norm: {message}"):
        ops.rms_norm(**{**arguments, **changes})  # type: ignore[arg-type]
