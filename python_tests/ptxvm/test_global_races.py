"""Races between blocks in global memory: each fault beside its corrected twin."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from lumos_engine.testing.emulation import KernelFault, extension

from .memory_kernel import KINDS, conflict, fails, kernel, pairs, run

BARRIER = "bar.sync 0;"
races = partial(fails, "race")


def zeros(count: int = 256) -> np.ndarray:
    return np.zeros(count, np.uint32)


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
    races("buffer 'argument 0'.*no release and acquire", body, zeros(), grid=3, block=64, shared=256, **order)
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
        races("by block 1, after .* by block 0", body, zeros(), grid=2, block=64)
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
    races("", body.format(0), zeros(), grid=2)


@pytest.fixture
def memory():
    """256 bytes, of which the machine does not know yet."""
    yield torch.zeros(64, dtype=torch.int32)
    extension().clear_buffers()


def launch(memory: torch.Tensor, *bodies: str) -> None:
    """Two blocks of each body, on buffers that are there already."""
    text = [kernel(body, 1, name=f"k{i}") for i, body in enumerate(bodies)]
    made = extension().PtxModule(".version 9.0\n.target sm_80\n.address_size 64\n" + "".join(text))
    for i in range(len(bodies)):
        made.launch(f"k{i}", (2, 1, 1), (64, 1, 1), [memory.data_ptr().to_bytes(8, "little")])


def test_launches_are_ordered(memory):
    extension().add_buffer(memory.data_ptr(), 256, "memory")
    launch(memory, blocks("@%q0 st.global.u32 [%d1], %r1;"), blocks("@!%q0 st.global.u32 [%d1], %r1;"))
    with pytest.raises(KernelFault, match=r"race: .* of buffer 'memory'"):
        launch(memory, blocks("st.global.u32 [%d1], %r1;"))


def test_buffers_may_be_read_only(memory):
    body = blocks("@%q0 st.global.u32 [%d1], %r1;")
    extension().add_buffer(memory.data_ptr(), 256, "constant", writable=False)
    launch(memory, blocks("ld.global.u32 %r1, [%d1];"))
    with pytest.raises(KernelFault, match=r"out of bounds: write of 4 bytes at buffer 'constant' . 0, .* read-only"):
        launch(memory, body)
    extension().add_buffer(memory.data_ptr(), 128, "variable")  # a view of it that may be written
    launch(memory, body)
    extension().add_buffer(memory.data_ptr(), 64, "another view", writable=False)
    launch(memory, body)


def test_views_are_one_buffer():
    """Accesses through two views of the same bytes meet, and may go beyond either."""
    memory = zeros()
    for views in ((memory[:128], memory[64:]), (memory[64:], memory[:128]), (memory, memory[64:128])):
        offset = (memory[64:].ctypes.data - views[0].ctypes.data, memory[64:].ctypes.data - views[1].ctypes.data)
        body = f"mov.u32 %r1, 1; setp.eq.u32 %q0, %block, 0; @%q0 st.global.u32 [%a0+{offset[0]}], %r1; @!%q0 st.global.u32 [%a1+{offset[1]}], %r1;"
        races("", body, *views, grid=2)
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


def message(release: str, acquire: str, fence: str = "", **parts: str) -> str:
    return MESSAGE.format(release=release, acquire=acquire, fence=fence, **(PARTS | parts))


three = {"grid": 3, "block": 64}
from_block_0 = partial(fails, "race", "after a write by block 0")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize(("acquire", "fence"), ACQUIRES)
def test_messages(release, acquire, fence):
    for order in ({}, {"resident_blocks": 3}, {"permute": True, "seed": 1, "resident_blocks": 3}):
        run(message(release, acquire, fence), zeros(), zeros(1), **three, **order)
    weaker = release.replace("release", "relaxed").replace("acq_rel.sys", "acquire.sys")
    if "; " in weaker:
        weaker = weaker.split("; ")[1]
    from_block_0(message(weaker, acquire, fence), zeros(), zeros(1), **three)
    from_block_0(message(release, acquire.replace("acquire", "relaxed")), zeros(), zeros(1), **three)
    if fence:
        from_block_0(message(release, acquire, "membar.cta;"), zeros(), zeros(1), **three)


LATER = {"read": "ld.global.u32 %r2, [%d1+256];"}


@pytest.mark.parametrize(
    "release",
    [
        "membar.gl; st.global.u32 [%d1+256], %r1; st.volatile.global.u32 [%a1], %r1;",
        "membar.gl; st.volatile.global.u32 [%a1], %r1; st.global.u32 [%d1+256], %r1;",
        "st.release.gpu.global.u32 [%a1], %r1; st.global.u32 [%d1+256], %r1;",
    ],
)
def test_what_comes_after_the_release(release):
    """The word behind, which is written after the fence."""
    run(message(release, ACQUIRES[0][0]), zeros(), zeros(1), **three)
    from_block_0(message(release, ACQUIRES[0][0], **LATER), zeros(), zeros(1), **three)
    earlier = {"write": PARTS["write"] + "st.global.u32 [%d1+256], %r1;", "release": RELEASES[0]}
    run(message(acquire=ACQUIRES[0][0], **earlier, **LATER), zeros(), zeros(1), **three)


def test_a_strong_write_acquires_nothing():
    overwrites = "mov.u32 %r5, 1; {0}.gpu.global.{1} [%a1], %r1; fence.acq_rel.gpu;"
    run(message(RELEASES[0], overwrites.format("atom.relaxed", "add.u32 %r6,")), zeros(), zeros(1), **three)
    from_block_0(message(RELEASES[0], overwrites.format("st.relaxed", "u32")), zeros(), zeros(1), **three)


def test_an_ordered_read_hides_no_write():
    """Block 1 acquires and reads, block 2 reads without that."""
    body = blocks("""
        @%q0 st.global.u32 [%d1], %r1;
        @%q0 st.release.gpu.global.u32 [%a1], %r1;
        setp.eq.u32 %q1, %block, {0};
        @%q1 ld.acquire.gpu.global.u32 %r2, [%a1];
        @%q1 ld.global.u32 %r2, [%d1];
        setp.eq.u32 %q2, %block, 2;
        @%q2 ld.acquire.gpu.global.u32 %r2, [%a1+{1}];
        @%q2 ld.global.u32 %r2, [%d1];
    """)
    run(body.format(1, 0), zeros(), zeros(2), **three)
    races("by block 2, after a write by block 0", body.format(1, 4), zeros(), zeros(2), **three)


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
    races("", LAST.format(fence_1="", fence_2="membar.gl;"), zeros(), zeros(1), **arguments)
    races("", LAST.format(fence_1="membar.gl;", fence_2=""), zeros(), zeros(1), **arguments)


@pytest.mark.parametrize(
    ("acquire", "release"),
    [
        ("ld.acquire.gpu.global.u32 %r2, [%d2];", "st.release.gpu.global.u32 [%d2+4], %r1;"),
        ("ld.relaxed.gpu.global.u32 %r2, [%d2]; membar.gl;", "membar.gl; st.relaxed.gpu.global.u32 [%d2+4], %r1;"),
    ],
)
def test_a_chain_of_blocks(acquire, release):
    """Block i waits for flag i and raises the next; what block 0 wrote is ordered before the last one."""
    body = f"""
        mad.wide.u32 %d1, %lane, 4, %a0;
        mad.wide.u32 %d2, %block, 4, %a1;
        mov.u32 %r1, 1;
        setp.eq.u32 %q0, %block, 0;
        setp.eq.u32 %q1, %thread, 0;
        @%q0 st.global.u32 [%d1], %r1;
        @%q0 bra MEET;
        @!%q1 bra MEET;
    WAIT:
        {{0}}
        setp.ne.u32 %q2, %r2, 1;
        @%q2 bra WAIT;
    MEET:
        bar.sync 0;
        setp.eq.u32 %q2, %block, 5;
        @%q2 ld.global.u32 %r3, [%d1];
        @%q2 st.global.u32 [%d1], %r3;
        bar.sync 0;
        @!%q1 bra END;
        {release}
    END:
    """
    weaker = acquire.replace("acquire", "relaxed").replace("membar.gl;", "")
    for order in ({}, {"permute": True, "seed": 7, "resident_blocks": 6}):
        run(body.format(acquire), zeros(), zeros(8), grid=6, **order)
        races("by block 5, after a write by block 0", body.format(weaker), zeros(), zeros(8), grid=6, **order)
