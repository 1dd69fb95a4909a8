"""Per-head LayerNorm and rotation in one operation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.testing import eager, poison, strategies, tolerances

Inputs = tuple[list[Tensor], Tensor]


@st.composite
def inputs(draw: st.DrawFn) -> Inputs:
    """([q, k, q_weight, q_bias, k_weight, k_bias], positions): grouped heads, one or several rows of weights."""
    tokens, head_dim = draw(st.integers(1, 30)), draw(st.sampled_from(strategies.HEAD_DIMS))
    rows = draw(st.sampled_from([1, 1, 2]))
    kv_heads = rows * draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 3))
    dtype, seed = draw(st.sampled_from(strategies.DTYPES)), draw(st.integers(0, 2**30))
    shapes = [(tokens, heads, head_dim), (tokens, kv_heads, head_dim)]
    q, k = (
        strategies.in_order(strategies.randn(shape, dtype, seed + i), draw(strategies.memory_orders()))
        for i, shape in enumerate(shapes)
    )
    weights = [strategies.randn((rows, head_dim), dtype, seed + 2 + i) for i in range(4)]
    return [q, k, *weights], draw(strategies.position_triples(tokens))


def apply(tensors: list[Tensor], positions: Tensor, how: str) -> tuple[Tensor, Tensor]:
    if how == "eager":
        q, k, *weights = tensors
        return (
            eager.mm_rope(eager.head_norm(q, *weights[:2]), positions),
            eager.mm_rope(eager.head_norm(k, *weights[2:]), positions),
        )
    return ops.qk_norm_mm_rope(*tensors, positions, backend=how)


def with_gradients(
    tensors: list[Tensor], positions: Tensor, how: str, dtype: torch.dtype
) -> tuple[list[Tensor], list[Tensor]]:
    leaves = [t.detach().to(dtype).requires_grad_() for t in tensors]
    results = apply(leaves, positions, how)
    # The same upstream gradients for every dtype under comparison.
    grads = [strategies.randn(r.shape, torch.bfloat16, 77 + i).to(dtype) for i, r in enumerate(results)]
    return [r.detach() for r in results], list(torch.autograd.grad(results, leaves, grads))


@given(inputs())
def test_results_and_gradients_are_as_exact_as_promised(case: Inputs) -> None:
    tensors, positions = case
    dtype = tensors[0].dtype
    with poison.poisoned_outputs():
        actual = with_gradients(tensors, positions, "cpu", dtype)
    exact = with_gradients(tensors, positions, "reference", torch.float64)
    baseline = with_gradients(tensors, positions, "eager", dtype)
    names = ("q", "k"), ("dq", "dk", "dq_weight", "dq_bias", "dk_weight", "dk_bias")
    for group, *parts in zip(names, actual, exact, baseline, strict=True):
        for name, *tensor in zip(group, *parts, strict=True):
            # Gradients of weights sum over tokens and heads; those of q and k pass through four roundings of their own size.
            summed = name.endswith(("weight", "bias"))
            terms = tensors[0].shape[0] * tensors[0].shape[1] if summed else 4 if name.startswith("d") else 1
            tolerances.assert_within_bound(*tensor, name, terms=terms)


def test_head_j_uses_row_j_over_heads_per_row() -> None:
    q, k, positions = torch.randn(1, 4, 32), torch.randn(1, 2, 32), torch.zeros(1, 3, dtype=torch.int32)
    bias = torch.tensor([[1.0], [2.0]]).expand(2, 32)
    zero = torch.zeros(2, 32)
    for backend in ("reference", "cpu"):
        rotated_q, rotated_k = ops.qk_norm_mm_rope(q, k, zero, bias, zero, bias, positions, backend=backend)
        assert rotated_q[0, :, 0].tolist() == [1, 1, 2, 2]
        assert rotated_k[0, :, 0].tolist() == [1, 2]


def test_gradient_of_the_reference() -> None:
    shapes = [(2, 2, 32), (2, 1, 32), *[(1, 32)] * 4]
    tensors = [strategies.randn(s, torch.float32, i).double().requires_grad_() for i, s in enumerate(shapes)]
    positions = torch.tensor([[1, 2, 3], [40, 5, 6]], dtype=torch.int32)
    assert torch.autograd.gradcheck(lambda *t: ops.qk_norm_mm_rope(*t, positions, backend="reference"), tensors)


def test_fp32_weights_under_autocast_keep_the_dtype_of_q() -> None:
    q, k = torch.randn(3, 2, 32).bfloat16(), torch.randn(3, 2, 32).bfloat16()
    weights = [torch.randn(1, 32) for _ in range(4)]
    positions = torch.zeros(3, 3, dtype=torch.int32)
    with torch.autocast("cpu", torch.bfloat16):
        results = ops.qk_norm_mm_rope(q, k, *weights, positions)
    assert [r.dtype for r in results] == [torch.bfloat16] * 2


def test_eps_and_parity_are_passed_on() -> None:
    q = torch.full((2, 1, 32), 0.001).cumsum(-1).bfloat16()
    weights = [torch.ones(1, 32), torch.zeros(1, 32)] * 2
    positions = torch.full((2, 3), 77, dtype=torch.int32)
    for backend in ("reference", "cpu"):
        plain, *others = (
            ops.qk_norm_mm_rope(q, q, *weights, positions, backend=backend, **changes)[0]  # type: ignore[arg-type]
            for changes in ({}, {"eps": 1.0}, {"parity": True})
        )
        assert not any(torch.equal(plain, other) for other in others)


def test_compiles_without_graph_breaks() -> None:
    q, k, positions = torch.randn(4, 2, 32), torch.randn(4, 1, 32), torch.ones(4, 3, dtype=torch.int32)
    weights = [torch.randn(1, 32) for _ in range(4)]

    def function(q: Tensor, k: Tensor) -> Tensor:
        a, b = ops.qk_norm_mm_rope(q, k, *weights, positions)
        return a.sum() + b.sum()

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(q, k), function(q, k))


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "k has dtype bfloat16; allowed: float32", {"k": torch.ones(2, 2, 32).bfloat16()}),
        (ValueError, r"k has shape \(3, 2, 32\); it must be \[2, kv_heads, 32\]", {"k": torch.ones(3, 2, 32)}),
        (ValueError, r"q_weight has shape \(32,\); it must be \[rows, 32\]", {"q_weight": torch.ones(32)}),
        (ValueError, r"k_bias has shape \(2, 32\); it must be \[1, 32\]", {"k_bias": torch.ones(2, 32)}),
        (ValueError, "q_weight has 3 rows; their number must divide the 4 heads of q", {"q_weight": torch.ones(3, 32), "q_bias": torch.ones(3, 32)}),
        (ValueError, "q_weight has 0 rows", {"q_weight": torch.ones(0, 32), "q_bias": torch.ones(0, 32)}),
        (ValueError, "head_dim is 16", {"q": torch.ones(2, 4, 16)}),
        (TypeError, "positions has dtype float32", {"positions": torch.zeros(2, 3)}),
        (TypeError, "q has dtype float64", {"q": torch.ones(2, 4, 32, dtype=torch.float64)}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, Tensor]) -> None:
    arguments = {
        "q": torch.ones(2, 4, 32), "k": torch.ones(2, 2, 32), "q_weight": torch.ones(1, 32), "q_bias": torch.ones(1, 32),
        "k_weight": torch.ones(1, 32), "k_bias": torch.ones(1, 32), "positions": torch.zeros(2, 3, dtype=torch.int32),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.qk_norm_mm_rope(**{**arguments, **changes})
