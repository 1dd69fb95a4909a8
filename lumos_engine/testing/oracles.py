"""What the right answer is, for each operation that ``check_backend`` knows."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .. import ops
from ..kv_cache import PagedKeys
from ..layout import Frame, SequenceLayout, Text
from . import eager, strategies_cases, tolerances
from .case import Case
from .strategies import randn
from .strategies_cases import Choice

Results = dict[str, Tensor]
_MEASURED_ROWS = 2000  # the largest error of eager torch in few rows is a matter of luck


def run(function: Callable[..., Any], case: Case, names: tuple[str, ...], leaves: tuple[str, ...] = ()) -> Results:
    """Results of ``function`` by name (those that are None left out), and ``grad_<leaf>`` of each of ``leaves``."""
    inputs = {name: case.arguments[name].detach().requires_grad_() for name in leaves}
    returned = function(*{**case.arguments, **inputs}.values(), **case.options)
    results = (returned,) if isinstance(returned, Tensor) else tuple(returned)
    assert len(results) == len(names), f"the kernel returned {len(results)} results; expected {', '.join(names)}"
    named = {name: result for name, result in zip(names, results, strict=True) if result is not None}
    found = {name: result.detach().cpu() for name, result in named.items()}
    if leaves:
        outputs = {name: result for name, result in named.items() if name in case.grads}
        upstream = [case.grads[name].to(result.device, result.dtype) for name, result in outputs.items()]
        # A layout whose queries see nothing leaves eager torch without a graph to some leaves.
        grads = torch.autograd.grad(list(outputs.values()), list(inputs.values()), upstream, allow_unused=True)
        for (name, leaf), grad in zip(inputs.items(), grads, strict=True):
            found[f"grad_{name}"] = torch.zeros_like(leaf) if grad is None else grad.cpu()
    return {name: result.detach() for name, result in found.items()}


@dataclass(frozen=True)
class Oracle:
    """Everything that is known of one operation.

    Attributes:
        op: name in ``lumos_engine.ops``.
        cases: strategy of calls, drawn from a ``Choice``.
        results: names of what it returns.
        floats: arguments that the reference gets in fp64. leaves: those that have a gradient.
        properties: what holds for it apart from values and gradients, names in ``properties``.
        promises: what it may promise about bits, names in ``properties``.
        per_token: results whose row i belongs to token i.
        wide: arguments that get more heads (dimension -2) to measure the error of eager torch.
        sums: whether the baseline takes sums, whose order is free.
        neighbours: (case, seed) -> another call that shares tokens with the first, and the shared rows of each.
    """

    op: str
    cases: Callable[[Choice], st.SearchStrategy[Case]]
    results: tuple[str, ...]
    floats: tuple[str, ...]
    leaves: tuple[str, ...] = ()
    properties: tuple[str, ...] = ()
    promises: tuple[str, ...] = ("run_to_run", "threads")
    per_token: tuple[str, ...] = ()
    wide: tuple[str, ...] = ()
    sums: bool = True
    neighbours: Callable[[Case, int], tuple[Case, slice, slice]] | None = None

    def exact(self, case: Case, backward: bool) -> Results:
        """The reference in fp64."""
        reference = partial(getattr(ops, self.op), backend="reference")
        return run(reference, case.in_float64(self.floats), self.results, self.leaves if backward else ())

    def bounds(self, case: Case, backward: bool) -> dict[str, tuple[torch.dtype, float]]:
        """The dtype of each result and how far it may lie from ``exact``; see ``tolerances``."""
        case = _with_more_heads(case, self.wide)
        exact = self.exact(case, backward)
        leaves = self.leaves if backward else ()
        eager_op = getattr(eager, self.op)
        calls = [partial(eager_op, order=order) for order in tolerances.ORDERS] if self.sums else [eager_op]
        runs = [run(call, case, self.results, leaves) for call in calls]
        if backward and self.op == "block_attention":
            arguments, grad = {**case.arguments, **case.options}, case.grads["out"]
            for order in tolerances.ORDERS:
                grads = eager.block_attention_gradients(**arguments, grad=grad, from_lse=True, order=order)
                runs.append({f"grad_{leaf}": x for leaf, x in zip(self.leaves, grads, strict=True)})
        return {
            name: (x.dtype, tolerances.error_bound(exact[name], [r[name] for r in runs if name in r], x.dtype))
            for name, x in runs[0].items()
        }


def _with_more_heads(case: Case, names: tuple[str, ...]) -> Case:
    """The call with so many heads, those of ``case`` in front, that there are ``_MEASURED_ROWS``."""
    if not names:
        return case
    factor = math.ceil(_MEASURED_ROWS / case.arguments[names[0]].shape[:2].numel())

    def more(x: Tensor, seed: int) -> Tensor:
        return torch.cat((x, randn((*x.shape[:-2], (factor - 1) * x.shape[-2], x.shape[-1]), x.dtype, seed)), -2)

    arguments = {name: more(case.arguments[name], i) for i, name in enumerate(names)}
    grads = {name: more(grad, 10) for name, grad in case.grads.items()}
    return Case({**case.arguments, **arguments}, case.options, grads)


# ---- calls that share tokens


def _packed_behind_others(case: Case, seed: int) -> tuple[Case, slice, slice]:
    layout = case.arguments["layout"]
    before: list[list[Text | Frame]] = [[Text(3)], [Frame(9, 9), Text(2)]]
    lengths = [sum(s.num_tokens for s in segments) for segments in (*before, *layout.sequences)]
    extra = lengths[0] + lengths[1]
    packed = SequenceLayout.from_intervals(
        lengths,
        torch.cat((SequenceLayout.from_segments(before).intervals, layout.intervals)),
        hidden=None if layout.hidden is None else torch.cat((torch.zeros(extra, dtype=torch.bool), layout.hidden)),
        segments=[*before, *map(list, layout.sequences)],
    )

    def behind(x: Tensor, seed: int) -> Tensor:
        return torch.cat((randn((extra, *x.shape[1:]), x.dtype, seed), x))

    tensors = {name: behind(case.arguments[name], seed + i) for i, name in enumerate("qkv")}
    grads = {name: behind(grad, seed + 3) for name, grad in case.grads.items()}
    return Case({**tensors, "layout": packed}, case.options, grads), slice(None), slice(extra, None)


def _some_tokens(case: Case, seed: int) -> tuple[Case, slice, slice]:
    """A range of the tokens; arguments and gradients that have a row a token are cut."""
    tokens = len(next(iter(case.arguments.values())))
    begin = seed % tokens
    rows = slice(begin, begin + 1 + seed // tokens % (tokens - begin))
    cut = {n: x[rows] for n, x in case.arguments.items() if not n.endswith(("_weight", "_bias"))}
    grads = {name: grad[rows] for name, grad in case.grads.items()}
    return Case({**case.arguments, **cut}, case.options, grads), rows, slice(None)


def _one_sequence(case: Case, seed: int) -> tuple[Case, slice, slice]:
    """One sequence of a step alone."""
    step, tiles = case.arguments["step"], case.arguments["key_tiles"].tiles
    place = seed % len(step.sequences)
    rows = slice(int(step.cu_seqlens[place]), int(step.cu_seqlens[place + 1]))
    own = tiles[tiles[:, 3] == place].clone()
    own[:, 3] = 0
    alone = case.with_arguments(
        q=case.arguments["q"][rows],
        page_table=case.arguments["page_table"][place : place + 1],
        key_tiles=PagedKeys(own),
        step=step.layout.step(step.sequences[place], step.begin[place], step.end[place]),
    )
    return alone, rows, slice(None)


_QK = ("q", "k", "q_weight", "q_bias", "k_weight", "k_bias")
ORACLES = {
    oracle.op: oracle
    for oracle in (
        Oracle(
            "block_attention", strategies_cases.block_attention, ("out", "lse"), ("q", "k", "v"), ("q", "k", "v"),
            properties=("causality", "unseen_nan", "empty_rows"), promises=("run_to_run", "threads", "packing"),
            per_token=("out", "lse", "grad_q", "grad_k", "grad_v"), wide=("q", "k", "v"), neighbours=_packed_behind_others,
        ),
        Oracle(
            "paged_attention", strategies_cases.paged_attention, ("out", "lse"), ("q", "k_pages", "v_pages"),
            promises=("run_to_run", "threads", "packing", "placement"), per_token=("out", "lse"),
            wide=("q",), neighbours=_one_sequence,
        ),
        Oracle(
            "mm_rope", strategies_cases.mm_rope, ("rotated",), ("x",), ("x",),
            promises=("run_to_run", "threads", "packing"), per_token=("rotated", "grad_x"),
            sums=False, neighbours=_some_tokens,
        ),
        Oracle(
            "qk_norm_mm_rope", strategies_cases.qk_norm_mm_rope, ("q", "k"), _QK, _QK,
            promises=("run_to_run", "threads", "packing"), per_token=("q", "k", "grad_q", "grad_k"),
            neighbours=_some_tokens,
        ),
        Oracle(
            "merge_attention", strategies_cases.merge_attention, ("out", "lse"), ("out_a", "lse_a", "out_b", "lse_b"),
            promises=("run_to_run", "threads", "packing"), per_token=("out", "lse"), sums=False,
            neighbours=_some_tokens,
        ),
        Oracle(
            "masked_linear_cross_entropy", strategies_cases.masked_linear_cross_entropy, ("mean", "per_row"),
            ("hidden", "weight"), ("hidden", "weight"),
        ),
    )
}  # fmt: skip
"""By the name of the operation."""
