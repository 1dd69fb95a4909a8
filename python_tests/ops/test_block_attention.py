"""block_attention: forward and backward against the reference, and what is promised about bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import lumos_engine._C as extension
from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.ops import _registry as registry
from lumos_engine.testing import eager, poison, strategies, tolerances

ISAS = extension.available_isas()
NAMES = ("out", "lse", "grad_q", "grad_k", "grad_v")
Inputs = tuple[SequenceLayout, Tensor, Tensor, Tensor]
VIDEO: list[Text | Frame] = [
    Text(7),
    Frame(8, 8, newlines=True, header=3, footer=1),
    Frame(8, 8, newlines=True),
    Text(70),
]


def inputs_of(
    layout: SequenceLayout,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 64,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
) -> list[Tensor]:
    return [
        strategies.randn((layout.num_tokens, count, head_dim), dtype, seed + i)
        for i, count in enumerate((heads, kv_heads, kv_heads))
    ]


def with_gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    grad: Tensor,
    layout: SequenceLayout,
    eager_order: int | None = None,
    **options: Any,
) -> list[Tensor]:
    """[out, lse, dq, dk, dv]; of eager torch if an order of its sums is given."""
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    if eager_order is None:
        out, lse = ops.block_attention(*leaves, layout, **options)
    else:
        out, lse = eager.block_attention(*leaves, layout, **options, order=eager_order)
    # A layout whose queries see nothing leaves eager torch without a graph to some of them.
    grads = torch.autograd.grad(out, leaves, grad, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]
    return [out.detach(), lse.detach(), *grads]


ROWS = 2000  # the bound is a multiple of eager torch's largest error, and of few rows that is a matter of luck: it may be 0


def with_more_heads(x: Tensor, factor: int, seed: int, order: str) -> Tensor:
    """``factor`` times as many heads, those of ``x`` in front."""
    tokens, heads, head_dim = x.shape
    more = strategies.randn((tokens, (factor - 1) * heads, head_dim), x.dtype, seed)
    return strategies.in_order(torch.cat((x, more), 1), order)


@given(case=strategies.attention_inputs(), scale=st.sampled_from([None, 0.3, -1.0, 0.0]), data=st.data())
def test_results_and_gradients_are_within_the_bound(case: Inputs, scale: float | None, data: st.DataObject) -> None:
    layout, seed = case[0], data.draw(strategies.seeds()) // 2
    factor = max(1, ROWS // case[1].shape[:2].numel())
    orders = [data.draw(strategies.memory_orders()) for _ in range(3)]
    q, k, v = (
        with_more_heads(x, factor, seed + i, order) for i, (x, order) in enumerate(zip(case[1:], orders, strict=True))
    )
    grad = strategies.randn(q.shape, q.dtype, seed + 3)
    exact = with_gradients(q.double(), k.double(), v.double(), grad.double(), layout, scale=scale, backend="reference")
    runs = [with_gradients(q, k, v, grad, layout, order, scale=scale) for order in tolerances.ORDERS]
    baselines = [list(results) for results in zip(*runs, strict=True)]
    for order in tolerances.ORDERS:
        grads = eager.block_attention_gradients(q, k, v, layout, grad, scale=scale, order=order)
        for found, x in zip(baselines[2:], grads, strict=True):
            found.append(x)
    for level in ISAS:
        extension.set_cpu_isa(level)
        with poison.poisoned_outputs():
            actual = with_gradients(q, k, v, grad, layout, scale=scale)
        for name, *results in zip(NAMES, actual, exact, baselines, strict=True):
            tolerances.assert_within_bound(*results, name=f"{name} ({level})")


@pytest.mark.parametrize("threads", [2, 3, 4])
@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_threads_change_no_bit(dtype: torch.dtype, kv_heads: int, threads: int, isa: str) -> None:
    """With one key head the threads of the backward add to the same rows of grad_q, each in its turn."""
    layout = SequenceLayout.from_segments([VIDEO, [Text(5)], VIDEO[1:3]])
    q, k, v = inputs_of(layout, kv_heads=kv_heads, dtype=dtype)
    grad = torch.randn_like(q)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = with_gradients(q, k, v, grad, layout)
        torch.set_num_threads(threads)
        for _ in range(3):
            for name, left, right in zip(NAMES, one, with_gradients(q, k, v, grad, layout), strict=True):
                tolerances.assert_bitwise_equal(right, left, name)
    finally:
        torch.set_num_threads(before)


def test_a_later_frame_changes_no_earlier_bit(isa: str) -> None:
    layout = SequenceLayout.from_segments([VIDEO])
    q, k, v = inputs_of(layout)
    begin = layout.segments(0)[2][1]  # the second frame
    out, lse = ops.block_attention(q, k, v, layout)
    for x in (q, k, v):
        x[begin:] = torch.randn_like(x[begin:]) * 100
    changed, changed_lse = ops.block_attention(q, k, v, layout)
    tolerances.assert_bitwise_equal(changed[:begin], out[:begin])
    tolerances.assert_bitwise_equal(changed_lse[:begin], lse[:begin])
    assert not torch.equal(changed, out)


@given(case=strategies.attention_inputs(layouts=strategies.interval_layouts()), seed=strategies.seeds())
def test_keys_that_nobody_sees_may_hold_nan(case: Inputs, seed: int) -> None:
    layout, q, k, v = case
    grad = strategies.randn(q.shape, q.dtype, seed)
    clean = with_gradients(q, k, v, grad, layout)
    dirty = with_gradients(q, *poison.poison_unseen_keys(k, v, layout), grad, layout)
    for name, left, right in zip(NAMES, clean, dirty, strict=True):
        tolerances.assert_bitwise_equal(right, left, name)


@pytest.mark.parametrize("poisoned", ["q", "k", "v", "grad"])
@pytest.mark.parametrize("segment", [2, 3])
@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_nan_stays_with_the_tokens_that_see_it(dtype: torch.dtype, poisoned: str, segment: int, isa: str) -> None:
    """One token of a frame, or of text, whose tile holds tokens that see it beside tokens that do not."""
    layout = SequenceLayout.from_segments([VIDEO])
    end = layout.segments(0)[segment][2]
    token = end - 13
    sees = layout.visible(0)[:, token]  # queries that see it as a key
    seen = layout.visible(0)[token]  # keys that it sees as a query
    tensors = dict(zip(("q", "k", "v"), inputs_of(layout, dtype=dtype), strict=True))
    tensors["grad"] = torch.randn_like(tensors["q"])
    clean = with_gradients(**tensors, layout=layout)
    tensors[poisoned][token] = float("nan")
    out, lse, grad_q, grad_k, grad_v = with_gradients(**tensors, layout=layout)
    if poisoned in ("k", "v"):
        for name, actual, expected in zip(NAMES, (out, lse, grad_q), clean, strict=False):
            tolerances.assert_bitwise_equal(actual[~sees], expected[~sees], name)
        assert bool(out[sees].isnan().any((1, 2)).all())
    else:
        for name, actual, expected in zip(NAMES[3:], (grad_k, grad_v), clean[3:], strict=True):
            tolerances.assert_bitwise_equal(actual[~seen], expected[~seen], name)
        assert bool(grad_k[seen].isnan().any((1, 2)).all())


def test_a_row_that_sees_a_nan_score_alone_is_nan() -> None:
    layout = SequenceLayout.from_segments([[Text(1)]])
    q, k, v = inputs_of(layout)
    out, lse = ops.block_attention(q, k.fill_(float("nan")), v, layout)
    assert out.isnan().all()
    assert lse.isnan().all()


@pytest.mark.parametrize("dtype", strategies.DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [40, 200])
def test_rows_that_see_nothing(tokens: int, dtype: torch.dtype, isa: str) -> None:
    """Alone in their tile too, where no tile of keys is met, after a call that has left its sums in the scratch."""
    layout = SequenceLayout.from_intervals([tokens], torch.tensor([[0, 0, 5, 0, 0]] * 20 + [[0] * 5] * (tokens - 20)))
    q, k, v = inputs_of(layout, dtype=dtype)
    ops.block_attention(q, k, v, SequenceLayout.from_segments([[Frame(1, tokens)]]))
    q[20:] = float("nan")
    grad = torch.randn_like(q)
    grad[20:] = float("nan")
    with poison.poisoned_outputs():
        out, lse, grad_q, grad_k, grad_v = with_gradients(q, k, v, grad, layout)
    assert bool((out[20:] == 0).all())
    assert bool((lse[20:] == -torch.inf).all())
    assert bool((grad_q[20:] == 0).all())
    assert bool((grad_k[5:] == 0).all())
    assert bool((grad_v[5:] == 0).all())
    assert all(bool(x.isfinite().all()) for x in (grad_q, grad_k, grad_v, out))


def test_run_to_run_equality(isa: str) -> None:
    layout = SequenceLayout.from_segments([VIDEO, VIDEO])
    q, k, v = inputs_of(layout)
    grad = torch.randn_like(q)
    first = with_gradients(q, k, v, grad, layout)
    for _ in range(5):
        for name, left, right in zip(NAMES, first, with_gradients(q, k, v, grad, layout), strict=True):
            tolerances.assert_bitwise_equal(right, left, name)


def test_one_visible_key_gives_gradients_of_zero(isa: str) -> None:
    """out is that v, so ds is exactly 0 where delta is the very sum that dp is."""
    layout = SequenceLayout.from_intervals([70], torch.tensor([[0, 0, 0, i, i + 1] for i in range(70)]))
    for dtype in strategies.DTYPES:
        q, k, v = inputs_of(layout, head_dim=128, dtype=dtype)
        _, _, grad_q, grad_k, _ = with_gradients(q, k, v, torch.randn_like(q), layout)
        assert not grad_q.any(), dtype
        assert not grad_k.any(), dtype


@pytest.mark.parametrize("dtype", strategies.DTYPES)
@pytest.mark.parametrize("growth", [0.25, 4.0])
def test_scores_that_rise_from_tile_to_tile(growth: float, dtype: torch.dtype, isa: str) -> None:
    """Half of the rows must take a new maximum, or what stands for it, in each frame, and rescale their sums."""
    layout = SequenceLayout.from_segments([[Text(5), *[Frame(8, 8)] * 4]])
    q, k, v = inputs_of(layout, dtype=dtype)
    q[::2] = q[::2].abs() + 1
    k = k.abs() * layout.frame_id[:, None, None].clamp(min=0).to(dtype) * growth
    exact = ops.block_attention(q.double(), k.double(), v.double(), layout, backend="reference")
    runs = [eager.block_attention(q, k, v, layout, order=order) for order in tolerances.ORDERS]
    for name, result, reference, *baselines in zip(
        NAMES[:2], ops.block_attention(q, k, v, layout), exact, *runs, strict=True
    ):
        tolerances.assert_within_bound(result, reference, baselines, name)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
@pytest.mark.parametrize("magnitude", [1e-30, 30.0, 1e4])
def test_large_and_tiny_scores(magnitude: float, dtype: torch.dtype, isa: str) -> None:
    layout = SequenceLayout.from_segments([[Text(150)]])
    q, k, v = inputs_of(layout, dtype=dtype)
    q = q * magnitude
    exact, exact_lse = ops.block_attention(q.double(), k.double(), v.double(), layout, backend="reference")
    baseline, baseline_lse = eager.block_attention(q, k, v, layout)
    out, lse = ops.block_attention(q, k, v, layout)
    tolerances.assert_within_bound(out, exact, baseline)
    tolerances.assert_within_bound(lse, exact_lse, baseline_lse)


def test_a_last_dimension_that_is_not_contiguous_is_copied_and_counted() -> None:
    layout = SequenceLayout.from_segments([[Text(9)]])
    q, k, v = inputs_of(layout)
    strided = torch.empty(9, 4, 128)[..., ::2].copy_(q)
    before = registry.copies["block_attention.q"]
    tolerances.assert_bitwise_equal(
        ops.block_attention(strided, k, v, layout)[0], ops.block_attention(q, k, v, layout)[0]
    )
    assert registry.copies["block_attention.q"] == before + 1


def test_a_gradient_that_is_expanded() -> None:
    layout = SequenceLayout.from_segments([[Text(9)]])
    q, k, v = (x.requires_grad_() for x in inputs_of(layout))
    summed = torch.autograd.grad(ops.block_attention(q, k, v, layout)[0].sum(), (q, k, v))
    ones = torch.autograd.grad(ops.block_attention(q, k, v, layout)[0], (q, k, v), torch.ones_like(q))
    for left, right in zip(summed, ones, strict=True):
        tolerances.assert_bitwise_equal(left, right)


def test_the_reference_has_the_right_gradients() -> None:
    layout = SequenceLayout.from_segments([[Text(3), Frame(2, 2), Frame(1, 2)]])
    q, k, v = (x.double().requires_grad_() for x in inputs_of(layout, 2, 1, 32))
    assert torch.autograd.gradcheck(lambda *x: ops.block_attention(*x, layout, backend="reference")[0], (q, k, v))


def test_opcheck() -> None:
    layout = SequenceLayout.from_segments([[Text(3), Frame(2, 2)]]).with_hidden(torch.arange(7) == 4)
    schedule = layout.schedule()
    rows = (schedule.tiles, schedule.row_offsets, schedule.row_runs, schedule.col_offsets, schedule.col_runs)
    tensors = [x.requires_grad_() for x in inputs_of(layout, 2, 1, 32)]
    torch.library.opcheck(
        torch.ops.lumos._block_attention.default, (*tensors, layout.intervals, layout.hidden, *rows, 0.2)
    )


@pytest.mark.filterwarnings("ignore")
def test_compiles_as_one_graph_for_any_layout() -> None:
    torch.compiler.reset()
    compiled = torch.compile(
        lambda q, k, v, layout: ops.block_attention(q * 2, k, v, layout)[0] + 1, fullgraph=True, backend="aot_eager"
    )
    for text in (3, 5, 9, 70):
        layout = SequenceLayout.from_segments([[Text(text), Frame(5, 5)]])
        q, k, v = (x.requires_grad_() for x in inputs_of(layout, 2, 1, 32))
        out, expected = compiled(q, k, v, layout), ops.block_attention(q * 2, k, v, layout)[0] + 1
        tolerances.assert_bitwise_equal(out, expected)
        grad = torch.randn_like(out)
        for left, right in zip(
            torch.autograd.grad(out, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
        ):
            tolerances.assert_bitwise_equal(left, right)


def test_without_gradients_the_same_operation_gives_the_same_bits() -> None:
    layout = SequenceLayout.from_segments([VIDEO])
    q, k, v = inputs_of(layout)
    q.requires_grad_()
    expected = ops.block_attention(q, k, v, layout)
    compiled = torch.compile(ops.block_attention, fullgraph=True, backend="eager")
    with torch.no_grad():
        with torch.profiler.profile() as profile:
            results = [ops.block_attention(q, k, v, layout)]
        results.append(compiled(q, k, v, layout))
    assert "lumos::_block_attention" in {event.key for event in profile.key_averages()}
    assert expected[0].requires_grad and not any(out.requires_grad for out, _ in results)
    assert all(torch.equal(x, y) for result in results for x, y in zip(result, expected, strict=True))


def test_bad_arguments_are_named() -> None:
    layout = SequenceLayout.from_segments([[Text(9)]])
    q, k, v = inputs_of(layout)
    other = SequenceLayout.from_segments([[Text(10)]])
    cases: list[tuple[type[Exception], str, tuple[object, ...]]] = [
        (TypeError, "q has dtype float64; allowed: float32, bfloat16", (q.double(), k, v, layout)),
        (TypeError, "k has dtype bfloat16; allowed: float32", (q, k.bfloat16(), v, layout)),
        (TypeError, "v is a list", (q, k, [1], layout)),
        (ValueError, r"q has shape \(9, 256\)", (q.flatten(1), k, v, layout)),
        (ValueError, r"v has shape \(8, 2, 64\)", (q, k, v[:8], layout)),
        (ValueError, "k has 2 heads and v has 1", (q, k, v[:, :1], layout)),
        (ValueError, "q has 3 heads, k has 2", (q[:, :3], k, v, layout)),
        (ValueError, "head_dim is 48; it must be a multiple of 32", (q[..., :48], k[..., :48], v[..., :48], layout)),
        (ValueError, "layout has 10 tokens, q has 9", (q, k, v, other)),
        (TypeError, "layout is a int", (q, k, v, 3)),
        (ValueError, "k is on meta; it must be on cpu", (q, k.to("meta"), v, layout)),
    ]
    for error, message, arguments in cases:
        with pytest.raises(error, match=f"block_attention: {message}"):
            ops.block_attention(*arguments)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="backend is 'tpu'; allowed: reference, cpu, cuda"):
        ops.block_attention(q, k, v, layout, backend="tpu")
    with pytest.raises((RuntimeError, ValueError), match=r"no CUDA kernel of it|was given a tensor on cpu"):
        ops.block_attention(q, k, v, layout, backend="cuda")


def test_a_schedule_that_does_not_add_up_is_refused() -> None:
    layout = SequenceLayout.from_segments([[Text(9), Frame(9, 9)]])
    q, k, v = inputs_of(layout)
    s = layout.schedule()
    good = [s.tiles, s.row_offsets, s.row_runs, s.col_offsets, s.col_runs]

    def call(place: int, change: Tensor) -> None:
        rows = list(good)
        rows[place] = change
        torch.ops.lumos._block_attention(q, k, v, layout.intervals, None, *rows, 0.1)

    far = s.tiles.clone()
    far[-1, 0] = 10_000
    beyond = s.row_runs.clone()
    beyond[-1, 1] = 99
    falling = s.row_offsets.clone()
    falling[1] = 50
    for place, change in ((0, far), (0, s.tiles[:-1]), (2, beyond), (1, falling)):
        with pytest.raises(ValueError, match=r"tiles|runs|offsets"):
            call(place, change)


def test_use_backend() -> None:
    layout = SequenceLayout.from_segments([[Text(9)]])
    q, k, v = (x.double() for x in inputs_of(layout))
    with ops.use_backend("reference"):
        assert ops.block_attention(q, k, v, layout)[0].dtype == torch.float64
    with pytest.raises(TypeError, match="q has dtype float64"):
        ops.block_attention(q, k, v, layout)
    with pytest.raises(ValueError, match="backend is 'gpu'"), ops.use_backend("gpu"):
        pass
