"""``check_backend``: the property suite on a kernel of your own."""

from __future__ import annotations

import contextlib
import time
import unittest
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis
import torch
from hypothesis import strategies as st

from ..layout import SequenceLayout
from . import strategies
from .case import Case
from .oracles import ORACLES
from .properties import PROPERTIES, Subject, num_threads
from .strategies_cases import Choice

_SHRINK_S = 20.0  # how long a smaller call is looked for after the first failure
_NEEDS_EMPTY_ROWS = ("unseen_nan", "empty_rows")


@dataclass(frozen=True)
class Report:
    """What ``check_backend`` has seen hold.

    Attributes:
        op: the operation. num_examples: of each property, how many generated calls it held for.
    """

    op: str
    num_examples: dict[str, int]

    def __str__(self) -> str:
        return "\n".join((self.op, *(f"  {name:<12}{count:>6} examples" for name, count in self.num_examples.items())))


def check_backend(
    op: str,
    kernel: Callable[..., Any],
    *,
    backward: bool = False,
    promises: Collection[str] = (),
    waive: Collection[str] = (),
    dtypes: Sequence[torch.dtype] = strategies.DTYPES,
    head_dims: Sequence[int] = strategies.HEAD_DIMS,
    memory_orders: Sequence[str] = strategies.MEMORY_ORDERS,
    layouts: st.SearchStrategy[SequenceLayout] | None = None,
    max_examples: int = 50,
    seed: int | None = 0,
) -> Report:
    """Search for a call that ``kernel`` answers wrongly, and show the smallest one.

    Every property of the operation is tested on ``max_examples`` generated calls: ``values`` within the bound of
    ``tolerances`` of the fp64 reference, the arguments unchanged; for ``block_attention`` also ``causality``,
    ``unseen_nan`` (keys that nobody sees may hold NaN) and ``empty_rows`` (tokens that see nothing). The kernel's
    outputs lie in memory that held NaN.

    Args:
        op: "block_attention", "paged_attention", "mm_rope", "qk_norm_mm_rope", "merge_attention" or
            "masked_linear_cross_entropy".
        kernel: takes the arguments of ``lumos_engine.ops.<op>`` but ``backend``, on the CPU, and returns its results,
            on any device; a result that it does not compute, such as lse, may be None.
        backward: test ``gradients`` through torch's autograd too.
        promises: bitwise equalities that the kernel promises: "run_to_run"; "threads", over 1 to 4 of torch's threads;
            "packing", alone or among other tokens; "placement", for ``paged_attention``, at any place of the pages.
        waive: properties that are not tested: state them when you report a result.
        dtypes, head_dims, memory_orders: what tensors are drawn from; see ``strategies.in_order`` for the orders.
        layouts: strategy of the layouts, such as ``strategies.window_layouts()``; default every kind there is.
        max_examples: calls for each property.
        seed: the examples follow from it; None for others in every run.

    Returns:
        The properties that held and the number of calls of each.

    Raises:
        AssertionError: naming the property, the smallest call that was found, and what is wrong with its result.
        ValueError: an unknown operation, promise or property.
    """
    if op not in ORACLES:
        raise ValueError(f"check_backend: op is {op!r}; allowed: {', '.join(ORACLES)}")
    oracle = ORACLES[op]
    if backward and not oracle.leaves:
        raise ValueError(f"check_backend: backward is True; {op} has no gradient")
    contract = ("values", *(("gradients",) if backward else ()), *oracle.properties)
    for name, given, allowed in (("promises", promises, oracle.promises), ("waive", waive, contract)):
        if unknown := sorted(set(given) - set(allowed)):
            raise ValueError(f"check_backend: {name} holds {unknown[0]!r}; allowed for {op}: {', '.join(allowed)}")
    subject = Subject(oracle, kernel, backward)
    counts = {}
    for name in (*contract, *(promise for promise in oracle.promises if promise in promises)):
        if name in waive:
            continue
        own_layouts = strategies.interval_layouts() if layouts is None and name in _NEEDS_EMPTY_ROWS else layouts
        cases = oracle.cases(Choice(dtypes, head_dims, memory_orders, own_layouts))
        counts[name] = _search(subject, name, cases, max_examples, seed)
    return Report(op, counts)


def _search(subject: Subject, name: str, cases: st.SearchStrategy[Case], max_examples: int, seed: int | None) -> int:
    """How many calls the property held for; AssertionError with the smallest one that it does not hold for."""
    held = 0
    smallest: AssertionError | None = None
    stop_s = float("inf")

    @hypothesis.settings(
        max_examples=max_examples, derandomize=False, database=None, deadline=None, report_multiple_bugs=False,
        phases=(hypothesis.Phase.generate, hypothesis.Phase.shrink), suppress_health_check=list(hypothesis.HealthCheck),
    )  # fmt: skip
    @hypothesis.given(cases, st.integers(0, 2**30))
    def holds(case: Case, choice: int) -> None:
        nonlocal held, smallest, stop_s
        if time.monotonic() > stop_s:
            raise unittest.SkipTest("enough")  # the one exception that ends a search at once
        try:
            PROPERTIES[name](subject, case, choice)
        except Exception as error:
            what = str(error) if isinstance(error, AssertionError) else f"{type(error).__name__}: {error}"
            lines = "\n    ".join(repr(case).splitlines())
            message = f"{subject.oracle.op}: {name} does not hold\n  {what}\n  for\n    {lines}"
            stop_s = min(stop_s, time.monotonic() + _SHRINK_S)
            smallest = AssertionError(message)
            smallest.__cause__ = error
            raise smallest from error
        held += 1

    with (
        contextlib.suppress(AssertionError, unittest.SkipTest),
        num_threads(1),
    ):  # small tensors: threads would wait for each other
        (holds if seed is None else hypothesis.seed(seed)(holds))()
    if smallest is not None:
        # A copy, without the notes by which hypothesis shows the arguments: the message shows them already, and short.
        raise AssertionError(*smallest.args) from smallest.__cause__
    return held
