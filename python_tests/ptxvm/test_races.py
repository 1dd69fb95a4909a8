"""Races between warps in shared memory: each fault beside its corrected twin."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos_engine.testing.emulation import KernelFault

from .memory_kernel import KINDS, aligned, conflict, fails, pairs, run

WARPS = 4
BARRIER = "bar.sync 0;"


def zeros(count: int = 256) -> np.ndarray:
    return np.zeros(count, np.uint32)


# Word %thread of shared memory lies at %r1, the word of the same lane of the next warp at %r2.
WORDS = """
    mov.u32 %r3, shared;
    mad.lo.u32 %r1, %thread, 4, %r3;
    add.u32 %r2, %thread, 32;
    and.b32 %r2, %r2, 127;
    mad.lo.u32 %r2, %r2, 4, %r3;
    mov.u32 %r5, 0;
    st.shared.u32 [%r1], %r5;
    bar.sync 0;
"""
BETWEEN_WARPS = {
    "write, read": "st.shared.u32 [%r1], %thread; {0} ld.shared.u32 %r4, [%r2];",
    "read, write": "ld.shared.u32 %r4, [%r2]; {0} st.shared.u32 [%r1], %thread;",
    "write, write": "st.shared.u32 [%r1], %thread; {0} st.shared.u32 [%r2], %thread;",
    "write, atomic": "st.shared.u32 [%r1], %thread; {0} atom.shared.add.u32 %r4, [%r2], %thread;",
    "atomic, read": "atom.shared.add.u32 %r4, [%r2], %thread; {0} ld.shared.u32 %r4, [%r1];",
    "write, volatile read": "st.shared.u32 [%r1], %thread; {0} ld.volatile.shared.u32 %r4, [%r2];",
    "volatile write, read": "st.volatile.shared.u32 [%r1], %thread; {0} ld.shared.u32 %r4, [%r2];",
}


@pytest.mark.parametrize("seed", [None, 0, 1])
@pytest.mark.parametrize("name", BETWEEN_WARPS)
def test_between_warps(name, seed):
    body = WORDS + BETWEEN_WARPS[name]
    arguments = {"block": 128, "shared": 512, "permute": seed is not None, "seed": seed or 0}
    run(body.format(BARRIER), **arguments)
    fails("race", "by warp . with no barrier between them", body.format(""), **arguments)
    run(body.format(""), check_races=False, **arguments)


def turn(number: int, warp: int, line: str) -> str:
    """``line``, executed by one warp when it is its turn. Strong accesses order no others here, and are no races."""
    return f"""
        setp.ne.u32 %q6, %warp, {warp}; @%q6 bra NEXT_{number};
        WAIT_{number}: ld.volatile.shared.u32 %r7, [%r3+508]; setp.ne.u32 %q6, %r7, {number}; @%q6 bra WAIT_{number};
        {line}
        st.volatile.shared.u32 [%r3+508], {number + 1};
        NEXT_{number}:
    """


OWN = "mad.lo.u32 %r6, %lane, 4, %r3; st.volatile.shared.u32 [%r3+508], 0; bar.sync 0;"  # word %lane at %r6


@pairs
def test_pairs_of_warps(first, second):
    lines = [turn(w, w, KINDS[kind].format("shared", "%r6")) for w, kind in enumerate((first, second))]
    body = WORDS + OWN + lines[0] + "{0}" + lines[1]
    run(body.format(BARRIER), block=64, shared=512)
    if conflict(first, second):
        fails("race", "by warp 1, after .* by warp 0", body.format(""), block=64, shared=512)
    else:
        run(body.format(""), block=64, shared=512)


READ, WRITE = (KINDS[kind].format("shared", "%r6") for kind in ("read", "write"))


FAR = [line.replace("%r6", "%r6+128") for line in (READ, WRITE)]
FIRST_PAIR = "setp.lt.u32 %q5, %warp, 2; @%q5 bar.sync 1, 64;"
LAST_PAIR = "setp.gt.u32 %q5, %warp, 0; @%q5 bar.sync 1, 64;"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        # A read that is ordered behind a write does not hide it.
        ([turn(0, 0, WRITE), FIRST_PAIR, turn(1, 1, READ), turn(2, 2, READ)], "by warp 2, after a write by warp 0"),
        # What a warp knows of accesses before a barrier says nothing about those behind it.
        ([turn(0, 0, WRITE), FIRST_PAIR, turn(1, 0, FAR[1]), turn(2, 1, FAR[0])], "by warp 1, after a write by warp 0"),
        ([turn(0, 0, WRITE), BARRIER, turn(1, 0, FAR[1]), turn(2, 1, FAR[0])], "by warp 1, after a write by warp 0"),
        # Of several readers each counts.
        ([turn(0, 0, READ), turn(1, 1, READ), turn(2, 2, WRITE)], "by warp 2, after a read by warp [01]"),
        ([turn(0, 0, READ), turn(1, 1, READ), LAST_PAIR, turn(2, 2, WRITE)], "by warp 2, after a read by warp 0"),
        ([turn(0, 1, READ), turn(1, 0, READ), LAST_PAIR, turn(2, 2, WRITE)], "by warp 2, after a read by warp 0"),
    ],
)
def test_three_warps(lines, message):
    fails("race", message, WORDS + OWN + "".join(lines), block=96, shared=512)
    run(WORDS + OWN + BARRIER.join(lines), block=96, shared=512)


ROWS = [(size, count) for size in (1, 2, 4, 8) for count in (1, 2, 4) if size * count <= 16]


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize(("size", "count"), ROWS)
def test_every_byte_counts(size, count, scattered):
    """Bytes of a row, between warps and between blocks; and those right before and behind the rows do not."""
    register = {1: "%h1", 2: "%h1", 4: "%r5", 8: "%d5"}[size]
    values = register if count == 1 else "{" + ", ".join([register] * count) + "}"
    vector = "" if count == 1 else f".v{count}"
    row = size * count
    for space, who, launch in (("shared", "%warp", {"block": 64}), ("global", "%block", {"grid": 2})):
        base = "mov.u64 %d1, shared;" if space == "shared" else "mov.b64 %d1, %a0;"
        for narrow in {1, size}:
            body = f"""
                {base} mov.u16 %h1, 1; mov.u32 %r5, 1; mov.u64 %d5, 1;
                {"xor.b32 %r1, %lane, 1;" if scattered else "mov.u32 %r1, %lane;"}
                mad.wide.u32 %d2, %r1, {row}, %d1;
                setp.eq.u32 %q1, {who}, 0;
                @%q1 st.{space}{vector}.b{8 * size} [%d2+64], {values};
                @!%q1 st.{space}.b{8 * narrow} [%d1+PLACE], {register};
            """
            for lane, byte in ((0, 0), (17, row // 2), (31, row - narrow)):
                wrong = body.replace("PLACE", str(64 + row * lane + byte // narrow * narrow))
                fails("race", "", wrong, aligned(1024), shared=1024, **launch)
            for outside in (64 - narrow, 64 + 32 * row):
                run(body.replace("PLACE", str(outside)), aligned(1024), shared=1024, **launch)


def test_what_is_no_race_between_warps():
    for body in (
        "ld.shared.u32 %r4, [%r2]; ld.shared.u32 %r4, [%r1];",
        "atom.shared.add.u32 %r4, [%r3], %thread; atom.shared.add.u32 %r4, [%r3], %thread;",
        "st.volatile.shared.u32 [%r3], 1; ld.volatile.shared.u32 %r4, [%r3]; atom.shared.add.u32 %r4, [%r3], %thread;",
        "ld.shared.u32 %r4, [%r1]; st.shared.u32 [%r1], %r4;",
        "mov.u64 %d1, shared; cvta.shared.u64 %d1, %d1; atom.relaxed.cta.add.u32 %r4, [%d1], %thread; ld.relaxed.cta.u32 %r4, [%d1];",
    ):
        run(WORDS + body, block=128, shared=512)


def test_repeated_stores():
    """All warps store the same at the same place: a race, unless that is allowed; everything else stays one."""
    own = WORDS + "mad.lo.u32 %r6, %lane, 4, %r3; mov.u32 %r5, 7;"
    store, read, other = "st.shared.u32 [%r6], %r5;", "ld.shared.u32 %r4, [%r6];", "st.shared.u32 [%r6], %warp;"
    options = {"block": 96, "shared": 512}
    fails("race", "after a write by warp", own + store, **options)
    run(own + store + BARRIER + read, allow_repeated_stores=True, **options)
    for lines in (other, read + store, store + other):
        fails("race", "", own + lines, allow_repeated_stores=True, **options)


def test_neighbours_in_a_word():
    """Halves of one word may be written by two warps: granules are as fine as the kernel's accesses."""
    for width, register in (("u16", "%h1"), ("u8", "%h1")):
        size = int(width[1:]) // 8
        body = f"mov.u32 %r3, shared; mad.lo.u32 %r1, %lane, {2 * size}, %r3; mad.lo.u32 %r1, %warp, {{0}}, %r1; mov.u16 %h1, 7; st.shared.{width} [%r1], {register};"
        run(body.format(size), block=64, shared=256)
        fails("race", "", body.format(0), block=64, shared=256)


# Warps 0 and 1 meet at barrier 1, warps 2 and 3 at barrier 2.
PAIRS = "shr.u32 %r5, %warp, 1; add.u32 %r5, %r5, 1; bar.sync %r5, 64;"


def test_barriers_of_some_warps():
    partner = "xor.b32 %r6, %thread, {0}; mad.lo.u32 %r6, %r6, 4, %r3;"
    run(
        f"{WORDS} st.shared.u32 [%r1], %thread; {PAIRS} {partner.format(32)} ld.shared.u32 %r4, [%r6];",
        block=128,
        shared=512,
    )
    fails(
        "race",
        "write by warp [0123]",
        f"{WORDS} st.shared.u32 [%r1], %thread; {PAIRS} {partner.format(64)} ld.shared.u32 %r4, [%r6];",
        block=128,
        shared=512,
    )
    # Order is handed on: 0 -> 1 by one barrier, 1 -> 2 by another.
    chain = """
        st.shared.u32 [%r1], %thread;
        setp.eq.u32 %q1, %warp, 3;
        @%q1 bra END;
        setp.lt.u32 %q2, %warp, 2;
        @!%q2 bra SECOND;
        bar.sync 1, 64;
    SECOND:
        setp.eq.u32 %q2, %warp, 0;
        @%q2 bra END;
        bar.sync 2, 64;
        setp.ne.u32 %q2, %warp, 2;
        @%q2 bra END;
        mad.lo.u32 %r6, %lane, 4, %r3;
        {0}
    END:
    """
    run(
        WORDS + chain.format("ld.shared.u32 %r4, [%r6]; ld.shared.u32 %r4, [%r6+128]; st.shared.u32 [%r6], %r4;"),
        block=128,
        shared=512,
    )
    fails(
        "race",
        "by warp 2, after a write by warp 3",
        WORDS + chain.format("ld.shared.u32 %r4, [%r6+384];"),
        block=128,
        shared=512,
    )


class Step(NamedTuple):
    """A barrier of `warps`, or an access of the only one among them."""

    warps: tuple[int, ...]
    opcode: str = ""
    at: int = 0
    stride: int = 0


ACCESSES = [
    "ld.shared.u32",
    "st.shared.u32",
    "ld.shared.v2.u32",
    "st.shared.v2.u32",
    "ld.volatile.shared.u32",
    "st.volatile.shared.u32",
    "atom.shared.add.u32",
]
warps = st.integers(0, WARPS - 1)
accesses = st.tuples(warps, st.sampled_from(ACCESSES), st.integers(0, 7), st.sampled_from([0, 1, 2])).map(
    lambda t: Step((t[0],), *t[1:])
)
barriers = st.sets(warps, min_size=2).map(lambda s: Step(tuple(sorted(s))))
programs = st.lists(st.one_of(accesses, accesses, barriers), min_size=1, max_size=14)


def width(opcode: str) -> int:
    return 8 if "v2" in opcode else 4


def touched(step: Step) -> set[int]:
    """Words."""
    n = width(step.opcode) // 4
    return {(step.at + lane * step.stride) * n + i for lane in range(32) for i in range(n)}


def race(program: list[Step]) -> bool:
    """Whether any two accesses conflict that no chain of barriers orders."""
    before: dict[int, set[int]] = {w: set() for w in range(WARPS)}  # indices of steps that are ordered before the warp
    for i, step in enumerate(program):
        if not step.opcode:
            joined = set().union(*(before[w] for w in step.warps))
            for w in step.warps:
                before[w] = set(joined)
            continue
        (w,) = step.warps
        for j, other in enumerate(program[:i]):
            if not other.opcode or j in before[w]:
                continue
            writes = [not s.opcode.startswith("ld") for s in (step, other)]
            strong = [s.opcode.startswith(("atom", "ld.volatile", "st.volatile")) for s in (step, other)]
            if any(writes) and not all(strong) and touched(step) & touched(other):
                return True
        before[w].add(i)
    return False


def text(program: list[Step]) -> str:
    """Each warp its own code; each barrier of some warps has its own number."""
    lines = ["mov.u32 %r3, shared; mov.u32 %r9, 0;"]
    lines += [f"mad.lo.u32 %r1, %thread, 4, %r3; st.shared.u32 [%r1+{512 * i}], %r9;" for i in range(2)] + [BARRIER]
    partial = [i for i, step in enumerate(program) if not step.opcode and len(step.warps) < WARPS]
    for w in range(WARPS):
        lines += [f"setp.ne.u32 %q1, %warp, {w}; @%q1 bra AFTER_{w};"]
        for i, step in enumerate(program):
            if w not in step.warps:
                continue
            if not step.opcode:
                lines.append(f"bar.sync {1 + partial.index(i)}, {32 * len(step.warps)};" if i in partial else BARRIER)
                continue
            n = width(step.opcode)
            values = "{%r5, %r9}" if n == 8 else "%r5"
            lines.append(f"mov.u32 %r5, 7; mad.lo.u32 %r1, %lane, {n * step.stride}, %r3;")
            operands = (
                f"[%r1+{n * step.at}], {values}" if step.opcode.startswith("st") else f"{values}, [%r1+{n * step.at}]"
            )
            lines.append(f"{step.opcode} {operands}{', %r9' if step.opcode.startswith('atom') else ''};")
        lines.append(f"AFTER_{w}:")
    return "\n".join(lines)


@settings(max_examples=60)
@given(programs, st.integers(0, 2**32 - 1))
def test_random_programs(program, seed):
    """A race is reported exactly where a search over all pairs of accesses finds one, in whatever order the warps run."""
    for permute in (False, True):
        try:
            run(text(program), block=32 * WARPS, shared=1024, permute=permute, seed=seed)
            found = False
        except KernelFault as fault:
            assert str(fault).startswith("race"), fault
            found = True
        assert found == race(program)
