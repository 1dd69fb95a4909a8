"""Every check of the machine catches a fault that was planted for it, says where, and lets the corrected kernel pass.

Kernels are written as statements of PTX, and each is a source line of its own, from 1 on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch

from lumos_engine.testing.emulation import KernelFault, Module, ptxvm

# Before the lines: %r0 thread, %r1 thread of the grid, %d0 address of data, %d1 of its word %r1; tile holds 64 words, %r2 is
# its address and %r3 that of word %r0. Two blocks of 64 threads; data has 130 words.
HEAD = """
.version 8.0
.target sm_80
.address_size 64
.file 1 "planted.cu"
.extern .func __assertfail(.param .b64 a, .param .b64 b, .param .b32 c, .param .b64 d, .param .b64 e);
.visible .entry planted(.param .u64 data)
{
  .reg .pred %p<8>;
  .reg .b32 %r<24>;
  .reg .b64 %d<8>;
  .shared .align 16 .b8 tile[256];
  .local .align 16 .b8 stack[16];
  ld.param.u64 %d0, [data];
  mov.u32 %r0, %tid.x;
  mov.u32 %r6, %tid.x;
  mov.u32 %r1, %ctaid.x;
  mad.lo.u32 %r1, %r1, 64, %r0;
  mad.wide.u32 %d1, %r1, 4, %d0;
  mov.u32 %r2, tile;
  mad.lo.u32 %r3, %r0, 4, %r2;
"""


def source_lines(text: str) -> list[str]:
    """A statement each; ``!`` is before the one that has to be reported."""
    return [line.strip() for line in re.findall(r"[^;]*;|[^;]+$", text)]


def ptx(text: str) -> str:
    lines = (f"  .loc 1 {i} 0\n  {line.lstrip('! ')}" for i, line in enumerate(source_lines(text), 1))
    return "\n".join([HEAD, *lines, "  ret;", "}"])


@dataclass
class Plant:
    """faulty, right: statements of PTX, see ``source_lines``. thread: in block."""

    kind: str
    faulty: str
    right: str
    says: str = ""  # what else the report has to name
    thread: int = 0
    block: int = 0


# %r4: a place of 16 bytes in the tile for each of 16 threads (%p0), %d2 that of data; the first threads, or the last ones.
PLACES = "mad.lo.u32 %r4, %r6, 16, %r2; mad.wide.u32 %d2, %r6, 16, %d0; setp.lt.u32 %p0, %r6, 16;"
LAST = "sub.u32 %r6, 63, %r0;"
COPY = PLACES + "@%p0 cp.async.ca.shared.global [%r4], [%d2], 16; cp.async.commit_group;"
UNFINISHED = PLACES + "! @%p0 cp.async.ca.shared.global [%r4], [%d2], 16; cp.async.commit_group;"
WARP_0 = "setp.lt.u32 %p1, %r0, 32;"
# The tile holds zeros, %r4 is the address of a word of the other warp. Behind the barrier the warp that came last goes first.
ZEROED = "mov.b32 %r5, 0; st.shared.u32 [%r3], %r5; xor.b32 %r4, %r0, 32; mad.lo.u32 %r4, %r4, 4, %r2; bar.sync 0;"
READ = "ld.shared.u32 %r5, [%r3];"
GENERIC = "cvt.u64.u32 %d2, %r3; cvta.shared.u64 %d2, %d2;"
SPIN = "AGAIN: ld.acquire.gpu.global.u32 %r4, [%d0]; setp.eq.u32 %p0, %r4, "
ASSERTION = """{ .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e; st.param.b64 [a], 0; st.param.b64 [b], 0;
st.param.b32 [c], 7; st.param.b64 [d], 0; st.param.b64 [e], 1; ! call.uni __assertfail, (a, b, c, d, e); }"""
PLANTS = {
    # bounds
    "load behind global memory": Plant(
        "out of bounds", "! ld.global.u32 %r4, [%d1+12];", "ld.global.u32 %r4, [%d1+8];", "'argument 0' + 520", 63, 1
    ),
    "store before global memory": Plant(
        "out of bounds", "! st.global.u32 [%d1+-4], %r0;", "st.global.u32 [%d1], %r0;", "'argument 0' - 4"
    ),
    "atomic behind global memory": Plant(
        "out of bounds", "! red.global.add.u32 [%d1+16], 1;", "red.global.add.u32 [%d1+8], 1;", "'argument 0' + 520", 62, 1
    ),
    "copy from behind global memory": Plant(
        "out of bounds",
        "! cp.async.ca.shared.global [%r3], [%d1+12], 4; cp.async.wait_all;",
        "cp.async.ca.shared.global [%r3], [%d1+8], 4; cp.async.wait_all;",
        "'argument 0' + 520", 63, 1,
    ),
    "vector half outside": Plant(
        "out of bounds",
        "and.b32 %r4, %r1, 124; mad.wide.u32 %d2, %r4, 4, %d0; ! ld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%d2+16];",
        "and.b32 %r4, %r1, 124; mad.wide.u32 %d2, %r4, 4, %d0; ld.global.v4.u32 {%r8, %r9, %r10, %r11}, [%d2];",
        "16 bytes at buffer 'argument 0' + 512", 60, 1,
    ),
    "null pointer": Plant("out of bounds", "mov.u64 %d2, 0; ! ld.u32 %r4, [%d2];", "ld.u32 %r4, [%d1];", "0x0"),
    "store behind shared memory": Plant(
        "out of bounds", "! st.shared.u32 [%r3+4], %r0;", "st.shared.u32 [%r3], %r0;", "byte 256", 63
    ),
    "generic store behind shared memory": Plant(
        "out of bounds", GENERIC + "! st.u32 [%d2+128], %r0;", GENERIC + "st.u32 [%d2], %r0;", "byte 256", 32
    ),
    "matrix behind shared memory": Plant(
        "out of bounds",
        "st.shared.u32 [%r3], %r0; bar.sync 0; mad.lo.u32 %r4, %r0, 16, %r2;"
        "! ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r4];",
        "st.shared.u32 [%r3], %r0; bar.sync 0; and.b32 %r4, %r0, 15; mad.lo.u32 %r4, %r4, 16, %r2;"
        "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r5, %r6, %r7, %r8}, [%r4];",
        "byte 512", 32,
    ),
    "store behind local memory": Plant(
        "out of bounds", "! st.local.u32 [stack+16], %r0;", "st.local.u32 [stack+12], %r0;", "byte 16 of local memory"
    ),
    # alignment
    "misaligned in global memory": Plant(
        "misaligned", "! ld.global.u32 %r4, [%d1+2];", "ld.global.u32 %r4, [%d1];", "address 0x"
    ),
    "vector misaligned in shared memory": Plant(
        "misaligned",
        PLACES + "setp.lt.u32 %p0, %r0, 15; ! @%p0 st.shared.v4.u32 [%r4+8], {%r0, %r0, %r0, %r0};",
        PLACES + "@%p0 st.shared.v4.u32 [%r4], {%r0, %r0, %r0, %r0};",
        "address 0x",
    ),
    # initialisation
    "shared memory that nobody wrote": Plant(
        "uninitialised",
        WARP_0 + "@%p1 st.shared.u32 [%r3], %r0; bar.sync 0; !" + READ,
        "st.shared.u32 [%r3], %r0; bar.sync 0;" + READ,
        "byte 128", 32,
    ),
    "local memory that nobody wrote": Plant(
        "uninitialised",
        "st.local.u32 [stack], %r0; ! ld.local.u32 %r4, [stack+4];",
        "st.local.u32 [stack+4], %r0; ld.local.u32 %r4, [stack+4];",
        "local memory at byte 4",
    ),
    "register that nobody set": Plant(
        "uninitialised", "! add.u32 %r4, %r5, 1;", "mov.u32 %r5, 1; add.u32 %r4, %r5, 1;"
    ),
    "register that some lanes set": Plant(
        "uninitialised",
        "setp.lt.u32 %p0, %r0, 37; @%p0 mov.u32 %r5, 1; ! add.u32 %r4, %r5, 1;",
        "setp.lt.u32 %p0, %r0, 37; @%p0 mov.u32 %r5, 1; @!%p0 mov.u32 %r5, 2; add.u32 %r4, %r5, 1;",
        thread=37,
    ),
    "register that was moved before it was set": Plant(
        "uninitialised", "mov.b32 %r5, %r7; ! st.global.u32 [%d1], %r5;", "mov.b32 %r5, %r7; st.global.u32 [%d1], %r0;"
    ),
    "guard that nobody set": Plant(
        "uninitialised", "! @%p3 mov.u32 %r5, 1;", "setp.eq.u32 %p3, %r0, 0; @%p3 mov.u32 %r5, 1;"
    ),
    # races
    "warps that write the same word": Plant(
        "race",
        "and.b32 %r4, %r0, 31; mad.lo.u32 %r4, %r4, 4, %r2; ! st.shared.u32 [%r4], %r0;",
        "st.shared.u32 [%r3], %r0;",
        "byte 0 by warp 1, after a write by warp 0", 32,
    ),
    "written, then read by another warp": Plant(
        "race",
        WARP_0 + ZEROED + "@!%p1 st.shared.u32 [%r3], %r0; ! @%p1 ld.shared.u32 %r5, [%r4];",
        WARP_0 + ZEROED + "@!%p1 st.shared.u32 [%r3], %r0; bar.sync 0; @%p1 ld.shared.u32 %r5, [%r4];",
        "byte 128 by warp 0, after a write by warp 1",
    ),
    "read, then written by another warp": Plant(
        "race",
        WARP_0 + ZEROED + "@!%p1 ld.shared.u32 %r5, [%r4]; ! @%p1 st.shared.u32 [%r3], %r0;",
        WARP_0 + ZEROED + "@!%p1 ld.shared.u32 %r5, [%r4]; bar.sync 0; @%p1 st.shared.u32 [%r3], %r0;",
        "byte 0 by warp 0, after a read by warp 1",
    ),
    "barrier that does not name the reader": Plant(
        "race",
        WARP_0 + ZEROED + "@!%p1 st.shared.u32 [%r3], %r0; @!%p1 bar.sync 1, 32; ! @%p1 ld.shared.u32 %r5, [%r4];",
        WARP_0 + ZEROED + "@!%p1 st.shared.u32 [%r3], %r0; bar.sync 1, 64; @%p1 ld.shared.u32 %r5, [%r4];",
        "byte 128 by warp 0, after a write by warp 1",
    ),
    "lanes that write the same word": Plant(
        "race", "! st.shared.u32 [%r2], %r0;", "mov.b32 %r5, 1; setp.lt.u32 %p0, %r0, 32; @%p0 st.shared.u32 [%r2], %r5;"
    ),
    "blocks that write the same word": Plant(
        "race",
        "mov.u32 %r4, %ctaid.x; ! st.global.u32 [%d0], %r4;",
        "mov.u32 %r4, %ctaid.x; red.global.add.u32 [%d0], %r4;",
        "'argument 0' + 0 by block 1, after a write by block 0",
        block=1,
    ),
    "block that reads what another writes": Plant(
        "race",
        "st.global.u32 [%d1], %r0; ! ld.global.u32 %r4, [%d0];",
        "st.global.u32 [%d1], %r0; ld.global.u32 %r4, [%d1];",
        "'argument 0' + 0 by block 1, after a write by block 0",
        block=1,
    ),
    # asynchronous copies
    "copy that nobody waited for": Plant(
        "race", COPY + "bar.sync 0; !" + READ, COPY + "cp.async.wait_group 0; bar.sync 0;" + READ, "byte 128", 32
    ),
    "wait for an older group": Plant(
        "race",
        COPY + "cp.async.wait_group 1; bar.sync 0; !" + READ,
        COPY + "cp.async.commit_group; cp.async.wait_group 1; bar.sync 0;" + READ,
        "byte 128", 32,
    ),
    "copy that was not committed": Plant(
        "race",
        PLACES + "@%p0 cp.async.ca.shared.global [%r4], [%d2], 16; cp.async.wait_group 0; bar.sync 0; !" + READ,
        PLACES + "@%p0 cp.async.ca.shared.global [%r4], [%d2], 16; cp.async.wait_all; bar.sync 0;" + READ,
        "byte 128", 32,
    ),
    "wait without a barrier behind it": Plant(
        "race",
        ZEROED + LAST + COPY + "cp.async.wait_group 0; !" + READ,
        ZEROED + LAST + COPY + "cp.async.wait_group 0; bar.sync 0;" + READ,
        "byte 0 by warp 0, after a write by warp 1",
    ),
    "copy over what another warp reads": Plant(
        "race",
        ZEROED + READ + PLACES + "! @%p0 cp.async.ca.shared.global [%r4], [%d2], 16; cp.async.wait_all;",
        ZEROED + READ + "bar.sync 0;" + PLACES + "@%p0 cp.async.ca.shared.global [%r4], [%d2], 16; cp.async.wait_all;",
        "byte 128 by warp 0, after a read by warp 1", 8,
    ),
    "copy at the end": Plant("unfinished copy", UNFINISHED, COPY + "cp.async.wait_all;", "byte 0"),
    # barriers
    "barrier in one branch of a warp": Plant(
        "deadlock",
        "setp.lt.u32 %p0, %r0, 16; ! @%p0 bar.sync 0; @!%p0 bar.warp.sync 0xffffffff;",
        "bar.sync 0; bar.warp.sync 0xffffffff;",
    ),
    "barrier that a warp does not come to": Plant(
        "barrier divergence",
        WARP_0 + "! @%p1 bar.sync 1, 64;",
        WARP_0 + "@%p1 bar.sync 1, 64; @!%p1 bar.arrive 1, 64;",
        "waits for 64 threads, 32 have come",
    ),
    "barriers with different counts": Plant(
        "barrier divergence",
        WARP_0 + "@%p1 bar.sync 1, 64; ! @!%p1 bar.sync 1, 32;",
        WARP_0 + "@%p1 bar.sync 1, 64; @!%p1 bar.sync 1, 64;",
        thread=32,
    ),
    "lane that is not of the mask": Plant(
        "barrier divergence",
        "! shfl.sync.idx.b32 %r4, %r0, 0, 31, 0xffff;",
        "shfl.sync.idx.b32 %r4, %r0, 0, 31, 0xffffffff;",
        "0000ffff", 16,
    ),
    "mask of lanes that wait elsewhere": Plant(
        "deadlock",
        "setp.lt.u32 %p0, %r0, 8; ! @%p0 shfl.sync.idx.b32 %r4, %r0, 0, 31, 0xffffffff; @!%p0 bar.warp.sync 0xffffffff;",
        "shfl.sync.idx.b32 %r4, %r0, 0, 31, 0xffffffff; bar.warp.sync 0xffffffff;",
    ),
    "lane that has ended": Plant(
        "undefined shuffle",
        "setp.lt.u32 %p0, %r0, 16; @%p0 bra DONE; ! shfl.sync.idx.b32 %r4, %r0, 3, 31, 0xffffffff; DONE:",
        "setp.lt.u32 %p0, %r0, 16; @%p0 bra DONE; shfl.sync.idx.b32 %r4, %r0, 19, 31, 0xffffffff; DONE:",
        "reads lane 3", 16,
    ),
    "flag that nobody sets": Plant("deadlock", SPIN + "0; @%p0 bra AGAIN;", SPIN + "1; @%p0 bra AGAIN;"),
    # ends
    "trap": Plant("trap", "setp.eq.u32 %p0, %r1, 70; ! @%p0 trap;", "setp.eq.u32 %p0, %r1, 700; @%p0 trap;", "", 6, 1),
    "assertion": Plant(
        "trap",
        "setp.ne.u32 %p0, %r1, 3; @%p0 bra FINE;" + ASSERTION + "FINE:",
        "setp.ne.u32 %p0, %r1, 300; @%p0 bra FINE;" + ASSERTION + "FINE:",
        "assertion", 3,
    ),
}  # fmt: skip


def launch(text: str, seed: int | None = None) -> None:
    data = torch.zeros(130, dtype=torch.int32)
    with ptxvm(seed, max_instructions=10000):
        Module(ptx(text)).launch("planted", 2, 64, data)


@pytest.mark.parametrize("name", PLANTS)
def test_faulty(name: str) -> None:
    plant = PLANTS[name]
    with pytest.raises(KernelFault) as caught:
        launch(plant.faulty)
    report = str(caught.value)
    assert report.startswith(f"{plant.kind}: ")
    assert f"block ({plant.block}, 0, 0), thread ({plant.thread}, 0, 0)" in report
    assert plant.says in report
    lines = source_lines(plant.faulty)
    if marked := [i for i, line in enumerate(lines, 1) if line.startswith("!")]:
        assert f"kernel planted, planted.cu:{marked[0]}, PTX line " in report


@pytest.mark.parametrize("name", PLANTS)
def test_faulty_in_any_order(name: str) -> None:
    for seed in range(5):
        with pytest.raises(KernelFault, match=f"^{PLANTS[name].kind}: "):
            launch(PLANTS[name].faulty, seed)


@pytest.mark.parametrize("name", PLANTS)
def test_right(name: str) -> None:
    for seed in (None, *range(5)):
        launch(PLANTS[name].right, seed)


@pytest.mark.parametrize("ended", [16, 32])
@pytest.mark.parametrize("leave", ["ret", "bra DONE"])
def test_threads_that_ended_keep_nobody_waiting(ended: int, leave: str) -> None:
    text = f"setp.lt.u32 %p0, %r0, {ended}; @%p0 {leave}; bar.sync 0; bar.warp.sync 0xffffffff; bar.sync 0; DONE:"
    for seed in (None, *range(5)):
        launch(text, seed)
