"""The AR-DF loss in blocks of columns (cpu) and chunks of rows (reference), against all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import example as hypothesis_example
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo import lookup_backend
from torch.utils._python_dispatch import TorchDispatchMode

import lumos_engine._C as extension
from lumos_engine import ops
from lumos_engine.ops import loss
from lumos_engine.ops._registry import view
from lumos_engine.testing import eager, poison, strategies, tolerances

Plain = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Case = tuple[Tensor, Tensor, Tensor, Tensor]
ISAS = extension.available_isas()
BACKENDS = ("cpu", "reference")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """(hidden, weight, targets, rows): rows in any order, some twice, some never; the weight a slice of a larger head."""
    tokens, width = draw(st.integers(1, 12)), draw(st.sampled_from([1, 8, 33]))
    columns = draw(st.sampled_from([1, 5, 70, 256, 600, 1030]))
    n, seed, dtype = draw(st.integers(1, 20)), draw(st.integers(0, 2**30)), draw(st.sampled_from(strategies.DTYPES))
    scale = draw(st.sampled_from([1.0, 30.0]))  # of the logits: even, or peaked
    generator = torch.Generator().manual_seed(seed)
    hidden = strategies.randn((tokens, width), dtype, seed) * scale
    margin = draw(st.sampled_from([0, 3]))
    weight = strategies.randn((columns, width + margin), dtype, seed + 1)[:, :width]
    targets, rows = (torch.randint(0, limit, (n,), generator=generator) for limit in (columns, tokens))
    return hidden, weight, targets, rows


def example(dtype: torch.dtype = torch.float32, columns: int = 30) -> Case:
    hidden, weight = strategies.randn((10, 16), dtype, 0), strategies.randn((columns, 16), dtype, 1)
    generator = torch.Generator().manual_seed(2)
    return (
        hidden,
        weight,
        torch.randint(0, columns, (9,), generator=generator),
        torch.randint(0, 10, (9,), generator=generator),
    )


def by_rows(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    each = zip(targets.split(1), rows.split(1), strict=True)
    return torch.cat([eager.linear_cross_entropy(hidden, weight, *row) for row in each])


def with_gradients(case: Case, dtype: torch.dtype, plain: Plain | None = None, **options: Any) -> dict[str, Tensor]:
    """Results and gradients of mean + sum of weighted rows."""
    hidden, weight = (t.detach().to(dtype).requires_grad_() for t in case[:2])
    if plain:
        per_row = plain(hidden, weight, *case[2:])
        mean = per_row.mean()
    else:
        mean, per_row = ops.masked_linear_cross_entropy(hidden, weight, *case[2:], **options)
    factors = torch.linspace(-1, 2, len(per_row), dtype=per_row.dtype)
    grads = torch.autograd.grad(mean + (per_row * factors).sum(), (hidden, weight))
    return {"mean": mean.detach(), "per_row": per_row.detach(), "dhidden": grads[0], "dweight": grads[1]}


def assert_exact_as_promised(case: Case, actual: dict[str, Tensor], blocks: int, note: str = "") -> None:
    dtype, rows = case[0].dtype, len(case[3])
    exact = with_gradients(case, torch.float64, eager.linear_cross_entropy)
    baseline = with_gradients(case, dtype, eager.linear_cross_entropy)
    if dtype == torch.float32:  # of few rows eager torch's error may be luck, and other products round otherwise
        second = with_gradients(case, dtype, by_rows)
        baseline = {name: tolerances.farther(baseline[name], second[name], exact[name]) for name in exact}
    for name, result in actual.items():
        # Gradients sum over rows, that of hidden over rounded blocks too; the loss is a difference of sums.
        terms = {"dweight": 4 * rows, "dhidden": 4 * rows * blocks}.get(name, 16)
        tolerances.assert_within_bound(result, exact[name], baseline[name], f"{name}{note}", terms=terms)


# exp(logit - lse) in place of softmax: the gradient of the weight missed by the rounding of a logit times hidden.
SHARP = torch.tensor([[46.2299]]), torch.tensor([[0.6614], [0.2669], [0.0617], [0.6213], [-0.4519]])


@given(cases(), st.sampled_from([2**24, 1, 20 * 512, 100]), st.sampled_from(BACKENDS))
@hypothesis_example((*SHARP, torch.tensor([4, 4]), torch.tensor([0, 0])), 2**24, "reference")
def test_loss_and_gradients_are_as_exact_as_promised(case: Case, max_logits: int, backend: str) -> None:
    for level in ISAS if backend == "cpu" else ISAS[-1:]:
        extension.set_cpu_isa(level)
        with poison.poisoned_outputs():
            actual = with_gradients(case, case[0].dtype, max_logits=max_logits, backend=backend)
        assert_exact_as_promised(case, actual, -(-len(case[1]) // 256), f" ({backend}, {level})")


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_a_target_in_every_block(dtype: torch.dtype, isa: str) -> None:
    columns = 4 * 256 + 77
    hidden, weight, _, _ = example(dtype, columns)
    targets = torch.tensor([0, 255, 256, 511, 512, 700, 767, 768, 1023, 1024, columns - 1])
    case = hidden, weight, targets, torch.arange(len(targets)) % len(hidden)
    assert_exact_as_promised(case, with_gradients(case, dtype, max_logits=1), 5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_extreme_logits(dtype: torch.dtype, backend: str) -> None:
    weight = torch.zeros(600, 2, dtype=dtype)
    weight[::2, 0], weight[1::2, 0] = 1.0, -1.0
    hidden = torch.tensor([[1e4, 0], [-1e4, 0], [0, 3]], dtype=dtype)  # 1e4 and -1e4 in turn, or all equal
    targets, rows = torch.tensor([2, 599, 2, 3, 300]), torch.tensor([0, 1, 1, 0, 2])
    top = float(hidden[0, 0])
    half, all_equal = torch.tensor(300.0).log(), torch.tensor(600.0).log()
    expected = torch.stack((half, half, 2 * top + half, 2 * top + half, all_equal))
    leaf = hidden.requires_grad_()
    _, per_row = ops.masked_linear_cross_entropy(leaf, weight, targets, rows, max_logits=1, backend=backend)
    torch.testing.assert_close(per_row, expected, **tolerances.CLOSED_FORM)
    grad = torch.autograd.grad(per_row[:2].sum(), leaf)[0]
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=10 * tolerances.ulp(torch.float32, 1e4))


def test_a_loss_near_zero_keeps_its_digits() -> None:
    """lse - logit of the target would round at the size of the logits."""
    weight = torch.tensor([[1.0], [1.0 - 2**-13]]).repeat(1, 1)
    hidden = torch.full((1, 1), 8192.0)  # logits 8192 and 8191
    zero = torch.zeros(1, dtype=torch.int64)
    loss = ops.masked_linear_cross_entropy(hidden, weight, zero, zero)[0]
    torch.testing.assert_close(loss, torch.tensor(1.0).neg().exp().log1p(), rtol=tolerances.CLOSED_FORM["rtol"], atol=0)


@pytest.mark.parametrize("max_logits", [30, 4 * 30, 2**24])
def test_gradient_check_of_the_reference(max_logits: int) -> None:
    hidden, weight, targets, rows = example()
    leaves = (hidden.double().requires_grad_(), weight.double().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda h, w: ops.masked_linear_cross_entropy(h, w, targets, rows, max_logits=max_logits), leaves
    )


@pytest.mark.parametrize("max_logits", [1, 2**24])
@pytest.mark.parametrize("dtype", strategies.DTYPES)
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_what_is_needed_gets_a_gradient(needs: tuple[bool, bool], dtype: torch.dtype, max_logits: int) -> None:
    case = example(dtype, 600)
    both = dict(zip(("hidden", "weight"), case[:2], strict=True))
    for leaf in both.values():
        leaf.requires_grad_()
    expected = torch.autograd.grad(
        ops.masked_linear_cross_entropy(*case, max_logits=max_logits)[0], tuple(both.values())
    )
    for leaf, need in zip(both.values(), needs, strict=True):
        leaf.requires_grad_(need)
    ops.masked_linear_cross_entropy(*case, max_logits=max_logits)[0].backward()
    for leaf, need, gradient in zip(both.values(), needs, expected, strict=True):
        assert (leaf.grad is not None) == need
        if leaf.grad is not None:
            tolerances.assert_bitwise_equal(leaf.grad, gradient)


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


class Allocations(TorchDispatchMode):
    """The size in elements of every memory that torch's operations made."""

    def __init__(self, *inputs: Tensor) -> None:
        super().__init__()
        self._inputs = {tensor.untyped_storage().data_ptr() for tensor in inputs}
        self._alive: list[Tensor] = []  # so that no address occurs twice

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor) and result.untyped_storage().data_ptr() not in self._inputs:
            self._alive.append(result)
        return result

    def elements(self) -> list[int]:
        storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // t.itemsize for t in self._alive}
        return sorted(storages.values(), reverse=True)


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_neither_all_logits_nor_a_second_gradient_of_the_weight_exist(dtype: torch.dtype) -> None:
    def allocations(n: int, width: int, max_logits: int) -> tuple[list[int], list[int]]:
        hidden, weight = strategies.randn((n, width), dtype, 0), strategies.randn((2560, width), dtype, 1)
        rows = torch.arange(n)
        with Allocations(hidden, weight, rows) as forward:
            _, *state = loss._forward_cpu(hidden, weight, rows, rows, max_logits)
        grad = torch.ones(n)
        with Allocations(hidden, weight, rows, grad, *state) as backward:
            loss._backward_cpu(grad, hidden, weight, rows, rows, *state, max_logits, True, True)
        return forward.elements(), backward.elements()

    for elements in allocations(n=700, width=4, max_logits=700 * 300):
        assert elements[0] == 700 * 256, "of the logits, one block"
    forward, backward = allocations(n=4, width=128, max_logits=1024)
    assert forward[0] < 128 * 2560
    assert [size for size in backward if size >= 128 * 2560] == [128 * 2560], "the gradient of the weight, once"


def test_chunks_of_the_reference_bound_the_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    from lumos_engine.reference import loss as module

    seen: list[int] = []
    plain = module._logits

    def counted(hidden: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
        seen.append(len(rows) * len(weight))
        return plain(hidden, weight, rows)

    monkeypatch.setattr(module, "_logits", counted)
    hidden, weight, targets, rows = example()
    options: dict[str, Any] = {"max_logits": 4 * 30 + 29, "backend": "reference"}
    ops.masked_linear_cross_entropy(hidden.requires_grad_(), weight, targets, rows, **options)[0].backward()
    assert seen == [120, 120, 30] * 2, "forward and backward take chunks of four rows"
    seen.clear()
    ops.masked_linear_cross_entropy(hidden, weight, targets[:3], rows[:3], **options)[0].backward()
    assert seen == [90], "the logits of a single chunk are kept"


def test_logits_that_fit_are_kept() -> None:
    case = example()
    kept = torch.ops.lumos._masked_linear_cross_entropy(*case, 9 * 30)[3]
    torch.testing.assert_close(kept, case[0][case[3]] @ case[1].T)
    assert torch.ops.lumos._masked_linear_cross_entropy(*case, 9 * 30 - 1)[3].numel() == 0


@pytest.mark.parametrize("dtype", strategies.DTYPES)
def test_a_row_depends_on_its_own_logits_alone(dtype: torch.dtype, isa: str) -> None:
    """Not on other rows, and not on how the columns are cut into blocks."""
    n, columns = 40, 256 * 5 + 33
    logits, targets = strategies.randn((n, columns), dtype, 3) * 4, torch.arange(n) * 33

    def results(rows: slice, block: int, threads: int = 1) -> list[Tensor]:
        x, t = logits[rows], targets[rows].contiguous()
        state, grad = [poison.GuardedTensor(t.shape, torch.float32) for _ in range(3)], torch.full(t.shape, 0.3)
        pieces = [
            x[:, begin : begin + block].clone(memory_format=torch.contiguous_format)
            for begin in range(0, columns, block)
        ]
        for i, piece in enumerate(pieces):
            last = i + 1 == len(pieces)
            extension.linear_cross_entropy(
                view(piece), view(t), i * block, last, *(view(s.tensor) for s in state), threads
            )
        outs = [poison.GuardedTensor(piece.shape, dtype) for piece in pieces]
        for i, (piece, out) in enumerate(zip(pieces, outs, strict=True)):
            row_state = (view(s.tensor) for s in state[1:])
            extension.linear_cross_entropy_backward(
                view(grad), view(piece), view(t), i * block, *row_state, view(out.tensor), threads
            )
            kept = out.tensor.clone()
            extension.linear_cross_entropy_backward(
                view(grad), view(piece), view(t), i * block, *(view(s.tensor) for s in state[1:]), view(piece), threads
            )
            tolerances.assert_bitwise_equal(piece, kept, "in place")
        for guarded in (*state, *outs):
            guarded.assert_untouched()
        return [*(s.tensor for s in state), torch.cat([out.tensor for out in outs], 1)]

    whole = results(slice(None), columns)
    torch.testing.assert_close(
        whole[0], torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none"), **tolerances.REORDERED
    )
    for block in (256, 512, 1024):
        for a, b in zip(results(slice(None), block, 3), whole, strict=True):
            tolerances.assert_bitwise_equal(a, b)
    for row in (0, 17, n - 1):
        for a, b in zip(results(slice(row, row + 1), 512), whole, strict=True):
            tolerances.assert_bitwise_equal(a, b[row : row + 1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_a_loss_of_zero_and_gradients_of_zero(backend: str) -> None:
    hidden, weight, _, _ = example()
    none = torch.zeros(0, dtype=torch.int64)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    with poison.poisoned_outputs():
        mean, per_row = ops.masked_linear_cross_entropy(*leaves, none, none, backend=backend)
        mean.backward()
    assert mean == 0
    assert per_row.shape == (0,)
    for leaf in leaves:
        assert leaf.grad is not None
        assert not leaf.grad.any()


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


def test_autocast_around_the_backward_changes_nothing() -> None:
    hidden, weight, targets, rows = example(columns=600)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    mean = ops.masked_linear_cross_entropy(*leaves, targets, rows, max_logits=1)[0]
    expected = torch.autograd.grad(mean, leaves, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.autograd.grad(mean, leaves)
    for a, b in zip(actual, expected, strict=True):
        tolerances.assert_bitwise_equal(a, b)


@pytest.mark.parametrize(
    ("dtype", "backend"), [(torch.float32, "cpu"), (torch.bfloat16, "cpu"), (torch.bfloat16, "reference")]
)
def test_runs_and_threads_change_no_bit(dtype: torch.dtype, backend: str) -> None:
    case = example(dtype, 600)

    def results(threads: int) -> list[Tensor]:
        torch.set_num_threads(threads)
        return list(with_gradients(case, dtype, max_logits=1200, backend=backend).values())

    before = torch.get_num_threads()
    try:
        first, again, threaded = results(1), results(1), results(2)
    finally:
        torch.set_num_threads(before)
    for others in (again, threaded):
        for a, b in zip(first, others, strict=True):
            tolerances.assert_bitwise_equal(a, b)


def test_opcheck() -> None:
    for max_logits in (1, 2**24):
        hidden, weight, targets, rows = example(columns=300)
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        arguments = (*leaves, targets, rows)
        torch.library.opcheck(torch.ops.lumos._masked_linear_cross_entropy.default, (*arguments, max_logits))
        with torch.no_grad():
            per_row, *state = torch.ops.lumos._masked_linear_cross_entropy(*arguments, max_logits)
        for needs in ((True, True), (True, False), (False, True)):
            torch.library.opcheck(
                torch.ops.lumos._masked_linear_cross_entropy_backward.default,
                (per_row, hidden.detach(), weight.detach(), targets, rows, *state, max_logits, *needs),
            )


@pytest.mark.parametrize("max_logits", [1, 2**24])
@pytest.mark.filterwarnings("ignore")
def test_compiles_as_one_graph_for_any_number_of_rows(max_logits: int) -> None:
    torch.compiler.reset()
    graphs = 0

    def backend(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return lookup_backend("aot_eager")(graph, inputs)

    def function(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        return ops.masked_linear_cross_entropy(hidden * 2, weight, targets, rows, max_logits=max_logits)[0] + 1

    compiled = torch.compile(function, fullgraph=True, backend=backend)
    hidden, weight, targets, rows = example(columns=300)
    leaves = hidden.requires_grad_(), weight.requires_grad_()
    for n in (9, 5, 7, 3, 8):
        actual, expected = (f(*leaves, targets[:n], rows[:n]) for f in (compiled, function))
        tolerances.assert_bitwise_equal(actual.detach(), expected.detach())
        for a, b in zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True):
            tolerances.assert_bitwise_equal(a, b)
    assert graphs == 2, "one for the first number of rows, one for all others"
    with pytest.raises(ValueError, match=r"targets are 0\.\.300; they must be in 0\.\.299"):
        compiled(*leaves, torch.tensor([0, 300, 4, 4]), rows[:4])


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
        (ValueError, "max_logits is 0; it must be at least 1", {"max_logits": 0}),
        (RuntimeError, "CUDA", {"backend": "cuda"}),
    ],
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_input_is_named(error: type[Exception], message: str, changes: dict[str, Any], backend: str) -> None:
    arguments = {
        "backend": backend,
        "hidden": torch.ones(4, 8), "weight": torch.ones(5, 8), "targets": torch.zeros(2, dtype=torch.int64),
        "rows": torch.zeros(2, dtype=torch.int64),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.masked_linear_cross_entropy(**{**arguments, **changes})
