"""Every check of the machine catches a fault that was planted for it, says where, and lets the corrected kernel pass.

A kernel is written as lines of PTX; each is a source line of its own, from 1 on. In a faulty one ``// !`` marks the line that
has to be reported.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import pytest
import torch

from lumos_engine.testing.emulation import KernelFault, Module, ptxvm

# Before the lines: %r0 thread, %r1 thread of the grid, %d0 address of data, %d1 of its word %r1; tile holds 64 words, %r2 is
# its address and %r3 that of word %r0. Two blocks of 64 threads; data has a word for each thread of the grid.
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
  mov.u32 %r1, %ctaid.x;
  mad.lo.u32 %r1, %r1, 64, %r0;
  mad.wide.u32 %d1, %r1, 4, %d0;
  mov.u32 %r2, tile;
  mad.lo.u32 %r3, %r0, 4, %r2;
"""


def ptx(lines: str) -> str:
    numbered = [f"  .loc 1 {i} 0\n  {line}" for i, line in enumerate(lines.strip().splitlines(), 1)]
    return "\n".join([HEAD, *numbered, "  ret;", "}"])


@dataclass
class Plant:
    kind: str
    faulty: str
    right: str
    block: int = 0
    thread: int = 0
    says: str = ""  # a pattern of what else the report has to name


def copies(lines: str) -> str:
    """Lines after which each thread of the first 16 copies 16 bytes of data to its place in the tile."""
    return f"""mad.lo.u32 %r4, %r0, 16, %r2;
mad.wide.u32 %d2, %r0, 16, %d0;
setp.lt.u32 %p0, %r0, 16;
@%p0 cp.async.ca.shared.global [%r4], [%d2], 16;
cp.async.commit_group;
{lines}"""


FIRST_WARP = "setp.lt.u32 %p1, %r0, 32;\n"
# The tile holds zeros, and %r4 is the address of a word that a thread of the other warp has written.
ZEROED = (
    "mov.b32 %r5, 0;\nst.shared.u32 [%r3], %r5;\nxor.b32 %r4, %r0, 32;\nmad.lo.u32 %r4, %r4, 4, %r2;\nbar.sync 0;\n"
)
ADDRESS = "0x[0-9a-f]+"
PLANTS = {
    "load after the end of global memory": Plant(
        "out of bounds", "ld.global.u32 %r4, [%d1+4]; // !", "ld.global.u32 %r4, [%d1];", 1, 63, ADDRESS
    ),
    "store before the begin of global memory": Plant(
        "out of bounds", "st.global.u32 [%d1+-4], %r0; // !", "st.global.u32 [%d1], %r0;", 0, 0, ADDRESS
    ),
    "atomic after the end of global memory": Plant(
        "out of bounds", "red.global.add.u32 [%d1+8], 1; // !", "red.global.add.u32 [%d1], 1;", 1, 62, ADDRESS
    ),
    "vector that ends outside": Plant(
        "out of bounds",
        "mad.wide.u32 %d2, %r1, 8, %d0;\nld.global.v2.u32 {%r4, %r5}, [%d2]; // !",
        "shr.u32 %r4, %r1, 1;\nmad.wide.u32 %d2, %r4, 8, %d0;\nld.global.v2.u32 {%r4, %r5}, [%d2];",
        1,
        0,
        ADDRESS,
    ),
    "null pointer": Plant("out of bounds", "mov.u64 %d2, 0;\nld.u32 %r4, [%d2]; // !", "ld.u32 %r4, [%d1];"),
    "store after the end of shared memory": Plant(
        "out of bounds", "st.shared.u32 [%r3+4], %r0; // !", "st.shared.u32 [%r3], %r0;", 0, 63, ADDRESS
    ),
    "generic store after the end of shared memory": Plant(
        "out of bounds",
        "cvt.u64.u32 %d2, %r3;\ncvta.shared.u64 %d2, %d2;\nst.u32 [%d2+128], %r0; // !",
        "cvt.u64.u32 %d2, %r3;\ncvta.shared.u64 %d2, %d2;\nst.u32 [%d2], %r0;",
        0,
        32,
        ADDRESS,
    ),
    "store after the end of local memory": Plant(
        "out of bounds", "st.local.u32 [stack+16], %r0; // !", "st.local.u32 [stack+12], %r0;", 0, 0
    ),
    "misaligned in global memory": Plant(
        "misaligned",
        "ld.global.v2.u32 {%r4, %r5}, [%d1]; // !",
        "ld.global.u32 %r4, [%d1];",
        0,
        1,
        ADDRESS,
    ),
    "misaligned in shared memory": Plant(
        "misaligned",
        "mad.lo.u32 %r4, %r0, 8, %r2;\nsetp.lt.u32 %p0, %r0, 16;\n@%p0 st.shared.v4.u32 [%r4], {%r0, %r0, %r0, %r0}; // !",
        "mad.lo.u32 %r4, %r0, 16, %r2;\nsetp.lt.u32 %p0, %r0, 16;\n@%p0 st.shared.v4.u32 [%r4], {%r0, %r0, %r0, %r0};",
        0,
        1,
        ADDRESS,
    ),
    "shared memory that nobody wrote": Plant(
        "uninitialised",
        FIRST_WARP + "@%p1 st.shared.u32 [%r3], %r0;\nbar.sync 0;\nld.shared.u32 %r4, [%r3]; // !",
        "st.shared.u32 [%r3], %r0;\nbar.sync 0;\nld.shared.u32 %r4, [%r3];",
        0,
        32,
        ADDRESS,
    ),
    "local memory that nobody wrote": Plant(
        "uninitialised",
        "st.local.u32 [stack], %r0;\nld.local.u32 %r4, [stack+4]; // !",
        "st.local.u32 [stack+4], %r0;\nld.local.u32 %r4, [stack+4];",
    ),
    "register that nobody set": Plant(
        "uninitialised", "add.u32 %r4, %r5, 1; // !", "mov.u32 %r5, 1;\nadd.u32 %r4, %r5, 1;"
    ),
    "register that some lanes set": Plant(
        "uninitialised",
        "setp.lt.u32 %p0, %r0, 37;\n@%p0 mov.u32 %r5, 1;\nadd.u32 %r4, %r5, 1; // !",
        "setp.lt.u32 %p0, %r0, 37;\n@%p0 mov.u32 %r5, 1;\n@!%p0 mov.u32 %r5, 2;\nadd.u32 %r4, %r5, 1;",
        0,
        37,
    ),
    "register that was moved before it was set": Plant(
        "uninitialised",
        "mov.b32 %r5, %r6;\nst.global.u32 [%d1], %r5; // !",
        "mov.b32 %r5, %r6;\nst.global.u32 [%d1], %r0;",
    ),
    "guard that nobody set": Plant(
        "uninitialised", "@%p3 mov.u32 %r5, 1; // !", "setp.eq.u32 %p3, %r0, 0;\n@%p3 mov.u32 %r5, 1;"
    ),
    "two warps that write the same word": Plant(
        "race",
        "and.b32 %r4, %r0, 31;\nmad.lo.u32 %r4, %r4, 4, %r2;\nst.shared.u32 [%r4], %r0; // !",
        "st.shared.u32 [%r3], %r0;",
        0,
        32,
        ADDRESS,
    ),
    "read, then written by another warp": Plant(
        "race",
        ZEROED
        + "ld.shared.u32 %r5, [%r4];\nld.shared.u32 %r6, [%r4];\nbar.warp.sync 0xffffffff;\nst.shared.u32 [%r3], %r5; // !",
        ZEROED + "ld.shared.u32 %r5, [%r4];\nbar.sync 0;\nst.shared.u32 [%r3], %r5;",
        0,
        32,
        ADDRESS,
    ),
    "blocks that write the same word": Plant(
        "race", "st.global.u32 [%d0], %r0; // !", "red.global.add.u32 [%d0], %r0;", 1, 0, ADDRESS
    ),
    "block that reads what another writes": Plant(
        "race",
        "st.global.u32 [%d1], %r0;\nld.global.u32 %r4, [%d0]; // !",
        "st.global.u32 [%d1], %r0;\nld.global.u32 %r4, [%d1];",
        1,
        0,
        ADDRESS,
    ),
    "copy that nobody waited for": Plant(
        "uninitialised",
        copies("bar.sync 0;\nld.shared.u32 %r5, [%r3]; // !"),
        copies("cp.async.wait_group 0;\nbar.sync 0;\nld.shared.u32 %r5, [%r3];"),
        0,
        0,
        ADDRESS,
    ),
    "copy of a younger group": Plant(
        "uninitialised",
        copies("cp.async.wait_group 1;\nbar.sync 0;\nld.shared.u32 %r5, [%r3]; // !"),
        copies("cp.async.commit_group;\ncp.async.wait_group 1;\nbar.sync 0;\nld.shared.u32 %r5, [%r3];"),
        0,
        0,
        ADDRESS,
    ),
    "copy over words that were read": Plant(
        "race",
        "st.shared.u32 [%r3], %r0;\nbar.sync 0;\n" + copies("ld.shared.u32 %r5, [%r3]; // !\ncp.async.wait_all;"),
        "st.shared.u32 [%r3], %r0;\nbar.sync 0;\n"
        + copies("cp.async.wait_all;\nbar.sync 0;\nld.shared.u32 %r5, [%r3];"),
        0,
        0,
        ADDRESS,
    ),
    "wait without a barrier behind it": Plant(
        "race",
        copies("cp.async.wait_group 0;\nld.shared.u32 %r5, [%r3]; // !"),
        copies("cp.async.wait_group 0;\nbar.sync 0;\nld.shared.u32 %r5, [%r3];"),
        0,
        32,
        ADDRESS,
    ),
    "copy at the end": Plant("unfinished copy", copies(""), copies("cp.async.wait_all;")),
    "barrier in one branch of a warp": Plant(
        "deadlock",
        "setp.lt.u32 %p0, %r0, 16;\n@%p0 bar.sync 0;\n@!%p0 bar.warp.sync 0xffffffff; // !",
        FIRST_WARP + "@%p1 bar.sync 0;\n@!%p1 bar.sync 0;",
    ),
    "barrier that a warp does not come to": Plant(
        "barrier divergence",
        FIRST_WARP + "@%p1 bar.sync 1, 64; // !",
        FIRST_WARP + "@%p1 bar.sync 1, 32;\nbar.sync 0;",
        0,
        0,
        "64",
    ),
    "barriers with different counts": Plant(
        "barrier divergence",
        FIRST_WARP + "@%p1 bar.sync 1, 64;\n@!%p1 bar.sync 1, 32; // !",
        FIRST_WARP + "@%p1 bar.sync 1, 64;\n@!%p1 bar.sync 1, 64;",
        0,
        32,
    ),
    "lane that is not of the mask": Plant(
        "barrier divergence",
        "shfl.sync.idx.b32 %r4, %r0, 0, 31, 0xffff; // !",
        "shfl.sync.idx.b32 %r4, %r0, 0, 31, 0xffffffff;",
        0,
        16,
    ),
    "mask of lanes that wait elsewhere": Plant(
        "deadlock",
        "setp.lt.u32 %p0, %r0, 8;\n@%p0 shfl.sync.idx.b32 %r4, %r0, 0, 31, 0xffffffff;\n@!%p0 bar.warp.sync 0xffffffff; // !",
        "setp.lt.u32 %p0, %r0, 32;\nshfl.sync.idx.b32 %r4, %r0, 0, 31, 0xffffffff;\nbar.warp.sync 0xffffffff;",
    ),
    "flag that nobody sets": Plant(
        "deadlock",
        "AGAIN: ld.acquire.gpu.global.u32 %r4, [%d0];\nsetp.eq.u32 %p0, %r4, 0;\n@%p0 bra AGAIN;",
        "AGAIN: ld.acquire.gpu.global.u32 %r4, [%d0];\nsetp.eq.u32 %p0, %r4, 1;\n@%p0 bra AGAIN;",
    ),
    "trap": Plant("trap", "setp.eq.u32 %p0, %r1, 70;\n@%p0 trap; // !", "setp.eq.u32 %p0, %r1, 700;\n@%p0 trap;", 1, 6),
    "assertion": Plant(
        "trap",
        "setp.ne.u32 %p0, %r1, 3;\n@%p0 bra FINE;\n"
        "{ .param .b64 a; .param .b64 b; .param .b32 c; .param .b64 d; .param .b64 e; st.param.b64 [a], 0; st.param.b64 [b], 0; "
        "st.param.b32 [c], 7; st.param.b64 [d], 0; st.param.b64 [e], 1; call.uni __assertfail, (a, b, c, d, e); } // !\nFINE:",
        "setp.ne.u32 %p0, %r1, 300;\n@%p0 bra FINE;\ntrap;\nFINE:",
        0,
        3,
    ),
}


def launch(lines: str) -> None:
    data = torch.zeros(128, dtype=torch.int32)
    with ptxvm(max_instructions=10000):
        Module(ptx(lines)).launch("planted", 2, 64, data)


@pytest.mark.parametrize("name", PLANTS)
def test_faulty(name: str) -> None:
    plant = PLANTS[name]
    with pytest.raises(KernelFault) as caught:
        launch(plant.faulty)
    report = str(caught.value)
    assert report.startswith(f"{plant.kind}: ")
    assert "kernel planted" in report
    assert f"block ({plant.block}, 0, 0)" in report
    assert f"thread ({plant.thread}, 0, 0)" in report
    assert re.search(plant.says, report)
    for number, line in enumerate(plant.faulty.splitlines(), 1):
        if line.endswith("// !"):
            assert f"planted.cu:{number} " in report


@pytest.mark.parametrize("name", PLANTS)
def test_right(name: str) -> None:
    launch(PLANTS[name].right)
