"""The AR-DF loss in blocks of columns (cpu, cuda) and chunks of rows (reference), against all logits at once."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo import lookup_backend
from torch.utils._python_dispatch import TorchDispatchMode

import lumos_engine._C as extension
from lumos_engine import ops
from lumos_engine.ops import _registry, loss
from lumos_engine.testing import check_backend, eager, poison, strategies, tolerances
from lumos_engine.testing.backends import BACKENDS, COMPILED, DTYPES, running

Plain = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Case = tuple[Tensor, Tensor, Tensor, Tensor]
ISAS = extension.available_isas()
COMPILED_DTYPES = [(backend, dtype) for backend in COMPILED for dtype in DTYPES[backend]]
every_compiled = pytest.mark.parametrize(("backend", "dtype"), COMPILED_DTYPES)


@st.composite
def cases(draw: st.DrawFn, backend: str) -> Case:
    """(hidden, weight, targets, rows): rows in any order, some twice, some never; the weight a slice of a larger head."""
    tokens, width = draw(st.integers(1, 12)), draw(st.sampled_from([4, 8, 33]))
    columns = draw(st.sampled_from([1, 5, 70, 256, 600, 1030]))
    n, seed, dtype = draw(st.integers(1, 20)), draw(st.integers(0, 2**30)), draw(st.sampled_from(DTYPES[backend]))
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


def by_rows(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, *, order: int = 0) -> Tensor:
    """Eager torch on one row after the other: its products of one row sum in another order."""
    places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(order))
    each = zip(targets[places].split(1), rows[places].split(1), strict=True)
    per_row = torch.cat([eager.linear_cross_entropy(hidden, weight, *row, order=order) for row in each])
    return per_row[places.argsort()]


def with_gradients(case: Case, dtype: torch.dtype, plain: Plain | None = None, **options: Any) -> dict[str, Tensor]:
    """Results and gradients of mean + sum of weighted rows, on the CPU."""
    hidden, weight = (t.detach().to(dtype).requires_grad_() for t in case[:2])
    if plain:
        per_row = plain(hidden, weight, *case[2:])
        mean = per_row.mean()
    else:
        mean, per_row = ops.masked_linear_cross_entropy(hidden, weight, *case[2:], **options)
    factors = torch.linspace(-1, 2, len(per_row), dtype=per_row.dtype, device=per_row.device)
    grads = torch.autograd.grad(mean + (per_row * factors).sum(), (hidden, weight))
    results = {"mean": mean.detach(), "per_row": per_row.detach(), "dhidden": grads[0], "dweight": grads[1]}
    return {name: result.cpu() for name, result in results.items()}


def placed(case: Case, place: Callable[[Tensor], Tensor]) -> Case:
    hidden, weight, targets, rows = map(place, case)
    return hidden, weight, targets, rows


def assert_exact_as_promised(case: Case, *actual: dict[str, Tensor]) -> None:
    exact = with_gradients(case, torch.float64, eager.linear_cross_entropy)
    # Few elements may all be exact by luck: then more orders make up for it.
    orders = tolerances.ORDERS if case[0].numel() >= 64 else range(8 * len(tolerances.ORDERS))
    plain = [partial(op, order=order) for op in (eager.linear_cross_entropy, by_rows) for order in orders]
    runs = [with_gradients(case, case[0].dtype, op) for op in plain]
    for number, results in enumerate(actual):
        for name in ("per_row", "dhidden", "dweight"):
            tolerances.assert_within_bound(
                results[name], exact[name], [run[name] for run in runs], f"{name} of call {number}"
            )
        per_row = results["per_row"]
        tolerances.assert_within_bound(results["mean"], per_row.double().mean(), per_row.mean(), "mean of the rows")


# exp(logit - lse) in place of softmax: the gradient of the weight missed by the rounding of a logit times hidden.
SHARP = torch.tensor([[46.2299]]), torch.tensor([[0.6614], [0.2669], [0.0617], [0.6213], [-0.4519]])


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data(), max_logits=st.sampled_from([2**24, 1, 20 * 512, 100]), schedule=strategies.seeds())
def test_loss_and_gradients_are_as_exact_as_promised(
    data: st.DataObject, max_logits: int, schedule: int, backend: str
) -> None:
    case = data.draw(cases(backend))
    actual = []
    for level in ISAS if backend == "cpu" else ISAS[-1:]:
        extension.set_cpu_isa(level)
        with running(backend, schedule) as place, poison.poisoned_outputs():
            actual.append(with_gradients(placed(case, place), case[0].dtype, max_logits=max_logits))
    assert_exact_as_promised(case, *actual)


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_gradient_of_a_sharp_softmax(backend: str) -> None:
    case = *SHARP, torch.tensor([4, 4]), torch.tensor([0, 0])
    with running(backend) as place:
        actual = with_gradients(placed(case, place), torch.float32)
    assert_exact_as_promised(case, actual)


@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.parametrize("max_logits", [2**24, 1])
def test_what_lies_behind_the_rows_of_logits_has_no_influence(max_logits: int, backend: str) -> None:
    """Rows that are padded to 16 bytes, in memory that held NaN."""
    hidden, weight, targets, rows = example(torch.bfloat16, 269)
    targets, rows = targets[:1].repeat(33) % 13, rows[:1].repeat(33)
    with running(backend) as place, poison.poisoned_outputs():
        case = placed((hidden, weight, targets, rows), place)
        actual = with_gradients(case, torch.bfloat16, max_logits=max_logits)
    assert_exact_as_promised((hidden, weight, targets, rows), actual)


def assert_exact_with_a_target_in_every_block(dtype: torch.dtype, backend: str) -> None:
    columns = 4 * 256 + 77
    hidden, weight, _, _ = example(dtype, columns)
    targets = torch.tensor([0, 255, 256, 511, 512, 700, 767, 768, 1023, 1024, columns - 1])
    case = hidden, weight, targets, torch.arange(len(targets)) % len(hidden)
    for max_logits in (1, 2**24):
        with running(backend) as place:
            actual = with_gradients(placed(case, place), dtype, max_logits=max_logits)
        assert_exact_as_promised(case, actual)


@pytest.mark.parametrize("dtype", DTYPES["cpu"])
def test_a_target_in_every_block(dtype: torch.dtype, isa: str) -> None:
    assert_exact_with_a_target_in_every_block(dtype, "cpu")


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
def test_a_target_in_every_block_on_cuda(dtype: torch.dtype, backend: str) -> None:
    assert_exact_with_a_target_in_every_block(dtype, backend)


@pytest.mark.parametrize(("backend", "dtype"), [*COMPILED_DTYPES, *(("reference", d) for d in strategies.DTYPES)])
def test_extreme_logits(dtype: torch.dtype, backend: str) -> None:
    weight = torch.zeros(600, 2, dtype=dtype)
    weight[::2, 0], weight[1::2, 0] = 1.0, -1.0
    hidden = torch.tensor([[1e4, 0], [-1e4, 0], [0, 3]], dtype=dtype)  # 1e4 and -1e4 in turn, or all equal
    targets, rows = torch.tensor([2, 599, 2, 3, 300]), torch.tensor([0, 1, 1, 0, 2])
    top = float(hidden[0, 0])
    half, all_equal = torch.tensor(300.0).log(), torch.tensor(600.0).log()
    expected = torch.stack((half, half, 2 * top + half, 2 * top + half, all_equal))
    with running(backend) as place:
        leaf = place(hidden).requires_grad_()
        _, per_row = ops.masked_linear_cross_entropy(leaf, *map(place, (weight, targets, rows)), max_logits=1)
        grad = torch.autograd.grad(per_row[:2].sum(), leaf)[0].cpu()
    torch.testing.assert_close(per_row.cpu(), expected, **tolerances.CLOSED_FORM)
    torch.testing.assert_close(grad, torch.zeros_like(grad), rtol=0, atol=10 * tolerances.ulp(torch.float32, 1e4))


@pytest.mark.parametrize("backend", COMPILED)
def test_a_loss_near_zero_keeps_its_digits(backend: str) -> None:
    """lse - logit of the target would round at the size of the logits."""
    weight = torch.tensor([[1.0], [1.0 - 2**-13]]).repeat(1, 1)
    hidden = torch.full((1, 1), 8192.0)  # logits 8192 and 8191
    zero = torch.zeros(1, dtype=torch.int64)
    with running(backend) as place:
        loss = ops.masked_linear_cross_entropy(*map(place, (hidden, weight, zero, zero)))[0]
    torch.testing.assert_close(
        loss.cpu(), torch.tensor(1.0).neg().exp().log1p(), rtol=tolerances.CLOSED_FORM["rtol"], atol=0
    )


@pytest.mark.parametrize("max_logits", [30, 4 * 30, 2**24])
def test_gradient_check_of_the_reference(max_logits: int) -> None:
    hidden, weight, targets, rows = example()
    leaves = (hidden.double().requires_grad_(), weight.double().requires_grad_())
    assert torch.autograd.gradcheck(
        lambda h, w: ops.masked_linear_cross_entropy(h, w, targets, rows, max_logits=max_logits), leaves
    )


@pytest.mark.parametrize("max_logits", [1, 2**24])
@every_compiled
@pytest.mark.parametrize("needs", [(True, False), (False, True)])
def test_only_what_is_needed_gets_a_gradient(
    needs: tuple[bool, bool], dtype: torch.dtype, max_logits: int, backend: str
) -> None:
    with running(backend) as place:
        case = placed(example(dtype, 600), place)
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


@pytest.mark.parametrize("backend", COMPILED)
def test_tokens_outside_rows_have_no_influence(backend: str) -> None:
    hidden, weight, targets, rows = example()
    outside = torch.ones(len(hidden), dtype=torch.bool)
    outside[rows] = False
    assert outside.any()
    with running(backend) as place:
        arguments = tuple(map(place, (weight, targets, rows)))
        poisoned = place(hidden.masked_fill(outside[:, None], float("nan"))).requires_grad_()
        loss, _ = ops.masked_linear_cross_entropy(poisoned, *arguments)
        loss.backward()
        assert torch.equal(loss.detach(), ops.masked_linear_cross_entropy(place(hidden), *arguments)[0])
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


@every_compiled
def test_neither_all_logits_nor_a_second_gradient_of_the_weight_exist(dtype: torch.dtype, backend: str) -> None:
    def allocations(n: int, width: int, max_logits: int) -> tuple[list[int], list[int]]:
        with running(backend) as place:
            hidden, weight = (place(strategies.randn((length, width), dtype, length)) for length in (n, 2560))
            rows, grad = place(torch.arange(n)), place(torch.ones(n))
            with Allocations(hidden, weight, rows) as forward:
                _, *state = loss._forward(hidden, weight, rows, rows, max_logits)
            with Allocations(hidden, weight, rows, grad, *state) as backward:
                loss._backward(grad, hidden, weight, rows, rows, *state, max_logits, True, True)
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
    torch.testing.assert_close(kept, case[0][case[3]] @ case[1].T, **tolerances.REORDERED)
    assert torch.ops.lumos._masked_linear_cross_entropy(*case, 9 * 30 - 1)[3].numel() == 0


def kernel_results(
    logits: Tensor, targets: Tensor, block: int, backend: str, schedule: int | None = None, padding: int = 8
) -> list[Tensor]:
    """What the kernels make of [rows, columns] in blocks of columns, with guards: loss, row_max, row_sum, grad_logits."""
    n = len(logits)
    state = [poison.GuardedTensor(targets.shape, torch.float32) for _ in range(3)]
    memories: list[poison.GuardedTensor] = []
    with running(backend, schedule) as place:
        targets, grad = place(targets), place(torch.full(targets.shape, 0.3))
        loss, row_max, row_sum = (place(guarded.tensor) for guarded in state)

        def rows_apart(num_columns: int) -> Tensor:
            memories.append(poison.GuardedTensor((n, -(-num_columns // 8) * 8 + padding), logits.dtype))
            return memories[-1].tensor[:, :num_columns]

        pieces = [rows_apart(part.shape[1]).copy_(part) for part in logits.split(block, 1)]
        for i, piece in enumerate(map(place, pieces)):
            last = i + 1 == len(pieces)
            _registry.call("linear_cross_entropy", piece, targets, i * block, last, loss, row_max, row_sum)
        outs = []
        for i, piece in enumerate(map(place, pieces)):
            out = place(rows_apart(piece.shape[1]))
            for into in (out, piece):
                _registry.call("linear_cross_entropy_backward", grad, piece, targets, i * block, row_max, row_sum, into)
            tolerances.assert_bitwise_equal(piece, out, "in place")
            outs.append(out.cpu())
        results = [x.cpu() for x in (loss, row_max, row_sum)]
    for guarded in (*state, *memories):
        guarded.assert_untouched()
    for memory, out in zip(memories, (*pieces, *outs), strict=True):
        assert bool(memory.tensor[:, out.shape[1] :].isnan().all()), "written between the rows"
    return [*results, torch.cat(outs, 1)]


def assert_rows_depend_on_their_own_logits_alone(dtype: torch.dtype, backend: str) -> None:
    """Not on other rows, and not on how the columns are cut into blocks."""
    n, columns = 40, 256 * 5 + 33
    logits, targets = strategies.randn((n, columns), dtype, 3) * 4, torch.arange(n) * 33
    whole = kernel_results(logits, targets, columns, backend)
    torch.testing.assert_close(
        whole[0], torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none"), **tolerances.REORDERED
    )
    for block in (256, 512, 1024):
        for a, b in zip(kernel_results(logits, targets, block, backend, schedule=block), whole, strict=True):
            tolerances.assert_bitwise_equal(a, b)
    for row in (0, 17, n - 1):
        alone = kernel_results(logits[row : row + 1], targets[row : row + 1], 512, backend)
        for a, b in zip(alone, whole, strict=True):
            tolerances.assert_bitwise_equal(a, b[row : row + 1])


@pytest.mark.parametrize("dtype", DTYPES["cpu"])
def test_a_row_depends_on_its_own_logits_alone(dtype: torch.dtype, isa: str) -> None:
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert_rows_depend_on_their_own_logits_alone(dtype, "cpu")
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("dtype", DTYPES["cuda"])
def test_a_row_depends_on_its_own_logits_alone_on_cuda(dtype: torch.dtype, backend: str) -> None:
    assert_rows_depend_on_their_own_logits_alone(dtype, backend)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("falling", [False, True])
def test_more_tiles_than_a_block_holds_on_cuda(falling: bool, backend: str) -> None:
    """Rows of several rounds, with maxima that rise or fall from tile to tile: every sum is scaled again, or every tile."""
    columns = 256 * 600 + 5
    slope = torch.linspace(0, 60, columns)
    logits = strategies.randn((2, columns), torch.bfloat16, 0) + (slope.flip(0) if falling else slope).bfloat16()
    targets = torch.tensor([columns - 1, 0])
    whole = kernel_results(logits, targets, columns, backend, schedule=1)
    exact = torch.nn.functional.cross_entropy(logits.double(), targets, reduction="none")
    torch.testing.assert_close(whole[0].double(), exact, **tolerances.REORDERED)
    for a, b in zip(kernel_results(logits, targets, 256 * 77, backend), whole, strict=True):
        tolerances.assert_bitwise_equal(a, b)


@every_compiled
def test_logits_that_are_infinite_or_nan(dtype: torch.dtype, backend: str) -> None:
    """A tile of -inf has no influence; what is infinite or NaN shows in its row, and in no other."""
    logits = strategies.randn((4, 600), dtype, 0)
    logits[0, :256] = logits[1, 256:512] = -torch.inf
    logits[2, 300], logits[3] = float("nan"), -torch.inf
    loss, _, _, grad = kernel_results(logits, torch.tensor([400, 3, 3, 3]), 256, backend)
    kept = torch.stack((logits[0, 256:], torch.cat((logits[1, :256], logits[1, 512:]))[:344]))
    expected = kept.double().logsumexp(1) - torch.stack((logits[0, 400], logits[1, 3])).double()
    torch.testing.assert_close(loss[:1].double(), expected[:1], **tolerances.REORDERED)
    assert bool(loss[:2].isfinite().all() and grad[:2].isfinite().all())
    assert not grad[0, :256].any()
    assert bool(loss[2:].isnan().all() and grad[2:].isnan().all())


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("max_logits", [1, 2**24])
@pytest.mark.parametrize("target", [-1, 600, -100, 2**31, -(2**63), 2**63 - 1])
def test_a_target_out_of_range_makes_its_row_nan_on_cuda(target: int, max_logits: int, backend: str) -> None:
    with running(backend) as place:
        hidden, weight, targets, _ = placed(example(columns=600), place)
        rows = place(torch.arange(9))
        targets[4] = target
        leaf = hidden.requires_grad_()
        mean, per_row = ops.masked_linear_cross_entropy(leaf, weight, targets, rows, max_logits=max_logits)
        grad = torch.autograd.grad(per_row.sum(), leaf)[0]
    assert mean.isnan()
    assert per_row.isnan().tolist() == [row == 4 for row in range(9)]
    assert grad.isnan().any(1).tolist() == [row == 4 for row in range(10)]


@pytest.mark.parametrize("backend", ["cuda"])
def test_a_head_without_columns_is_refused_on_cuda(backend: str) -> None:
    with running(backend) as place, pytest.raises(ValueError, match="weight has no rows; 9 targets need one"):
        hidden, _, targets, rows = placed(example(), place)
        ops.masked_linear_cross_entropy(hidden, hidden[:0], targets, rows)


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize(("columns", "offset"), [(33, 0), (40, 1)])
def test_logits_that_are_not_aligned_to_16_bytes_are_refused_on_cuda(columns: int, offset: int, backend: str) -> None:
    with running(backend) as place:
        logits = place(torch.zeros(2 * columns + offset))[offset:].view(2, columns)
        targets, state = place(torch.zeros(2, dtype=torch.int64)), [place(torch.zeros(2)) for _ in range(3)]
        with pytest.raises(
            ValueError, match=r"logits begins at \d+ and has a stride of \d+ bytes; both must be multiples"
        ):
            _registry.call("linear_cross_entropy", logits, targets, 0, True, *state)


@pytest.mark.parametrize("backend", COMPILED)
def test_rows_of_logits_beyond_32_bits(backend: str) -> None:
    """Of memory that no one touches between the two rows."""
    stride, targets, grad = 2**31 + 64, torch.tensor([3, 300]), torch.ones(2)
    with running(backend) as place:
        near, targets, grad = place(strategies.randn((2, 304), torch.bfloat16, 0)), place(targets), place(grad)
        far = torch.empty(stride + 304, dtype=near.dtype, device=near.device).as_strided((2, 304), (stride, 1))
        found = []
        for logits in (near, far.copy_(near)):
            state = [torch.empty(2, device=near.device) for _ in range(3)]
            _registry.call("linear_cross_entropy", logits, targets, 0, True, *state)
            _registry.call("linear_cross_entropy_backward", grad, logits, targets, 0, *state[1:], logits)
            found.append((*state, logits))
    for a, b in zip(*found, strict=True):
        tolerances.assert_bitwise_equal(a, b)


@pytest.mark.parametrize("backend", ["cuda"])
def test_properties_on_cuda(backend: str) -> None:
    with running(backend, 7) as place:

        def kernel(*arguments: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
            return ops.masked_linear_cross_entropy(*map(place, arguments), **options)

        check_backend(
            "masked_linear_cross_entropy", kernel, backward=True, promises=("run_to_run",), dtypes=DTYPES["cuda"],
            max_examples=5,
        )  # fmt: skip


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_give_a_loss_of_zero_and_gradients_of_zero(backend: str) -> None:
    hidden, weight, _, _ = example()
    with running(backend) as place, poison.poisoned_outputs():
        none = place(torch.zeros(0, dtype=torch.int64))
        leaves = place(hidden).requires_grad_(), place(weight).requires_grad_()
        mean, per_row = ops.masked_linear_cross_entropy(*leaves, none, none)
        mean.backward()
    assert mean == 0
    assert per_row.shape == (0,)
    for leaf in leaves:
        assert leaf.grad is not None
        assert not leaf.grad.any()


@pytest.mark.parametrize("backend", COMPILED)
def test_autocast_computes_in_its_dtype_and_returns_fp32(backend: str) -> None:
    with running(backend) as place:
        hidden, weight, targets, rows = placed(example(), place)
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        with torch.autocast(hidden.device.type, torch.bfloat16):
            loss, per_row = ops.masked_linear_cross_entropy(*leaves, targets, rows)
        gradients = torch.autograd.grad(loss, leaves)
        expected, _ = ops.masked_linear_cross_entropy(hidden.bfloat16(), weight.bfloat16(), targets, rows)
        assert loss.dtype == per_row.dtype == torch.float32
        assert torch.equal(loss, expected)
        assert [g.dtype for g in gradients] == [torch.float32] * 2
        with torch.autocast(hidden.device.type, torch.bfloat16):  # a bf16 activation meets fp32 weights
            assert torch.equal(ops.masked_linear_cross_entropy(hidden.bfloat16(), weight, targets, rows)[0], expected)


@pytest.mark.parametrize("backend", COMPILED)
def test_autocast_around_the_backward_changes_nothing(backend: str) -> None:
    with running(backend) as place:
        hidden, weight, targets, rows = placed(example(columns=600), place)
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        mean = ops.masked_linear_cross_entropy(*leaves, targets, rows, max_logits=1)[0]
        expected = torch.autograd.grad(mean, leaves, retain_graph=True)
        with torch.autocast(hidden.device.type, torch.bfloat16):
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


@pytest.mark.parametrize("max_logits", [1, 2**24])
@pytest.mark.parametrize("backend", COMPILED)
def test_opcheck(backend: str, max_logits: int) -> None:
    with running(backend) as place:
        hidden, weight, targets, rows = placed(example(columns=301), place)
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
@pytest.mark.parametrize("backend", COMPILED)
@pytest.mark.filterwarnings("ignore")
def test_compiles_as_one_graph_for_any_number_of_rows(backend: str, max_logits: int) -> None:
    torch.compiler.reset()
    graphs = 0

    def counting(graph: Any, inputs: Any) -> Any:
        nonlocal graphs
        graphs += 1
        return lookup_backend("aot_eager")(graph, inputs)

    def function(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
        return ops.masked_linear_cross_entropy(hidden * 2, weight, targets, rows, max_logits=max_logits)[0] + 1

    compiled = torch.compile(function, fullgraph=True, backend=counting)
    with running(backend) as place:
        hidden, weight, targets, rows = placed(example(columns=300), place)
        leaves = hidden.requires_grad_(), weight.requires_grad_()
        for n in (9, 5, 7, 3, 8):
            actual, expected = (f(*leaves, targets[:n], rows[:n]) for f in (compiled, function))
            tolerances.assert_bitwise_equal(actual.detach(), expected.detach())
            for a, b in zip(torch.autograd.grad(actual, leaves), torch.autograd.grad(expected, leaves), strict=True):
                tolerances.assert_bitwise_equal(a, b)
    assert graphs == 2, "one for the first number of rows, one for all others"
    if backend == "cuda":
        return
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
        ((RuntimeError, ValueError), "CUDA kernel of it|given a tensor on cpu; move it to a GPU", {"backend": "cuda"}),
    ],
)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_bad_input_is_named(
    error: type[Exception] | tuple[type[Exception], ...], message: str, changes: dict[str, Any], backend: str
) -> None:
    arguments = {
        "backend": backend,
        "hidden": torch.ones(4, 8), "weight": torch.ones(5, 8), "targets": torch.zeros(2, dtype=torch.int64),
        "rows": torch.zeros(2, dtype=torch.int64),
    }  # fmt: skip
    with pytest.raises(error, match=message):
        ops.masked_linear_cross_entropy(**{**arguments, **changes})
