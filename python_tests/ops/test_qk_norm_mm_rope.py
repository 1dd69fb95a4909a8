"""Per-head LayerNorm and rotation in one operation."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.ops import _registry as registry
from lumos_engine.ops._registry import copies
from lumos_engine.testing import check_backend, eager, poison, strategies, tolerances
from lumos_engine.testing.backends import BACKENDS, COMPILED, DTYPES, running

Inputs = tuple[list[Tensor], Tensor]
NAMES = ("q", "k", "dq", "dk", "dq_weight", "dq_bias", "dk_weight", "dk_bias")


@st.composite
def inputs(draw: st.DrawFn, backend: str) -> Inputs:
    """([q, k, q_weight, q_bias, k_weight, k_bias], positions): grouped heads, one or several rows of weights."""
    tokens, head_dim = draw(st.integers(1, 30)), draw(st.sampled_from(strategies.HEAD_DIMS))
    rows = draw(st.sampled_from([1, 1, 2]))
    kv_heads = rows * draw(st.integers(1, 2))
    heads = kv_heads * draw(st.integers(1, 3))
    dtype, seed = draw(st.sampled_from(DTYPES[backend])), draw(st.integers(0, 2**30))
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


def apply(tensors: list[Tensor], positions: Tensor, how: str | int | None = None) -> tuple[Tensor, Tensor]:
    """``how``: a backend, None for the one in use, or the order of the sums of eager torch."""
    if isinstance(how, int):
        q, k, *weights = tensors
        return eager.qk_norm_mm_rope(q, k, *weights, positions, order=how)
    return ops.qk_norm_mm_rope(*tensors, positions, backend=how)


def upstream(tensors: list[Tensor], seed: int = 77) -> list[Tensor]:
    """Gradients of the results, the same for every dtype under comparison."""
    return [strategies.randn(x.shape, torch.bfloat16, seed + i).to(x.dtype) for i, x in enumerate(tensors[:2])]


def with_gradients(
    tensors: list[Tensor],
    positions: Tensor,
    how: str | int | None = None,
    dtype: torch.dtype | None = None,
    grads: list[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """NAMES, of the inputs in ``dtype``."""
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    results = apply(leaves, positions, how)
    grads = [grad.to(results[0]) for grad in grads or upstream([x.cpu() for x in tensors])]
    return *(r.detach() for r in results), *torch.autograd.grad(results, leaves, grads)


def turned(tensors: list[Tensor], positions: Tensor) -> Inputs:
    """The call and such calls with the channels of q and k turned round, packed: what eager torch misses by in few
    tokens, in results that belong to one token, is a matter of luck.
    """
    q, k, *weights = tensors
    turns = range(1 + 1000 // max(1, k.shape[:2].numel()))
    more = [torch.cat([x.roll(turn, -1) for turn in turns]) for x in (q, k)]
    return [*more, *weights], positions.repeat(len(turns), 1)


def assert_exact(tensors: list[Tensor], positions: Tensor, backend: str = "cpu", schedule: int | None = None) -> None:
    dtype = tensors[0].dtype
    with running(backend, schedule) as place, poison.poisoned_outputs():
        actual = [x.cpu() for x in with_gradients([place(x) for x in tensors], place(positions))]
    exact = with_gradients(tensors, positions, "reference", torch.float64)
    runs = [with_gradients(tensors, positions, order, dtype) for order in tolerances.ORDERS]
    many = turned(tensors, positions)
    measured = zip(with_gradients(*many, "reference", torch.float64), with_gradients(*many, 0, dtype), strict=True)
    for name, result, reference, many_rows, *baselines in zip(NAMES, actual, exact, measured, *runs, strict=True):
        bound = tolerances.error_bound(reference, baselines, dtype)
        if not name.endswith(("_weight", "_bias")):
            bound = max(bound, tolerances.error_bound(*many_rows, dtype))
        tolerances.assert_within(result, reference, bound, name)


def assert_same_bits(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> None:
    for name, left, right in zip(NAMES, actual, expected, strict=False):
        tolerances.assert_bitwise_equal(left, right, name)


# ---- the right numbers


@pytest.mark.parametrize("backend", COMPILED)
@given(data=st.data(), schedule=strategies.seeds())
def test_results_and_gradients_are_as_exact_as_promised(data: st.DataObject, schedule: int, backend: str) -> None:
    assert_exact(*data.draw(inputs(backend)), backend, schedule)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_every_instruction_set_is_exact(isa: str, dtype: torch.dtype) -> None:
    assert_exact(*example(dtype=dtype))


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
def test_cuda_is_exact(dtype: torch.dtype, backend: str) -> None:
    assert_exact(*example(dtype=dtype), backend)


@pytest.mark.parametrize("backend", COMPILED)
def test_a_large_mean_takes_no_digits_from_the_variance(backend: str) -> None:
    tensors, positions = example(dtype=torch.float32)
    tensors[:2] = [1000 + tensors[0], 1000 - tensors[1]]
    assert_exact(tensors, positions, backend)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("tokens", [0, 1])
def test_few_tokens(tokens: int, backend: str) -> None:
    """None at all: the gradients of the weights are sums over nothing."""
    tensors, positions = example()
    with running(backend) as place, poison.poisoned_outputs():
        few = [place(t[:tokens]) for t in tensors[:2]] + [place(t) for t in tensors[2:]]
        results = with_gradients(few, place(positions[:tokens]))
    assert [r.shape for r in results[:4]] == [(tokens, 4, 64), (tokens, 2, 64)] * 2
    assert all(bool(r.any()) == bool(tokens) for r in results[4:])


@pytest.mark.parametrize("backend", BACKENDS)
def test_head_j_uses_row_j_over_heads_per_row(backend: str) -> None:
    q, k, positions = torch.randn(1, 4, 32), torch.randn(1, 2, 32), torch.zeros(1, 3, dtype=torch.int32)
    bias = torch.tensor([[1.0], [2.0]]).expand(2, 32)
    zero = torch.zeros(2, 32)
    with running(backend) as place:
        rotated_q, rotated_k = ops.qk_norm_mm_rope(*map(place, (q, k, zero, bias, zero, bias, positions)))
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


@pytest.mark.parametrize("backend", BACKENDS)
def test_eps_and_parity_are_passed_on(backend: str) -> None:
    q = torch.full((2, 1, 32), 0.001).cumsum(-1).bfloat16()
    weights = [torch.ones(1, 32), torch.zeros(1, 32)] * 2
    positions = torch.full((2, 3), 77, dtype=torch.int32)
    with running(backend) as place:
        q, positions, *weights = map(place, (q, positions, *weights))
        plain, *others = (
            ops.qk_norm_mm_rope(q, q, *weights, positions, **changes)[0]  # type: ignore[arg-type]
            for changes in ({}, {"eps": 1.0}, {"parity": True})
        )
    assert not any(torch.equal(plain, other) for other in others)


@pytest.mark.parametrize("backend", COMPILED)
def test_parity_holds_for_the_gradient_too(backend: str) -> None:
    """With weights that make one half of the channels 0, one product is left, exact in fp32 where both are bf16."""
    q, k, positions = (x[:5] for x in (*example()[0][:2], example()[1]))
    bias = torch.ones(1, 64)
    bias[:, 32:] = 0.0
    zero = torch.zeros(1, 64)
    upstream = torch.zeros(5, 1, 64, dtype=q.dtype)
    upstream[0, 0, 32:] = 1.0  # of one token: the gradients are sines

    def rotated_and_gradient(how: str, parity: bool) -> list[Tensor]:
        with running(how) as place:
            first, second, nothing, leaf, at = map(place, (q[:, :1], k, zero, bias, positions))
            leaf = leaf.detach().requires_grad_()
            rotated = ops.qk_norm_mm_rope(first, second, nothing, leaf, nothing, nothing, at, parity=parity)[0]
            return [rotated.detach().cpu(), torch.autograd.grad(rotated, leaf, place(upstream))[0].cpu()]

    expected, actual, plain = (
        rotated_and_gradient(*how) for how in (("reference", True), (backend, True), (backend, False))
    )
    for left, right in zip(actual, expected, strict=True):
        tolerances.assert_bitwise_equal(left, right)
    assert not torch.equal(plain[1], actual[1])


# ---- bits


@pytest.mark.parametrize("backend", COMPILED)
@given(data=st.data(), schedule=strategies.seeds())
def test_memory_order_and_neighbours_change_no_bit(data: st.DataObject, schedule: int, backend: str) -> None:
    tensors, positions = data.draw(inputs(backend))
    grads = upstream(tensors)
    with running(backend) as place:
        tensors, grads, positions = [place(t) for t in tensors], [place(g) for g in grads], place(positions)
        whole = with_gradients([t.contiguous() for t in tensors], positions, grads=grads)
    with running(backend, schedule):
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


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
def test_schedules_change_no_bit_on_cuda(dtype: torch.dtype, backend: str) -> None:
    """Of the gradients of the weights neither, whose sums several blocks share."""
    tensors, positions = example(tokens=300, dtype=dtype)
    tensors[2:] = [weight.float() for weight in tensors[2:]]
    runs = []
    for schedule in (None, 1, 2):
        with running(backend, schedule) as place, poison.poisoned_outputs():
            runs.append([x.cpu() for x in with_gradients([place(t) for t in tensors], place(positions))])
    for run in runs[1:]:
        assert_same_bits(run, runs[0])


@pytest.mark.parametrize("backend", COMPILED)
def test_nothing_outside_the_results_is_written(backend: str) -> None:
    """By a call of the extension: its arguments lie between guard bands, heads and channels of each width."""
    for dtype in DTYPES[backend]:
        for tokens, heads, kv_heads, rows, head_dim in ((3, 2, 1, 1, 32), (9, 6, 3, 3, 96), (5, 4, 2, 2, 256)):
            x = [strategies.randn((tokens, n, head_dim), dtype, n) for n in (heads, kv_heads)]
            weights = [strategies.randn((rows, head_dim), torch.float32, 5 + i) for i in range(4)]
            positions = torch.randint(0, 99, (tokens, 3), dtype=torch.int32)
            rest = positions, ops.inverse_frequencies(head_dim)
            outs = [poison.GuardedTensor(t.shape, dtype) for t in x]
            grads = [poison.GuardedTensor(t.shape, t.dtype) for t in (*x, *weights)]
            with running(backend) as place:
                there = [place(g.tensor) for g in (*outs, *grads)]
                x, weights, rest = ([place(t) for t in ts] for ts in (x, weights, rest))
                registry.call("qk_norm_mm_rope", *x, *weights, *rest, *there[:2], 1e-5, False)
                kernel, scales = "qk_norm_mm_rope_backward", weights[::2]
                workspace = registry.workspace(kernel, *x, *scales)
                registry.call(kernel, *x, *x, *scales, *rest, *there[2:], workspace, 1e-5, False)
            for guarded, written in zip((*outs, *grads), there, strict=True):
                assert written.isfinite().all()
                guarded.assert_untouched()


@pytest.mark.parametrize("backend", COMPILED)
def test_nan_stays_with_its_token_and_head(backend: str) -> None:
    tensors, positions = example(tokens=5)
    with running(backend) as place:
        tensors, positions = [place(t) for t in tensors], place(positions)
        clean = with_gradients(tensors, positions)
        tensors[0][2, 1, 7] = torch.nan
        results = with_gradients(tensors, positions)
    for name, spoilt, expected in zip(NAMES[:4], results, clean, strict=False):
        if name in ("q", "dq"):
            assert spoilt[2, 1].isnan().all()
            spoilt[2, 1] = expected[2, 1]
        tolerances.assert_bitwise_equal(spoilt, expected, name)


@pytest.mark.parametrize("backend", COMPILED)
def test_heads_that_do_not_exist_add_nothing_to_the_weights_gradients(backend: str) -> None:
    """Without eps the normalised row of a lane without a head would be 0 / 0."""
    tensors, positions = example(tokens=1, dtype=torch.float32)
    tensors[:2] = [tensors[0][:, :2, :32], tensors[1][:, :, :32]]
    tensors[2:] = [t[:, :32] for t in tensors[2:]]
    with running(backend) as place:
        leaves = [place(t).detach().requires_grad_() for t in tensors]
        results = ops.qk_norm_mm_rope(*leaves, place(positions), eps=0.0)
        grads = torch.autograd.grad(results, leaves, [torch.ones_like(r) for r in results])
    assert all(grad.isfinite().all() for grad in grads)


@pytest.mark.parametrize("backend", ["cuda"])
def test_properties_on_cuda(backend: str) -> None:
    with running(backend, 7) as place:

        def kernel(*tensors: Tensor, **options: bool) -> tuple[Tensor, Tensor]:
            return ops.qk_norm_mm_rope(*map(place, tensors), **options)  # type: ignore[arg-type]

        promises = ("run_to_run", "packing")
        check_backend(
            "qk_norm_mm_rope", kernel, backward=True, promises=promises, dtypes=DTYPES["cuda"], max_examples=4
        )


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(
    ("heads", "kv_heads", "rows", "head_dim"),
    [(1, 1, 1, 32), (3, 1, 1, 160), (70, 10, 5, 64), (6, 2, 1, 256), (40, 40, 40, 32), (150, 1, 1, 32)],
)
def test_every_shape_of_block_on_cuda(heads: int, kv_heads: int, rows: int, head_dim: int, backend: str) -> None:
    """One head and many, of one row of weights and of many; lanes, tokens and heads of a block that have no work."""
    for dtype in DTYPES["cuda"]:
        shapes = [(9, heads, head_dim), (9, kv_heads, head_dim), *[(rows, head_dim)] * 2]
        shapes += [(rows if kv_heads % rows == 0 else 1, head_dim)] * 2
        tensors = [strategies.randn(shape, dtype, i) for i, shape in enumerate(shapes)]
        assert_exact(tensors, example(9)[1], backend, 1)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
def test_many_blocks_share_a_row_of_weights_on_cuda(dtype: torch.dtype, backend: str) -> None:
    """More of them than there are slices in the sum over the blocks: 21 of 16 tokens, in fp32 41 of 8."""
    shapes = [(325, 2, 256), (325, 1, 256), *[(1, 256)] * 4]
    assert_exact([strategies.randn(shape, dtype, i) for i, shape in enumerate(shapes)], example(325)[1], backend, 3)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(("head_dim", "words"), [(288, "up to 256: pass backend='reference'")])
def test_wider_heads_are_refused_on_cuda(head_dim: int, words: str, backend: str) -> None:
    with running(backend) as place:
        x, row, at = map(place, (torch.ones(2, 1, head_dim), torch.ones(1, head_dim), example(2)[1]))
        with pytest.raises(ValueError, match=f"qk_norm_mm_rope: head_dim is {head_dim}; .* {words}"):
            ops.qk_norm_mm_rope(x, x, row, row, row, row, at)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("far", ["token", "head"])
def test_strides_beyond_32_bits(far: str, backend: str) -> None:
    """Of memory that no one touches between the two tokens, or heads."""
    stride = 2**31 + 64
    shape, strides = ((2, 1, 64), (stride, 64, 1)) if far == "token" else ((1, 2, 64), (128, stride, 1))
    near = strategies.randn(shape, torch.bfloat16, 0)
    weights = [strategies.randn((1, 64), torch.float32, 1 + i) for i in range(4)]
    with running(backend) as place:
        near, positions, *weights = map(place, (near, example(shape[0])[1], *weights))
        x = torch.empty(stride + 64, dtype=near.dtype, device=near.device).as_strided(shape, strides).copy_(near)
        expected, actual = (with_gradients([t, t, *weights], positions, grads=[t, t]) for t in (near, x))
        assert_same_bits(actual, expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_arguments_that_are_not_contiguous_are_copied(backend: str) -> None:
    tensors, positions = example()
    with running(backend) as place:
        tensors, positions = [place(t) for t in tensors], place(positions)[:, :1].expand(-1, 3)
        expected = with_gradients(tensors, positions.contiguous())
        strided = [t.mT.contiguous().mT for t in tensors]
        before = copies["qk_norm_mm_rope.q"]
        assert_same_bits(apply(strided, positions), expected)
        assert copies["qk_norm_mm_rope.q"] == before + 1
        grads = [grad.mT.contiguous().mT for grad in upstream([t.cpu() for t in tensors])]
        assert_same_bits(with_gradients(strided, positions, grads=grads), expected)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(("padding", "offset"), [(0, 1), (4, 0)])
def test_what_is_not_aligned_to_16_bytes_is_copied_and_counted_on_cuda(padding: int, offset: int, backend: str) -> None:
    (q, *others), positions = example(50)
    memory = torch.zeros(50 * 4 * (64 + padding) + offset, dtype=q.dtype)
    crooked = memory[offset:].view(50, 4, 64 + padding)[..., :64].copy_(q)
    before = copies["qk_norm_mm_rope.q"]
    with running(backend) as place:
        q, crooked, positions, *others = map(place, (q, crooked, positions, *others))
        assert_same_bits(apply([crooked, *others], positions), apply([q, *others], positions))
    assert copies["qk_norm_mm_rope.q"] == before + 1


# ---- framework


@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck(backend: str) -> None:
    tensors, positions = example(tokens=5)
    q, k, *weights = tensors
    with running(backend) as place:
        q, k, positions, table = map(place, (q, k, positions, ops.inverse_frequencies(64)))
        rest = (positions, table, 1e-5, True)
        weights = [place(w.float()) for w in weights]
        leaves = [x.clone().requires_grad_() for x in (q, k, *weights)]
        torch.library.opcheck(torch.ops.lumos._qk_norm_mm_rope.default, (*leaves, *rest))
        torch.library.opcheck(
            torch.ops.lumos._qk_norm_mm_rope_backward.default, (q, k, q, k, weights[0], weights[2], *rest)
        )


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.filterwarnings("ignore")
def test_compiles_as_one_graph_and_once_more_for_any_number_of_tokens(backend: str) -> None:
    graphs = []

    def counting(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        graphs.append(graph)
        return aot_eager(graph, inputs)

    aot_eager = torch._dynamo.lookup_backend("aot_eager")
    torch.compiler.reset()
    compiled = torch.compile(lambda *x: ops.qk_norm_mm_rope(*x), fullgraph=True, backend=counting)
    with running(backend) as place:
        for tokens in (4, 7, 12, 70):
            tensors, positions = example(tokens)
            leaves, positions = [place(x).detach().requires_grad_() for x in tensors], place(positions)
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
        ((RuntimeError, ValueError), "CUDA kernel of it|given a tensor on cpu; move it to a GPU", {"backend": "cuda"}),
        (TypeError, "q is a list; it must be a tensor", {"q": [1.0]}),
        (TypeError, "q has dtype float64", {"q": torch.ones(2, 4, 32, dtype=torch.float64)}),
    ],
)  # fmt: skip
def test_bad_input_is_named(
    error: type[Exception] | tuple[type[Exception], ...], message: str, changes: dict[str, object]
) -> None:
    arguments: dict[str, object] = {
        "q": torch.ones(2, 4, 32), "k": torch.ones(2, 2, 32), "q_weight": torch.ones(1, 32), "q_bias": torch.ones(1, 32),
        "k_weight": torch.ones(1, 32), "k_bias": torch.ones(1, 32), "positions": torch.zeros(2, 3, dtype=torch.int32),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.qk_norm_mm_rope(**{**arguments, **changes})  # type: ignore[arg-type]
