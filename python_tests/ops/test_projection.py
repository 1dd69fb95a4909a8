"""Linear layers, alone and behind the activation of SwiGLU."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.ops import _registry as registry
from lumos_engine.ops import projection
from lumos_engine.ops.projection import transposed
from lumos_engine.testing import eager, poison, strategies, tolerances

from .nearby import runs_nearby

NAMES = ("out", "dgate", "dup", "dweight")


def swiglu(
    tensors: list[Tensor], how: str | int | None = None, dtype: torch.dtype | None = None, grad: Tensor | None = None
) -> tuple[Tensor, ...]:
    """NAMES, of the inputs in ``dtype``. ``how``: a backend, None for the one in use, or the order of eager torch."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    out = eager.swiglu_linear(*leaves, order=how) if isinstance(how, int) else ops.swiglu_linear(*leaves, backend=how)
    grad = strategies.randn(out.shape, torch.bfloat16, 7) if grad is None else grad
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


def assert_exact(tensors: list[Tensor]) -> None:
    with poison.poisoned_outputs():
        actual = swiglu(tensors)

    def wide(inputs: list[Tensor]) -> tuple[Tensor, ...]:
        return swiglu(inputs, "reference", torch.float64)

    exact = wide(tensors)
    runs = [swiglu(tensors, order) for order in tolerances.ORDERS]
    runs.extend(runs_nearby(tensors, exact, lambda near: swiglu(near, 0), wide))
    for name, result, reference, *baselines in zip(NAMES, actual, exact, *runs, strict=True):
        tolerances.assert_within_bound(result, reference, baselines, name)


def operands(tokens: int = 60, width: int = 104, outs: int = 48, dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    """[gate, up, weight]; rows that end within a vector."""
    return [strategies.randn(s, dtype, i) for i, s in enumerate([(tokens, width), (tokens, width), (outs, width)])]


# ---- the right numbers


@given(
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    dtype=st.sampled_from(strategies.DTYPES),
    seed=strategies.seeds(),
    scale=st.sampled_from([1.0, 20.0]),
)
@example(sizes=(1, 1, 1), dtype=torch.float32, seed=4, scale=20.0)  # e^-x was rounded at the size of x
@example(sizes=(1, 1, 1), dtype=torch.float32, seed=49, scale=20.0)  # eager torch is exact here, and not nearby
def test_swiglu_is_as_exact_as_promised(
    sizes: tuple[int, int, int], dtype: torch.dtype, seed: int, scale: float
) -> None:
    tokens, width, outs = sizes
    shapes = [(tokens, width), (tokens, width), (outs, width)]
    gate, up, weight = (strategies.randn(shape, dtype, seed + i) for i, shape in enumerate(shapes))
    assert_exact([gate * scale, up, weight])


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_every_instruction_set_is_exact(isa: str, dtype: torch.dtype) -> None:
    assert_exact(operands(dtype=dtype))


def test_gates_far_from_zero_pass_all_or_nothing() -> None:
    gate = torch.tensor([[-1e30, -200.0, -100.0, 0.0, 100.0, 1e30]])
    identity = torch.eye(6)
    out, dgate, dup, _ = swiglu([gate, torch.ones(1, 6), identity], grad=torch.ones(1, 6))
    assert out.tolist() == dup.tolist() == [[0, 0, 0, 0, 100, gate[0, 5]]]
    assert dgate.tolist() == [[0, 0, 0, 0.5, 1, 1]]


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_linear_is_torchs(dtype: torch.dtype) -> None:
    x, _, weight = operands(dtype=dtype)
    grad = strategies.randn((60, 48), dtype, 9)
    ours, torchs = [], []
    for results, function in ((ours, ops.linear), (torchs, torch.nn.functional.linear)):
        leaves = [t.clone().requires_grad_() for t in (x, weight)]
        out = function(*leaves)
        results.extend([out, *torch.autograd.grad(out, leaves, grad)])
    for name, left, right in zip(("out", "dx"), ours, torchs, strict=False):
        tolerances.assert_bitwise_equal(left, right, name)
    exact = grad.double().T @ x.double()
    tolerances.assert_within_bound(ours[2], exact, torchs[2], "dweight")


@given(sizes=st.tuples(*[st.integers(1, 90)] * 3), seed=strategies.seeds())
def test_the_gradient_of_a_large_weight_is_exact_in_both_forms(sizes: tuple[int, int, int], seed: int) -> None:
    tokens, outs, ins = sizes
    grad, x = (strategies.randn((tokens, n), torch.bfloat16, seed + i) for i, n in enumerate((outs, ins)))
    with poison.poisoned_outputs(), mock.patch.object(projection, "_WORTH_TRANSPOSING", 0):
        actual = projection.weight_gradient(grad, x)
    assert actual.is_contiguous()
    tolerances.assert_within_bound(actual, grad.double().T @ x.double(), grad.T @ x)


@given(rows=st.integers(0, 300), columns=st.integers(0, 300), padding=st.integers(0, 40))
def test_transposed_moves_every_element(rows: int, columns: int, padding: int) -> None:
    x = (
        torch.arange(rows * (columns + padding))
        .to(torch.int16)
        .view(torch.bfloat16)
        .view(rows, columns + padding)[:, :columns]
    )
    with poison.poisoned_outputs():
        tolerances.assert_bitwise_equal(transposed(x), x.T)


def test_every_instruction_set_transposes(isa: str) -> None:
    x = torch.arange(530 * 300).to(torch.int16).view(torch.bfloat16).view(530, 300)
    tolerances.assert_bitwise_equal(transposed(x), x.T)


def test_autocast_casts_once_and_takes_gradients_back() -> None:
    gate, up, weight = (t.requires_grad_() for t in operands(5, dtype=torch.float32))
    with torch.autocast("cpu", torch.bfloat16):
        outs = ops.swiglu_linear(gate, up.bfloat16(), weight), ops.linear(gate, weight)
    assert [out.dtype for out in outs] == [torch.bfloat16] * 2
    grads = torch.autograd.grad(outs, (gate, weight), [torch.ones_like(out) for out in outs])
    assert [grad.dtype for grad in grads] == [torch.float32] * 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_dtypes_are_left_to_torch(dtype: torch.dtype) -> None:
    gate, up, weight = operands(5, dtype=dtype)
    expected = torch.nn.functional.silu(gate) * up @ weight.T
    tolerances.assert_bitwise_equal(ops.swiglu_linear(gate, up, weight), expected)


# ---- bits


@given(dtype=st.sampled_from(strategies.DTYPES), seed=strategies.seeds())
def test_strides_and_neighbours_change_no_bit_of_the_activation(dtype: torch.dtype, seed: int) -> None:
    gate, up, grad = (strategies.randn((9, 50), dtype, seed + i) for i in range(3))
    identity = torch.eye(50, dtype=dtype)  # products with it are exact
    whole = swiglu([gate, up, identity], grad=grad)
    wide = torch.cat((gate, up), 1)  # one product's two halves
    apart = swiglu([wide[:, :50], wide[:, 50:], identity], grad=grad)
    turned = swiglu([gate.T.contiguous().T, up, identity], grad=grad)
    alone = swiglu([gate[5:6], up[5:6], identity], grad=grad[5:6])
    for name, *results, part in zip(NAMES[:3], whole, apart, turned, alone, strict=False):
        for result in results[1:]:
            tolerances.assert_bitwise_equal(result, results[0], name)
        tolerances.assert_bitwise_equal(part, results[0][5:6], name)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_threads_change_no_bit_of_the_activation(isa: str, dtype: torch.dtype) -> None:
    gate, up = (strategies.randn((3000, 104), dtype, seed) for seed in (0, 1))
    before = torch.get_num_threads()
    runs = []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            outs = [torch.full_like(gate, torch.nan) for _ in range(4)]
            registry.call("swiglu", gate, up, outs[0])
            registry.call("swiglu_backward", up, gate, up, *outs[1:])
            runs.append(outs)
    finally:
        torch.set_num_threads(before)
    for results in zip(*runs, strict=True):
        for result in results[1:]:
            tolerances.assert_bitwise_equal(result, results[0])
    tolerances.assert_bitwise_equal(runs[0][0], runs[0][1], "the product that the backward computes again")


@pytest.mark.parametrize("dtype", strategies.DTYPES)
@pytest.mark.parametrize("width", [1, 31, 64])
def test_nothing_outside_the_results_is_written(dtype: torch.dtype, width: int) -> None:
    gate, up = (strategies.randn((3, width), dtype, seed) for seed in (0, 1))
    guarded = [poison.GuardedTensor((3, width), dtype) for _ in range(4)]
    outs = [g.tensor for g in guarded]
    registry.call("swiglu", gate, up, outs[0])
    registry.call("swiglu_backward", gate, gate, up, *outs[1:])
    if dtype == torch.bfloat16:
        guarded.append(poison.GuardedTensor((width, 3), dtype))
        registry.call("transpose", gate, guarded[-1].tensor)
    for g in guarded:
        assert g.tensor.isfinite().all()
        g.assert_untouched()


# ---- bad input


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "gate has dtype int64; allowed: float32", {"gate": torch.ones(2, 8, dtype=torch.int64)}),
        (TypeError, "up has dtype bfloat16; allowed: float32", {"up": torch.ones(2, 8).bfloat16()}),
        (ValueError, r"gate has shape \(8,\); it must be \[tokens, width\]", {"gate": torch.ones(8)}),
        (ValueError, r"up has shape \(3, 8\); it must be \[2, 8\]", {"up": torch.ones(3, 8)}),
        (ValueError, r"weight has shape \(8, 4\); it must be \[out_features, 8\]", {"weight": torch.ones(8, 4)}),
        (TypeError, "weight is a list; it must be a tensor", {"weight": [1.0]}),
        (ValueError, "backend is 'gpu'; allowed", {"backend": "gpu"}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, object]) -> None:
    arguments: dict[str, object] = {"gate": torch.ones(2, 8), "up": torch.ones(2, 8), "weight": torch.ones(4, 8)}
    with pytest.raises(error, match=f"^swiglu_linear: {message}"):
        ops.swiglu_linear(**{**arguments, **changes})  # type: ignore[arg-type]


def test_bad_input_of_linear_is_named() -> None:
    with pytest.raises(ValueError, match=r"^linear: weight has shape \(3, 7\); it must be \[out_features, 8\]"):
        ops.linear(torch.ones(2, 8), torch.ones(3, 7))
