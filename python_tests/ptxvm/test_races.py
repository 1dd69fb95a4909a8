"""Races between warps in shared memory and between blocks in global memory: each fault beside its corrected twin."""

from __future__ import annotations

import itertools
from typing import NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos_engine.testing.emulation import KernelFault, extension

from .memory_kernel import aligned, fails, kernel, run

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


KINDS = {
    "read": "ld.{0}.u32 %r4, [{1}];",
    "write": "st.{0}.u32 [{1}], %r5;",
    "strong read": "ld.volatile.{0}.u32 %r4, [{1}];",
    "strong write": "st.volatile.{0}.u32 [{1}], %r5;",
    "atomic": "atom.{0}.add.u32 %r4, [{1}], %r5;",
}
pairs = pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))


def conflict(*kinds: str) -> bool:
    writes = any("read" not in kind for kind in kinds)
    return writes and any(kind in ("read", "write") for kind in kinds)


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


ROWS = [
    (size, count, element)
    for size in (1, 2, 4, 8)
    for count in (1, 2, 4)
    for element in (0, count - 1)
    if size * count <= 16
]


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize(("size", "count", "element"), ROWS)
def test_every_byte_counts(size, count, element, scattered):
    """One element of a row, between warps and between blocks; and the bytes right before and behind the rows do not."""
    register = {1: "%h1", 2: "%h1", 4: "%r5", 8: "%d5"}[size]
    values = register if count == 1 else "{" + ", ".join([register] * count) + "}"
    vector = "" if count == 1 else f".v{count}"
    row = size * count
    for space, who, launch in (("shared", "%warp", {"block": 64}), ("global", "%block", {"grid": 2})):
        base = "mov.u64 %d1, shared;" if space == "shared" else "mov.b64 %d1, %a0;"
        body = f"""
            {base} mov.u16 %h1, 1; mov.u32 %r5, 1; mov.u64 %d5, 1;
            {"xor.b32 %r1, %lane, 1;" if scattered else "mov.u32 %r1, %lane;"}
            mad.wide.u32 %d2, %r1, {row}, %d1;
            setp.eq.u32 %q1, {who}, 0;
            @%q1 st.{space}{vector}.b{8 * size} [%d2+64], {values};
            @!%q1 st.{space}.b{8 * size} [%d1+PLACE], {register};
        """
        for lane in (0, 17, 31):
            fails(
                "race",
                "",
                body.replace("PLACE", str(64 + row * lane + size * element)),
                aligned(1024),
                shared=1024,
                **launch,
            )
        for outside in (64 - size, 64 + 32 * row):
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


# Between blocks.


def blocks(body: str) -> str:
    """Word %thread of a0 at %d1; flag at %a1. %q0: the first block."""
    return f"mad.wide.u32 %d1, %thread, 4, %a0; setp.eq.u32 %q0, %block, 0; mov.u32 %r1, 1; {body}"


BETWEEN_BLOCKS = {
    "write, read": "@%q0 st.global.u32 [%d1], %r1; @!%q0 ld.global.u32 %r2, [%d1];",
    "read, write": "@%q0 ld.global.u32 %r2, [%d1]; @!%q0 st.global.u32 [%d1], %r1;",
    "write, write": "st.global.u32 [%d1], %r1;",
    "write, atomic": "@%q0 st.global.u32 [%d1], %r1; @!%q0 red.global.add.u32 [%d1], %r1;",
    "atomic, read": "@%q0 red.global.add.u32 [%d1], %r1; @!%q0 ld.global.u32 %r2, [%d1];",
    "read, atomic": "@%q0 ld.global.u32 %r2, [%d1]; @!%q0 red.global.add.u32 [%d1], %r1;",
    "atomics of the block": "atom.cta.global.add.u32 %r2, [%d1], %r1;",
    "reads of the block": "@%q0 red.global.add.u32 [%d1], %r1; @!%q0 ld.relaxed.cta.global.u32 %r2, [%d1];",
    "volatile write, read": "@%q0 st.volatile.global.u32 [%d1], %r1; @!%q0 ld.global.u32 %r2, [%d1];",
    "write, copy": "@%q0 st.global.u32 [%d1], %r1; mov.u32 %r3, shared; mad.lo.u32 %r3, %thread, 4, %r3; @!%q0 cp.async.ca.shared.global [%r3], [%d1], 4; cp.async.wait_all;",
    "write, generic read": "@%q0 st.u32 [%d1], %r1; @!%q0 ld.u32 %r2, [%d1];",
    "one lane": "setp.eq.and.u32 %q1, %lane, 9, %q0; @%q1 st.global.u32 [%d1], %r1; ld.global.u32 %r2, [%d1];",
}


@pytest.mark.parametrize(
    "order",
    [{}, {"permute": True, "seed": 3}, {"resident_blocks": 2}, {"permute": True, "seed": 4, "resident_blocks": 3}],
)
@pytest.mark.parametrize("name", BETWEEN_BLOCKS)
def test_between_blocks(name, order):
    body = blocks(BETWEEN_BLOCKS[name])
    fails("race", "buffer 'argument 0'.*no release and acquire", body, zeros(), grid=3, block=64, shared=256, **order)
    # Each block its own part.
    own = body.replace("%a0;", "%a0; mad.wide.u32 %d1, %block, 256, %d1;", 1)
    run(own, zeros(), grid=3, block=64, shared=256, **order)
    run(body, zeros(), grid=3, block=64, shared=256, check_races=False, **order)
    run(body, zeros(), grid=1, block=64, shared=256, **order)


@pairs
def test_pairs_of_blocks(first, second):
    a, b = (KINDS[kind].format("global", "%d1") for kind in (first, second))
    body = blocks(f"mov.u32 %r5, 1; @%q0 {a} @!%q0 {b}")
    if conflict(first, second):
        fails("race", "by block 1, after .* by block 0", body, zeros(), grid=2, block=64)
    else:
        run(body, zeros(), grid=2, block=64)


def test_what_is_no_race_between_blocks():
    for body in (
        "ld.global.u32 %r2, [%d1];",
        "red.global.add.u32 [%d1], %r1; atom.global.add.u32 %r2, [%d1], %r1; ld.volatile.global.u32 %r2, [%d1];",
        "st.volatile.global.u32 [%d1], %r1; ld.relaxed.gpu.global.u32 %r2, [%d1];",
        "ld.global.u32 %r2, [%d1]; ld.volatile.global.u32 %r2, [%d1];",
    ):
        run(blocks(body), zeros(), grid=5, block=64)


def test_neighbours_between_blocks():
    body = (
        "mad.wide.u32 %d1, %lane, 4, %a0; mad.wide.u32 %d1, %block, {0}, %d1; mov.u16 %h1, 1; st.global.u16 [%d1], %h1;"
    )
    run(body.format(2), zeros(), grid=2)
    fails("race", "", body.format(0), zeros(), grid=2)


def test_launches_are_ordered():
    """The same buffer in two launches, of which each has one block that writes."""
    text = (
        kernel(blocks("@%q0 st.global.u32 [%d1], %r1;"), 1),
        kernel(blocks("@!%q0 st.global.u32 [%d1], %r1;"), 1, name="other"),
    )
    made = extension().PtxModule(".version 9.0\n.target sm_80\n.address_size 64\n" + "".join(text))
    memory = torch.zeros(64, dtype=torch.int32)
    extension().add_buffer(memory.data_ptr(), 256, "memory")
    try:
        for name in ("kernel", "other"):
            made.launch(name, (2, 1, 1), (64, 1, 1), [memory.data_ptr().to_bytes(8, "little")])
    finally:
        extension().clear_buffers()


def test_views_are_one_buffer():
    """Accesses through two views of the same bytes meet, and may go beyond either."""
    memory = zeros()
    for views in ((memory[:128], memory[64:]), (memory[64:], memory[:128]), (memory, memory[64:128])):
        offset = (memory[64:].ctypes.data - views[0].ctypes.data, memory[64:].ctypes.data - views[1].ctypes.data)
        body = f"mov.u32 %r1, 1; setp.eq.u32 %q0, %block, 0; @%q0 st.global.u32 [%a0+{offset[0]}], %r1; @!%q0 st.global.u32 [%a1+{offset[1]}], %r1;"
        fails("race", "", body, *views, grid=2)
        last, first = (memory[255:].ctypes.data - views[0].ctypes.data, memory.ctypes.data - views[1].ctypes.data)
        run(f"mov.u32 %r1, 1; st.global.u32 [%a0+{last}], %r1; st.global.u32 [%a1+{first}], %r1;", *views)


# The first block writes and raises a flag, the others wait for it and read.
MESSAGE = blocks("""
    setp.ne.u32 %q1, %thread, 0;
    @!%q0 bra OTHERS;
    {write}
    {barrier}
    @%q1 bra END;
    {release}
    bra END;
OTHERS:
    @%q1 bra MEET;
WAIT:
    {acquire}
    setp.eq.u32 %q2, %r5, 0;
    @%q2 bra WAIT;
    {fence}
MEET:
    {barrier}
    {read}
END:
""")
RELEASES = [
    "membar.gl; st.volatile.global.u32 [%a1], %r1;",
    "fence.acq_rel.gpu; st.relaxed.gpu.global.u32 [%a1], %r1;",
    "fence.sc.sys; red.global.add.u32 [%a1], %r1;",
    "st.release.gpu.global.u32 [%a1], %r1;",
    "atom.release.gpu.global.exch.b32 %r3, [%a1], %r1;",
    "atom.acq_rel.sys.global.cas.b32 %r3, [%a1], 0, %r1;",
]
ACQUIRES = [
    ("ld.acquire.gpu.global.u32 %r5, [%a1];", ""),
    ("ld.volatile.global.u32 %r5, [%a1];", "membar.gl;"),
    ("ld.relaxed.gpu.global.u32 %r5, [%a1];", "fence.acq_rel.gpu;"),
    ("atom.acquire.gpu.global.or.b32 %r5, [%a1], 0;", ""),
    ("atom.global.or.b32 %r5, [%a1], 0;", "fence.acq_rel.sys;"),
]
PARTS = {"write": "st.global.u32 [%d1], %r1;", "read": "ld.global.u32 %r2, [%d1];", "barrier": BARRIER}


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("acquire", "fence"), ACQUIRES)
def test_messages(release, acquire, fence):
    arguments = {"grid": 3, "block": 64}
    message = MESSAGE.format(release=release, acquire=acquire, fence=fence, **PARTS)
    for order in ({}, {"resident_blocks": 3}, {"permute": True, "seed": 1, "resident_blocks": 3}):
        run(message, zeros(), zeros(1), **arguments, **order)
    weaker = {
        "release": release.replace("membar.gl;", "")
        .replace("fence.acq_rel.gpu;", "")
        .replace("fence.sc.sys;", "")
        .replace("release", "relaxed")
        .replace("acq_rel", "acquire"),
        "acquire": acquire.replace("acquire", "relaxed"),
        "fence": "",
    }
    fails(
        "race",
        "after a write by block 0",
        MESSAGE.format(**{"release": weaker["release"], "acquire": acquire, "fence": fence}, **PARTS),
        zeros(),
        zeros(1),
        **arguments,
    )
    fails(
        "race",
        "after a write by block 0",
        MESSAGE.format(release=release, acquire=weaker["acquire"], fence="", **PARTS),
        zeros(),
        zeros(1),
        **arguments,
    )
    # A fence of the block, or a plain flag, is not enough.
    if fence:
        fails(
            "race",
            "",
            MESSAGE.format(release=release, acquire=acquire, fence="membar.cta;", **PARTS),
            zeros(),
            zeros(1),
            **arguments,
        )


def test_what_comes_after_the_release():
    late = {"release": f"{RELEASES[0]} st.global.u32 [%d1], %r1;", "acquire": ACQUIRES[0][0], "fence": ""}
    fails(
        "race",
        "after a write by block 0",
        MESSAGE.format(**late, **(PARTS | {"write": ""})),
        zeros(),
        zeros(1),
        grid=2,
        block=64,
    )
    between = {
        "release": "membar.gl; st.global.u32 [%d1], %r1; st.volatile.global.u32 [%a1], %r1;",
        "acquire": ACQUIRES[0][0],
        "fence": "",
    }
    fails(
        "race",
        "after a write by block 0",
        MESSAGE.format(**between, **(PARTS | {"write": ""})),
        zeros(),
        zeros(1),
        grid=2,
        block=64,
    )


# Every block adds a part; the last to arrive reads all parts and writes over them.
LAST = """
    mad.wide.u32 %d1, %block, 128, %a0;
    mad.wide.u32 %d1, %lane, 4, %d1;
    mov.u32 %r1, 1;
    st.global.u32 [%d1], %r1;
    {fence_1}
    bar.sync 0;
    setp.ne.u32 %q1, %thread, 0;
    mov.u32 %r2, 0;
    @!%q1 atom.global.add.u32 %r2, [%a1], %r1;
    @!%q1 st.shared.u32 [shared], %r2;
    {fence_2}
    bar.sync 0;
    ld.shared.u32 %r2, [shared];
    setp.ne.u32 %q1, %r2, 7;
    @%q1 bra END;
    mov.u32 %r3, 0;
    mov.u32 %r6, 0;
LOOP:
    mad.wide.u32 %d2, %r3, 128, %a0;
    mad.wide.u32 %d2, %lane, 4, %d2;
    ld.global.u32 %r5, [%d2];
    add.u32 %r6, %r6, %r5;
    st.global.u32 [%d2], %r6;
    add.u32 %r3, %r3, 1;
    setp.lt.u32 %q1, %r3, 8;
    @%q1 bra LOOP;
END:
"""


@pytest.mark.parametrize(
    "order",
    [{}, {"permute": True, "seed": 5}, {"resident_blocks": 8}, {"permute": True, "seed": 6, "resident_blocks": 4}],
)
def test_the_last_block(order):
    arguments = {"grid": 8, "block": 32, "shared": 4, **order}
    memory = zeros()
    run(LAST.format(fence_1="membar.gl;", fence_2="membar.gl;"), memory, zeros(1), **arguments)
    np.testing.assert_array_equal(memory.reshape(8, 32), np.tile(np.arange(1, 9)[:, None], 32))
    fails("race", "", LAST.format(fence_1="", fence_2="membar.gl;"), zeros(), zeros(1), **arguments)
    fails("race", "", LAST.format(fence_1="membar.gl;", fence_2=""), zeros(), zeros(1), **arguments)


@pytest.mark.parametrize(
    ("acquire", "release"),
    [
        ("ld.acquire.gpu.global.u32 %r2, [%a1];", "red.release.gpu.global.add.u32 [%a1], %r1;"),
        ("ld.relaxed.gpu.global.u32 %r2, [%a1]; membar.gl;", "membar.gl; red.global.add.u32 [%a1], %r1;"),
    ],
)
def test_a_chain_of_blocks(acquire, release):
    """Block i waits for block i - 1; what block 0 wrote is ordered before the last one."""
    body = f"""
        mad.wide.u32 %d1, %lane, 4, %a0;
        mov.u32 %r1, 1;
        setp.ne.u32 %q0, %block, 0;
        @!%q0 st.global.u32 [%d1], %r1;
        setp.ne.u32 %q1, %thread, 0;
        @%q1 bra MEET;
    WAIT:
        {{0}}
        setp.ne.u32 %q2, %r2, %block;
        @%q2 bra WAIT;
    MEET:
        bar.sync 0;
        setp.ne.u32 %q2, %block, 5;
        @!%q2 ld.global.u32 %r3, [%d1];
        @!%q2 st.global.u32 [%d1], %r3;
        bar.sync 0;
        @%q1 bra END;
        {release}
    END:
    """
    weaker = acquire.replace("acquire", "relaxed").replace("membar.gl;", "")
    for order in ({}, {"permute": True, "seed": 7, "resident_blocks": 6}):
        run(body.format(acquire), zeros(), zeros(1), grid=6, **order)
        fails("race", "by block 5, after a write by block 0", body.format(weaker), zeros(), zeros(1), grid=6, **order)
