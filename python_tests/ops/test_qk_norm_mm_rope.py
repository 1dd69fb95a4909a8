"""Per-head LayerNorm and rotation in one operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.testing import eager, poison, strategies, tolerances

Inputs = tuple[list[Tensor], Tensor]
NAMES = ("q", "k", "dq", "dk", "dq_weight", "dq_bias", "dk_weight", "dk_bias")


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


def example(tokens: int = 200, dtype: torch.dtype = torch.bfloat16) -> Inputs:
    """Two rows of weights, more than one block of the weights' partial sums, upstream gradients of either sign."""
    shapes = [(tokens, 4, 64), (tokens, 2, 64), *[(2, 64)] * 4]
    positions = torch.randint(0, 3000, (tokens, 3), generator=torch.Generator().manual_seed(1), dtype=torch.int32)
    return [strategies.randn(shape, dtype, i) for i, shape in enumerate(shapes)], positions


def apply(tensors: list[Tensor], positions: Tensor, how: str) -> tuple[Tensor, Tensor]:
    if how == "eager":
        q, k, *weights = tensors
        return (
            eager.mm_rope(eager.head_norm(q, *weights[:2]), positions),
            eager.mm_rope(eager.head_norm(k, *weights[2:]), positions),
        )
    return ops.qk_norm_mm_rope(*tensors, positions, backend=how)


def with_gradients(
    tensors: list[Tensor],
    positions: Tensor,
    how: str = "cpu",
    dtype: torch.dtype | None = None,
    grads: list[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """NAMES, of the inputs in ``dtype``."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    results = apply(leaves, positions, how)
    if grads is None:  # the same upstream gradients for every dtype under comparison
        shapes = [r.shape for r in results]
        grads = [strategies.randn(shape, torch.bfloat16, 77 + i).to(leaves[0].dtype) for i, shape in enumerate(shapes)]
    return *(r.detach() for r in results), *torch.autograd.grad(results, leaves, grads)


def assert_exact(tensors: list[Tensor], positions: Tensor) -> None:
    dtype = tensors[0].dtype
    with poison.poisoned_outputs():
        actual = with_gradients(tensors, positions)
    exact = with_gradients(tensors, positions, "reference", torch.float64)
    baseline = with_gradients(tensors, positions, "eager", dtype)
    for name, *results in zip(NAMES, actual, exact, baseline, strict=True):
        summed = name.endswith(("weight", "bias"))  # over tokens and heads
        terms = tensors[0].shape[0] * tensors[0].shape[1] if summed else 1
        tolerances.assert_within_bound(*results, name, terms=terms)


def assert_same_bits(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, left, right in zip(NAMES, actual, expected, strict=False):
        tolerances.assert_bitwise_equal(left, right, name)


# ---- the right numbers


@given(inputs())
def test_results_and_gradients_are_as_exact_as_promised(case: Inputs) -> None:
    assert_exact(*case)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_every_instruction_set_is_exact(isa: str, dtype: torch.dtype) -> None:
    assert_exact(*example(dtype=dtype))


def test_a_large_mean_takes_no_digits_from_the_variance() -> None:
    tensors, positions = example(dtype=torch.float32)
    tensors[:2] = [1000 + tensors[0], 1000 - tensors[1]]
    assert_exact(tensors, positions)


@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens: int) -> None:
    """None at all: the gradients of the weights are sums over nothing."""
    tensors, positions = example()
    results = with_gradients([t[:tokens] for t in tensors[:2]] + tensors[2:], positions[:tokens])
    assert [r.shape for r in results[:4]] == [(tokens, 4, 64), (tokens, 2, 64)] * 2
    assert all(bool(r.any()) == bool(tokens) for r in results[4:])


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


def test_parity_holds_for_the_gradient_too() -> None:
    """With weights that make one half of the channels 0, one product is left, exact in fp32 where both are bf16."""
    q, k, positions = (x[:5] for x in (*example()[0][:2], example()[1]))
    bias = torch.ones(1, 64)
    bias[:, 32:] = 0.0
    bias.requires_grad_()
    zero = torch.zeros(1, 64)
    results = [
        ops.qk_norm_mm_rope(q[:, :1], k, zero, bias, zero, zero, positions, parity=True, backend=backend)[0]
        for backend in ("reference", "cpu")
    ]
    tolerances.assert_bitwise_equal(results[1], results[0])
    plain = ops.qk_norm_mm_rope(q[:, :1], k, zero, bias, zero, zero, positions)[0]
    upstream = torch.zeros_like(plain)
    upstream[0, 0, 32:] = 1.0  # of one token: the gradients are sines
    grads = [torch.autograd.grad(r, bias, upstream)[0] for r in (*results, plain)]
    tolerances.assert_bitwise_equal(grads[1], grads[0])
    assert not torch.equal(grads[2], grads[0])


# ---- bits


@given(inputs())
def test_memory_order_and_neighbours_change_no_bit(case: Inputs) -> None:
    tensors, positions = case
    grads = [strategies.randn(x.shape, x.dtype, 5 + i) for i, x in enumerate(tensors[:2])]
    whole = with_gradients([t.contiguous() for t in tensors], positions, grads=grads)
    for order in strategies.MEMORY_ORDERS:
        ordered = [strategies.in_order(grad, order) for grad in grads]
        assert_same_bits(with_gradients(tensors, positions, grads=ordered), whole)
    for token in range(0, len(positions), 7):
        alone = slice(token, token + 1)
        part = with_gradients(
            [t[alone] for t in tensors[:2]] + tensors[2:], positions[alone], grads=[g[alone] for g in grads]
        )
        assert_same_bits(part[:4], tuple(x[alone] for x in whole))


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_threads_and_runs_change_no_bit(isa: str, dtype: torch.dtype) -> None:
    tensors, positions = example(tokens=1000, dtype=dtype)
    tensors[2:] = [weight.float() for weight in tensors[2:]]  # their gradients are not rounded to bf16 then
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = with_gradients(tensors, positions)
        for threads in (2, 3, 3):
            torch.set_num_threads(threads)
            assert_same_bits(with_gradients(tensors, positions), one)
    finally:
        torch.set_num_threads(before)


def test_nan_stays_with_its_token_and_head() -> None:
    tensors, positions = example(tokens=5)
    clean = with_gradients(tensors, positions)
    tensors[0][2, 1, 7] = torch.nan
    for name, spoilt, expected in zip(NAMES[:4], with_gradients(tensors, positions), clean, strict=False):
        if name in ("q", "dq"):
            assert spoilt[2, 1].isnan().all()
            spoilt[2, 1] = expected[2, 1]
        tolerances.assert_bitwise_equal(spoilt, expected, name)


def test_arguments_that_are_not_contiguous_are_copied() -> None:
    from lumos_engine.ops._registry import copies

    tensors, positions = example()
    positions = positions[:, :1].expand(-1, 3)
    expected = with_gradients(tensors, positions.contiguous())
    strided = [t.mT.contiguous().mT for t in tensors]
    before = copies["qk_norm_mm_rope.q"]
    assert_same_bits(apply(strided, positions, "cpu"), expected)
    assert copies["qk_norm_mm_rope.q"] == before + 1
    grads = [strategies.randn(x.shape, x.dtype, 77 + i).mT.contiguous().mT for i, x in enumerate(tensors[:2])]
    assert_same_bits(with_gradients(strided, positions, grads=grads), expected)


# ---- framework


def test_opcheck() -> None:
    tensors, positions = example(tokens=5)
    q, k, *weights = tensors
    rest = (positions, ops.inverse_frequencies(64), 1e-5, True)
    weights = [w.float() for w in weights]
    leaves = [x.clone().requires_grad_() for x in (q, k, *weights)]
    torch.library.opcheck(torch.ops.lumos._qk_norm_mm_rope.default, (*leaves, *rest))
    torch.library.opcheck(
        torch.ops.lumos._qk_norm_mm_rope_backward.default, (q, k, q, k, weights[0], weights[2], *rest)
    )


@pytest.mark.filterwarnings("ignore")
def test_compiles_as_one_graph_and_once_more_for_any_number_of_tokens() -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(lambda *x: ops.qk_norm_mm_rope(*x), fullgraph=True, backend=counting)
    for tokens in (4, 7, 12, 70):
        tensors, positions = example(tokens)
        leaves = [x.requires_grad_() for x in tensors]
        results = [function(*leaves, positions) for function in (compiled, ops.qk_norm_mm_rope)]
        grads = [torch.autograd.grad(r, leaves, [torch.ones_like(x) for x in r]) for r in results]
        assert_same_bits((*results[0], *grads[0]), (*results[1], *grads[1]))
    assert len(graphs) <= 2


# ---- bad input


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
        (ValueError, "eps is -1.0; it must be finite and not negative", {"eps": -1.0}),
        (ValueError, "eps is nan", {"eps": float("nan")}),
        (ValueError, r"qk_norm_mm_rope: positions has shape \(3, 3\); it must be \[2, 3\]", {"positions": torch.zeros(3, 3, dtype=torch.int32)}),
        (ValueError, r"qk_norm_mm_rope: inv_freq has shape \(32,\); it must be \[16\]", {"inv_freq": torch.ones(32)}),
        (TypeError, "q has dtype int64", {"q": torch.ones(2, 4, 32, dtype=torch.int64)}),
        (RuntimeError, "no CUDA kernel of it", {"backend": "cuda"}),
        (TypeError, "q has dtype float64", {"q": torch.ones(2, 4, 32, dtype=torch.float64)}),
    ],
)  # fmt: skip
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, object]) -> None:
    arguments: dict[str, object] = {
        "q": torch.ones(2, 4, 32), "k": torch.ones(2, 2, 32), "q_weight": torch.ones(1, 32), "q_bias": torch.ones(1, 32),
        "k_weight": torch.ones(1, 32), "k_bias": torch.ones(1, 32), "positions": torch.zeros(2, 3, dtype=torch.int32),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.qk_norm_mm_rope(**{**arguments, **changes})  # type: ignore[arg-type]
