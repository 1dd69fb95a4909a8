"""The AR-DF loss in row chunks, against all logits at once."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from lumos_engine import ops
from lumos_engine.testing import eager, strategies, tolerances

Case = tuple[Tensor, Tensor, Tensor, Tensor]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """(hidden, weight, targets, rows): rows in any order, some twice, some never."""
    tokens, width, columns = (
        draw(st.integers(1, 12)),
        draw(st.sampled_from([1, 8, 33])),
        draw(st.sampled_from([1, 5, 70])),
    )
    n, seed, dtype = draw(st.integers(1, 20)), draw(st.integers(0, 2**30)), draw(st.sampled_from(strategies.DTYPES))
    generator = torch.Generator().manual_seed(seed)
    hidden, weight = (strategies.randn((size, width), dtype, seed + i) for i, size in enumerate((tokens, columns)))
    targets, rows = (torch.randint(0, limit, (n,), generator=generator) for limit in (columns, tokens))
    return hidden, weight, targets, rows


def example(dtype: torch.dtype = torch.float32) -> Case:
    hidden, weight = strategies.randn((10, 16), dtype, 0), strategies.randn((30, 16), dtype, 1)
    generator = torch.Generator().manual_seed(2)
    return (
        hidden,
        weight,
        torch.randint(0, 30, (9,), generator=generator),
        torch.randint(0, 10, (9,), generator=generator),
    )


def with_gradients(case: Case, dtype: torch.dtype, chunk_rows: int | None, plain: bool = False) -> dict[str, Tensor]:
    """Results and gradients of mean + sum of weighted rows."""
    hidden, weight = (t.detach().to(dtype).requires_grad_() for t in case[:2])
    if plain:
        per_row = eager.linear_cross_entropy(hidden, weight, *case[2:])
        mean = per_row.mean()
    else:
        mean, per_row = ops.masked_linear_cross_entropy(hidden, weight, *case[2:], chunk_rows=chunk_rows)
    factors = torch.linspace(-1, 2, len(per_row), dtype=per_row.dtype)
    grads = torch.autograd.grad(mean + (per_row * factors).sum(), (hidden, weight))
    return {"mean": mean.detach(), "per_row": per_row.detach(), "dhidden": grads[0], "dweight": grads[1]}


@given(cases(), st.sampled_from([None, 1, 3, 7]))
def test_loss_and_gradients_are_as_exact_as_promised(case: Case, chunk_rows: int | None) -> None:
    dtype, rows = case[0].dtype, len(case[3])
    actual = with_gradients(case, dtype, chunk_rows)
    exact = with_gradients(case, torch.float64, None, plain=True)
    baseline = with_gradients(case, dtype, None, plain=True)
    for name, result in actual.items():
        terms = 4 * rows if name.startswith("d") else 16  # gradients sum over rows; the loss is a difference of sums
        tolerances.assert_within_bound(result, exact[name], baseline[name], name, terms=terms)


@pytest.mark.parametrize("chunk_rows", [1, 4, 9, None])
def test_gradient_check(chunk_rows: int | None) -> None:
    hidden, weight, targets, rows = example(torch.float32)
    leaves = (hidden.double().requires_grad_(), weight.double().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda h, w: ops.masked_linear_cross_entropy(h, w, targets, rows, chunk_rows=chunk_rows), leaves
    )


@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_what_is_needed_gets_a_gradient(needs: tuple[bool, bool]) -> None:
    hidden, weight, targets, rows = example()
    hidden.requires_grad_(needs[0])
    weight.requires_grad_(needs[1])
    ops.masked_linear_cross_entropy(hidden, weight, targets, rows)[0].backward()
    assert (hidden.grad is not None, weight.grad is not None) == needs


def test_tokens_outside_rows_have_no_influence() -> None:
    hidden, weight, targets, rows = example()
    outside = torch.ones(len(hidden), dtype=torch.bool)
    outside[rows] = False
    assert outside.any()
    poisoned = hidden.masked_fill(outside[:, None], float("nan")).requires_grad_()
    loss, _ = ops.masked_linear_cross_entropy(poisoned, weight, targets, rows)
    loss.backward()
    assert torch.equal(loss.detach(), ops.masked_linear_cross_entropy(hidden, weight, targets, rows)[0])
    assert poisoned.grad is not None
    assert not poisoned.grad[outside].any()
    assert poisoned.grad.isfinite().all()


def test_chunks_bound_the_logits_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from lumos_engine.reference import loss as module

    seen: list[int] = []
    plain = module._logits

    def counted(hidden: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        seen.append(len(rows) * len(weight))
        return plain(hidden, weight, rows)

    monkeypatch.setattr(module, "_logits", counted)
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 30 * 4)  # four rows
    hidden, weight, targets, rows = example()
    ops.masked_linear_cross_entropy(hidden.requires_grad_(), weight, targets, rows)[0].backward()
    assert seen == [120, 120, 30] * 2, "forward and backward take chunks of four rows"
    seen.clear()
    ops.masked_linear_cross_entropy(hidden, weight, targets[:3], rows[:3])[0].backward()
    assert seen == [90], "the logits of a single chunk are kept"


def test_no_rows_give_a_loss_of_zero_and_no_gradient() -> None:
    hidden, weight, _, _ = example()
    none = torch.zeros(0, dtype=torch.int64)
    loss, per_row = ops.masked_linear_cross_entropy(hidden.requires_grad_(), weight, none, none)
    loss.backward()
    assert loss == 0
    assert per_row.shape == (0,)
    assert hidden.grad is not None
    assert not hidden.grad.any()


def test_autocast_computes_in_its_dtype_and_returns_fp32() -> None:
    hidden, weight, targets, rows = example()
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        loss, per_row = ops.masked_linear_cross_entropy(*leaves, targets, rows)
    gradients = torch.autograd.grad(loss, leaves)
    expected, _ = ops.masked_linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, rows)
    assert loss.dtype == per_row.dtype == torch.float32
    assert torch.equal(loss, expected)
    assert [g.dtype for g in gradients] == [torch.float32] * 2
    with torch.autocast("cpu", torch.bfloat16):  # a bf16 activation meets fp32 weights
        assert torch.equal(ops.masked_linear_cross_entropy(hidden.bfloat16(), weight, targets, rows)[0], expected)


def test_runs_and_threads_change_no_bit() -> None:
    def gradients(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        return list(with_gradients(example(torch.bfloat16), torch.bfloat16, 2).values())

    before = torch.get_num_threads()
    try:
        first, again, threaded = gradients(1), gradients(1), gradients(2)
    finally:
        torch.set_num_threads(before)
    for others in (again, threaded):
        for a, b in zip(first, others, strict=True):
            tolerances.assert_bitwise_equal(a, b)


@pytest.mark.parametrize(
    ("error", "message", "changes"),
    [
        (TypeError, "hidden has dtype int64", {"hidden": torch.ones(4, 8, dtype=torch.int64)}),
        (TypeError, "weight has dtype bfloat16; allowed: float32", {"weight": torch.ones(5, 8).bfloat16()}),
        (ValueError, r"weight has shape \(5, 7\); it must be \[columns, 8\]", {"weight": torch.ones(5, 7)}),
        (TypeError, "targets has dtype int32; allowed: int64", {"targets": torch.zeros(2, dtype=torch.int32)}),
        (ValueError, r"rows has shape \(3,\); it must be \[2\]", {"rows": torch.zeros(3, dtype=torch.int64)}),
        (ValueError, r"targets are 0\.\.5; they must be in 0\.\.4", {"targets": torch.tensor([0, 5])}),
        (ValueError, r"targets are -100\.\.0; they must be in 0\.\.4", {"targets": torch.tensor([0, -100])}),
        (ValueError, r"rows are 0\.\.4; they must be in 0\.\.3", {"rows": torch.tensor([0, 4])}),
        (ValueError, "chunk_rows is 0; it must be at least 1", {"chunk_rows": 0}),
        (RuntimeError, "CUDA", {"backend": "cuda"}),
    ],
)
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, Any]) -> None:
    arguments = {
        "hidden": torch.ones(4, 8), "weight": torch.ones(5, 8), "targets": torch.zeros(2, dtype=torch.int64),
        "rows": torch.zeros(2, dtype=torch.int64),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.masked_linear_cross_entropy(**{**arguments, **changes})
