"""What must hold of a kernel, one function a property: each runs one generated call and fails by an AssertionError."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..layout import SequenceLayout
from ..reference.mask import visible
from . import poison, tolerances
from .case import Case
from .oracles import Oracle, Results, run
from .strategies import randn

_FAR = 100.0  # times larger than all else: a key that leaks shows
_THREADS = (1, 2, 3, 4)


@contextlib.contextmanager
def num_threads(number: int) -> Iterator[None]:
    """Within the block, torch and the operations use ``number`` threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Subject:
    """A kernel under test; ``backward``: whether its gradients are tested too."""

    oracle: Oracle
    kernel: Callable[..., Any]
    backward: bool

    def run(self, case: Case, backward: bool | None = None) -> Results:
        """Results by name, computed into memory that held NaN."""
        wanted = self.backward if backward is None else backward
        with poison.poisoned_outputs():
            return run(self.kernel, case, self.oracle.results, self.oracle.leaves if wanted else ())


def values(subject: Subject, case: Case, seed: int) -> None:
    """Results are within the bound of the fp64 reference, and the arguments as they were."""
    before = {name: x.clone() for name, x in case.arguments.items() if isinstance(x, Tensor)}
    actual = subject.run(case, backward=False)
    for name, x in before.items():
        tolerances.assert_bitwise_equal(case.arguments[name], x, f"argument {name} after the call")
    _assert_close(subject, case, actual)


def gradients(subject: Subject, case: Case, seed: int) -> None:
    """Gradients are within the bound."""
    actual = subject.run(case)
    _assert_close(subject, case, {name: x for name, x in actual.items() if name.startswith("grad_")})


def causality(subject: Subject, case: Case, seed: int) -> None:
    """Tokens that see no key behind a cut, and none of another sequence, do not notice when all those change."""
    layout: SequenceLayout = case.arguments["layout"]
    sequence = seed % layout.num_sequences
    first, last = (int(bound) for bound in layout.cu_seqlens[sequence : sequence + 2])
    cut = seed // layout.num_sequences % (last - first + 1)
    changed = torch.ones(layout.num_tokens, dtype=torch.bool)
    changed[first : first + cut] = False
    rows = first + (~visible(layout, sequence)[:cut, cut:].any(1)).nonzero()[:, 0]
    others = {
        name: torch.where(changed[:, None, None], randn(x.shape, x.dtype, seed + i) * _FAR, x)
        for i, (name, x) in enumerate((name, case.arguments[name]) for name in ("q", "k", "v"))
    }
    actual = subject.run(case.with_arguments(**others), backward=False)
    _assert_close(subject, case, actual, rows)


def unseen_nan(subject: Subject, case: Case, seed: int) -> None:
    """Keys that no token sees have no influence when they hold NaN."""
    k, v = poison.poison_unseen_keys(case.arguments["k"], case.arguments["v"], case.arguments["layout"])
    _assert_close(subject, case, subject.run(case.with_arguments(k=k, v=v)))


def empty_rows(subject: Subject, case: Case, seed: int) -> None:
    """Tokens that see nothing get out 0, lse -inf and gradient 0, exactly."""
    layout: SequenceLayout = case.arguments["layout"]
    empty = torch.cat([~visible(layout, sequence).any(1) for sequence in range(layout.num_sequences)])
    expected = {"out": 0.0, "lse": -torch.inf, "grad_q": 0.0}
    for name, actual in subject.run(case).items():
        wrong = actual[empty] != expected.get(name, 0.0) if name in expected else ~actual.isfinite()
        assert not bool(wrong.any()), f"{name} is not {expected.get(name, 'finite')} where nothing is seen"


def run_to_run(subject: Subject, case: Case, seed: int) -> None:
    """A second run gives the same bits."""
    _assert_equal(subject.run(case), subject.run(case))


def threads(subject: Subject, case: Case, seed: int) -> None:
    """1 to 4 threads give the same bits."""
    found = []
    for number in _THREADS:
        with num_threads(number):
            found.append(subject.run(case))
    for other in found[1:]:
        _assert_equal(other, found[0])


def packing(subject: Subject, case: Case, seed: int) -> None:
    """A token's results have the same bits alone and among other tokens."""
    assert subject.oracle.neighbours is not None
    other, own_rows, other_rows = subject.oracle.neighbours(case, seed)
    mine, theirs = subject.run(case), subject.run(other)
    names = [name for name in subject.oracle.per_token if name in mine]
    _assert_equal({n: theirs[n][other_rows] for n in names}, {n: mine[n][own_rows] for n in names})


def placement(subject: Subject, case: Case, seed: int) -> None:
    """The same pages elsewhere in the pool give the same bits."""
    table, k_pages, v_pages = (case.arguments[name] for name in ("page_table", "k_pages", "v_pages"))
    new_place = torch.randperm(len(k_pages), generator=torch.Generator().manual_seed(seed))
    moved = {"k_pages": torch.empty_like(k_pages), "v_pages": torch.empty_like(v_pages)}
    for name, pages in (("k_pages", k_pages), ("v_pages", v_pages)):
        moved[name][new_place] = pages
    elsewhere = torch.where(table >= 0, new_place[table.clamp(min=0).long()].int(), table)
    _assert_equal(subject.run(case.with_arguments(page_table=elsewhere, **moved)), subject.run(case))


PROPERTIES = {
    f.__name__: f
    for f in (
        values, gradients, causality, unseen_nan, empty_rows, run_to_run, threads, packing, placement,
    )
}  # fmt: skip
"""By name."""


def _assert_close(subject: Subject, case: Case, actual: Results, rows: Tensor | None = None) -> None:
    """``actual``, or ``rows`` of it, against the fp64 reference of ``case``."""
    backward = any(name.startswith("grad_") for name in actual)
    exact, bounds = subject.oracle.exact(case, backward), subject.oracle.bounds(case, backward)
    for name, result in actual.items():
        dtype, bound = bounds[name]
        assert result.dtype == dtype, f"{name} has dtype {result.dtype}, expected {dtype}"
        if rows is None:
            tolerances.assert_within(result, exact[name], bound, name)
        else:
            tolerances.assert_within(result[rows], exact[name][rows], bound, name)


def _assert_equal(actual: Results, expected: Results) -> None:
    for name, result in actual.items():
        tolerances.assert_bitwise_equal(result, expected[name], name)
