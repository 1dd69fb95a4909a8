"""What lanes of a warp tell each other, against plain Python: full warps, groups with masks of their own, other branches."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos_engine.testing.emulation import KernelFault, Module

from .warps import kernel, run

WARPS = 64
FULL = 0xFFFFFFFF
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=3)


class Groups:
    """Each warp's lanes in up to four groups, of which the last two go another way; a quarter of the warps stays together."""

    def __init__(self, seed: int):
        self.random = np.random.default_rng(seed)
        group = self.random.integers(0, 4, (WARPS, 32))
        group[: WARPS // 4] = 0
        self.elsewhere = (group > 1).reshape(-1)
        same = group[:, :, None] == group[:, None, :]
        self.masks = (same.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(2).astype(np.uint32).reshape(-1)

    def values(self, dtype: type, repeats: bool = False) -> np.ndarray:
        info = np.iinfo(dtype)
        values = self.random.integers(info.min, info.max, WARPS * 32, dtype, endpoint=True)
        return self.random.choice(values[:3], len(values)) if repeats else values

    def __iter__(self) -> Iterator[np.ndarray]:
        """The threads of each group."""
        for warp in range(WARPS):
            for mask in np.unique(self.masks[32 * warp : 32 * warp + 32]):
                yield np.array([32 * warp + lane for lane in range(32) if mask >> lane & 1])

    def run(self, line: str, results: list, *operands: np.ndarray) -> list[np.ndarray]:
        """``line``, where ``%mask`` stands for the member mask, once in each of two branches."""
        n = len(operands)
        line = line.replace("%mask", f"%a{n}")
        lines = f"@%a{n + 1} bra OTHER;\n{line}\nbra DONE;\nOTHER: {line}\nDONE:"
        return run(lines, results, *operands, self.masks, self.elsewhere)


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The lane it reads, and whether that lies within the bounds."""
    b, clamp, segment = b & 31, c & 31, c >> 8 & 31
    bound = lane & segment | clamp & ~segment & 31
    source = {
        "up": lane - b,
        "down": lane + b,
        "bfly": lane ^ b,
        "idx": lane & segment | b & ~segment & 31,
    }[mode]
    within = source >= bound if mode == "up" else source <= bound
    return (source if within else lane), within


@few
@given(seeds)
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shfl(mode, seed):
    groups = Groups(seed)
    a = groups.values(np.uint32)
    b = groups.values(np.uint32)
    # Half of the bounds are those of segments of 1, 2, ..., 32 lanes, half any.
    segment = (32 - 2 ** groups.random.integers(0, 6, len(a))) << 8
    usual = segment | (0 if mode == "up" else 31)
    c = np.where(groups.random.integers(0, 2, len(a)) == 1, usual, groups.values(np.uint32)).astype(np.uint32)
    expected, within = np.zeros_like(a), np.zeros(len(a), np.bool_)
    for thread in range(len(a)):
        lane, mask = thread % 32, int(groups.masks[thread])
        while not mask >> shuffled(mode, lane, int(b[thread]), int(c[thread]))[0] & 1:  # only lanes of its own group
            b[thread] = groups.random.integers(0, 32)
            c[thread] = groups.random.integers(0, 1 << 13)
        source, within[thread] = shuffled(mode, lane, int(b[thread]), int(c[thread]))
        expected[thread] = a[thread - lane + source]
    d, p = groups.run(f"shfl.sync.{mode}.b32 %d0|%d1, %a0, %a1, %a2, %mask;", [np.uint32, np.bool_], a, b, c)
    np.testing.assert_array_equal(d, expected)
    np.testing.assert_array_equal(p, within)
    (alone,) = groups.run(f"shfl.sync.{mode}.b32 %d0, %a0, %a1, %a2, %mask;", [np.uint32], a, b, c)
    np.testing.assert_array_equal(alone, expected)
    (predicate,) = groups.run(f"shfl.sync.{mode}.b32 _|%d0, %a0, %a1, %a2, %mask;", [np.bool_], a, b, c)
    np.testing.assert_array_equal(predicate, within)


@few
@given(seeds)
def test_shfl_into_its_own_source(seed):
    groups = Groups(seed)
    a = groups.values(np.uint32)
    lines = "mov.b32 %d0, %a0; shfl.sync.bfly.b32 %d0, %d0, 5, 31, -1;"
    np.testing.assert_array_equal(run(lines, [np.uint32], a)[0], a[np.arange(len(a)) ^ 5])


@few
@given(seeds)
def test_vote(seed):
    groups = Groups(seed)
    p = groups.random.random(WARPS * 32) < groups.random.choice([0, 0.5, 1], WARPS * 32)
    for threads in groups:  # many of one mind
        if groups.random.integers(0, 2):
            p[threads] = bool(groups.random.integers(0, 2))
    for spelling, votes in (("%a0", p), ("!%a0", ~p)):
        expected = np.zeros((3, len(p)), np.bool_)
        ballot = np.zeros(len(p), np.uint32)
        for threads in groups:
            expected[0][threads] = votes[threads].all()
            expected[1][threads] = votes[threads].any()
            expected[2][threads] = votes[threads].all() or not votes[threads].any()
            ballot[threads] = sum(1 << int(t) % 32 for t in threads if votes[t])
        lines = [f"vote.sync.{mode}.pred %d{i}, {spelling}, %mask;" for i, mode in enumerate(("all", "any", "uni"))]
        lines.append(f"vote.sync.ballot.b32 %d3, {spelling}, %mask;")
        *found, found_ballot = groups.run("\n".join(lines), [np.bool_, np.bool_, np.bool_, np.uint32], p)
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found_ballot, ballot)


@few
@given(seeds)
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_match(dtype, seed):
    groups = Groups(seed)
    a = groups.values(dtype, repeats=True)
    if dtype == np.uint64:  # some differ in their upper halves only
        a = np.where(groups.random.integers(0, 2, len(a)) == 1, a ^ np.uint64(1 << 63), a)
    for threads in groups:
        if groups.random.integers(0, 2):
            a[threads] = a[threads[0]]
    any_, all_, same = np.zeros(len(a), np.uint32), np.zeros(len(a), np.uint32), np.zeros(len(a), np.bool_)
    for threads in groups:
        for t in threads:
            any_[t] = sum(1 << int(u) % 32 for u in threads if a[u] == a[t])
        same[threads] = (a[threads] == a[threads[0]]).all()
        all_[threads] = groups.masks[threads[0]] if same[threads[0]] else 0
    bits = 8 * a.itemsize
    lines = f"match.any.sync.b{bits} %d0, %a0, %mask; match.all.sync.b{bits} %d1|%d2, %a0, %mask; match.all.sync.b{bits} %d3, %a0, %mask;"
    found = groups.run(lines, [np.uint32, np.uint32, np.bool_, np.uint32], a)
    for f, e in zip(found, (any_, all_, same, all_), strict=True):
        np.testing.assert_array_equal(f, e)


REDUCTIONS: dict[str, tuple[type, Callable[[int, int], int]]] = {
    "add.u32": (np.uint32, operator.add),
    "add.s32": (np.int32, operator.add),
    "min.u32": (np.uint32, min),
    "min.s32": (np.int32, min),
    "max.u32": (np.uint32, max),
    "max.s32": (np.int32, max),
    "and.b32": (np.uint32, operator.and_),
    "or.b32": (np.uint32, operator.or_),
    "xor.b32": (np.uint32, operator.xor),
}


@few
@given(seeds)
def test_redux(seed):
    groups = Groups(seed)
    a = groups.values(np.uint32)
    lines = "\n".join(f"redux.sync.{form} %d{i}, %a0, %mask;" for i, form in enumerate(REDUCTIONS))
    found = groups.run(lines, [np.uint32] * len(REDUCTIONS), a)
    for (form, (dtype, function)), one in zip(REDUCTIONS.items(), found, strict=True):
        expected = np.zeros_like(a)
        for threads in groups:
            expected[threads] = reduce(function, [int(x) for x in a[threads].view(dtype)]) & FULL
        np.testing.assert_array_equal(one, expected, err_msg=form)


@few
@given(seeds)
def test_elect_and_activemask(seed):
    groups = Groups(seed)
    leader = np.zeros(WARPS * 32, np.uint32)
    for threads in groups:
        leader[threads] = threads[0] % 32
    d, p, active = groups.run(
        "activemask.b32 %d2; elect.sync %d0|%d1, %mask;", [np.uint32, np.bool_, np.uint32], groups.masks
    )
    np.testing.assert_array_equal(d, leader)
    np.testing.assert_array_equal(p, np.arange(len(d)) % 32 == leader)
    branch = groups.elsewhere.reshape(WARPS, 1, 32) == groups.elsewhere.reshape(WARPS, 32, 1)
    expected = (branch.astype(np.uint64) << np.arange(32, dtype=np.uint64)).sum(2).reshape(-1)
    np.testing.assert_array_equal(active, expected)


def lanes(*numbers: int) -> np.ndarray:
    return np.isin(np.arange(32), numbers)


@pytest.mark.parametrize("late", [False, True])
def test_lanes_that_have_ended_take_no_part(late):
    ends = lanes(*range(0, 32, 3))
    vote = "vote.sync.ballot.b32 %d0, 1, -1;"
    if late:  # the others wait already when they end
        lines = f"@%a0 bra END; {vote} bra DONE; END: exit; DONE:"
    else:
        lines = f"@!%a0 bra DONE; exit; DONE: {vote}"
    (found,) = run(lines, [np.uint32], ends)
    np.testing.assert_array_equal(found, np.where(ends, 0, sum(1 << int(i) for i in np.flatnonzero(~ends))))


def test_shfl_that_reads_a_lane_of_no_part():
    # Lane 15 + 1 is outside of the mask; lane 31, past the bound, would read itself.
    lines = "mov.b32 %d0, 0; @%a0 shfl.sync.down.b32 %d0, %a1, 1, 31, 0xffff;"
    with pytest.raises(KernelFault, match=r"undefined shuffle: it reads lane 16.*thread \(15, 0, 0\)"):
        run(lines, [np.uint32], lanes(*range(16)), np.arange(32, dtype=np.uint32))
    (found,) = run(
        lines.replace("31, 0xffff", "15, 0xffff"), [np.uint32], lanes(*range(16)), np.arange(32, dtype=np.uint32)
    )
    np.testing.assert_array_equal(found, [*range(1, 16), 15] + [0] * 16)


def test_lane_that_its_mask_does_not_name():
    with pytest.raises(KernelFault, match=r"barrier divergence.*thread \(16, 0, 0\)"):
        run("vote.sync.any.pred %d0, %a0, 0xffff;", [np.bool_], lanes(1))


def test_member_that_never_comes():
    with pytest.raises(KernelFault, match="deadlock"):
        run(
            "@%a0 bra A; vote.sync.any.pred %d0, 1, -1; bra B; A: vote.sync.any.pred %d0, 1, -1; B:",
            [np.bool_],
            lanes(3),
        )


@pytest.mark.parametrize(
    "line",
    [
        "shfl.up.b32 %d0, %a0, 1, 0;",
        "shfl.sync.left.b32 %d0, %a0, 1, 0, -1;",
        "shfl.sync.up.b64 %d0, %a0, 1, 0, -1;",
        "vote.all.pred %d0, 1;",
        "vote.ballot.b32 %d0, 1;",
        "vote.sync.some.pred %d0, 1, -1;",
        "match.any.b32 %d0, %a0;",
        "redux.sync.add.f32 %d0, %a0, -1;",
        "redux.sync.and.u32 %d0, %a0, -1;",
        "activemask.u32 %d0;",
    ],
)
def test_unknown(line):
    text = kernel(line, [np.dtype(np.uint32)] * 2, 1)
    number = next(i for i, text_line in enumerate(text.splitlines(), 1) if line in text_line)
    with pytest.raises(ValueError, match=rf"PTX line {number}: unknown opcode '{line.split()[0]}'"):
        Module(text)


@pytest.mark.parametrize(
    "line",
    [
        "shfl.sync.up.b32 %d0, %a0, 1, 0;",
        "shfl.sync.up.b32 %at, %a0, 1, 0, -1;",
        "match.any.sync.b64 %d0, %a0, -1;",
        "vote.sync.all.pred %d0, 1, -1;",
        "vote.sync.ballot.b32 %d0|%d0, 1, -1;",
        "activemask.b32 %d0, %a0;",
    ],
)
def test_operands_that_do_not_fit(line):
    with pytest.raises(ValueError, match=rf"PTX line \d+: {line.split()[0]}: .*(operands|register|destination)"):
        Module(kernel(line, [np.dtype(np.uint32)] * 2, 1))
