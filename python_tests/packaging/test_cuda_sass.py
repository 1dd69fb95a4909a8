"""bench/cuda_sass.py on machine code that was written for it: what the main loop is, and its usual turn."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCH = Path(__file__).parents[2] / "bench"

# Three stages: a loop of two products with a mask that is left out or not, one of which may be skipped, with a product that takes 20
# instructions and is rarely needed, and copies into the stage behind. A second loop, without products, and code behind the end that goes
# back into the main loop.
EXCERPT = """
    .section    .text.small_kernel,"ax",@progbits
    .sectioninfo    @"SHI_REGISTERS=40"
small_kernel:
        /*0000*/                   S2R R0, SR_TID.X ;                // |   3  |
.L_x_0:
        /*0010*/                   STS [R0], R1 ;                    // |  30  |
        /*0020*/              @!P0 BRA `(.L_x_0) ;                   // |   3  |
        /*0030*/                   LDGSTS.E.BYPASS.128 [R0], [R2.64] ; // | 5 |
        /*0040*/                   LDGDEPBAR ;                       // |   5  |
        /*0050*/                   LDGSTS.E.BYPASS.128 [R0], [R2.64] ; // | 5 |
        /*0060*/                   LDGDEPBAR ;                       // |   5  |
.L_x_1:
        /*0070*/                   DEPBAR.LE SB0, 0x1 ;              // |  10  |
        /*0080*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;     // |  10  |
        /*0090*/              @!P1 BRA `(.L_x_2) ;                   // |  11  |
        /*00a0*/                   LDGSTS.E.BYPASS.128 [R0], [R2.64] ; // | 12 |
        /*00b0*/                   LDGSTS.E.BYPASS.128 [R0], [R2.64+0x80] ; // | 12 |
.L_x_2:
        /*00c0*/                   LDGDEPBAR ;                       // |  12  |
        /*00d0*/                   HMMA.16816.F32.BF16 R4, R8, R12, RZ ; // | 20 |
        /*00e0*/                   BRA.DIV ~URZ, `(.L_x_6) ;         // |  20  |
.L_x_3:
        /*00f0*/               @P2 BRA `(.L_x_4) ;                   // |  20  |
        /*0100*/                   FMUL R4, R4, R16 ;                // |  21  |
        /*0110*/                   LOP3.LUT R4, R4, R17, RZ, 0xc0, !PT ; // | 25 |
        /*0120*/                   SEL R4, R4, R18, P3 ;             // |  26  |
.L_x_4:
        /*0130*/                   MUFU.EX2 R4, R4 ;                 // |  22  |
        /*0140*/                   BAR.SYNC.DEFER_BLOCKING 0x0 ;     // |  22  |
        /*0144*/              @!P6 BRA `(.L_x_7) ;                         // |  24  |
        /*0150*/                   HMMA.16816.F32.BF16 R20, R8, R4, R20 ; // | 24 |
        /*0160*/                   HMMA.16816.F32.BF16 R24, R8, R5, R24 ; // | 24 |
.L_x_7:
        /*0164*/              @!P6 BRA `(.L_x_9) ;                   // |  24  |
.L_x_8:
RARE
        /*0168*/                   HMMA.16816.F32.BF16 R28, R8, R5, R28 ; // | 26 |
        /*016c*/               @P6 BRA `(.L_x_8) ;                   // |  24  |
.L_x_9:
        /*0170*/              @!P4 BRA P5, `(.L_x_1) ;               // |  20  |
        /*0180*/                   EXIT ;                            // |      |
.L_x_6:
        /*0190*/                   WARPSYNC R4 ;                     // |  28  |
        /*01a0*/                   BRA `(.L_x_3) ;                   // |  28  |
.L_x_5:
        /*01b0*/                   BRA `(.L_x_5);
""".replace("RARE", 20 * "        /*0166*/                   FSETP.GT.AND P0, PT, R1, R2, PT ; // | 25 |\n")
WITHOUT_PRODUCTS = EXCERPT.replace("HMMA", "IADD3").replace("small", "other")


@pytest.fixture
def sass(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("cuda_sass")


def test_the_usual_turn_of_the_main_loop(sass: ModuleType) -> None:
    loop, *others = sass.main_loops("small.cu", EXCERPT + WITHOUT_PRODUCTS)
    assert not others
    assert (loop.source, loop.kernel, loop.mma, loop.allocated_registers) == ("small.cu", "small_kernel", 3, 40)
    assert loop.others == {"wait": 4, "branch": 6, "global": 2, "ex2 and the like": 1}
    assert loop.mma_between_waits == [1, 2]
    assert loop.live_registers == 28  # in the loop, masks and what lies behind the end
    # The first product runs beside what was there when two copies had been begun after the wait; then nothing waits for copies.
    assert loop.copies_in_flight == (4, 4)
    assert loop.stages == 3


def test_loops_are_those_of_the_control_flow(sass: ModuleType) -> None:
    graph = sass.blocks(EXCERPT)
    found = sass.loops(graph)
    first = {header: graph[header].instructions[0].opcode for header in found}
    assert sorted(first.values()) == [
        "DEPBAR.LE",
        "FSETP.GT.AND",
        "STS",
    ]  # the last line is no part of the kernel: nothing leads there
    assert min(map(len, found.values())) == 1


def test_jumps_to_anywhere_are_refused(sass: ModuleType) -> None:
    with pytest.raises(ValueError, match="BRX jumps to places"):
        sass.blocks(EXCERPT.replace("BRA.DIV ~URZ,", "BRX R4"))


def test_a_missing_tool_is_named() -> None:
    done = subprocess.run(
        [sys.executable, str(BENCH / "cuda_sass.py")], env={"PATH": "", "CUDACXX": "/nowhere/nvcc"}, capture_output=True
    )
    assert done.returncode == 1
    assert b"cuda_sass: no nvdisasm; docs/building_cuda.md" in done.stderr
