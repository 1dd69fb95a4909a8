"""Moves: every operand is found in full, nothing else is touched."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
import torch

from lumos_engine.testing.emulation import Module

from .opcode_kernel import DTYPES, LINE, module_of, operands, run, run_lines

VALUES = ("b16", "b32", "b64", "u16", "s16", "u32", "s32", "u64", "s64", "f32", "f64")


def bits(array: np.ndarray) -> np.ndarray:
    return array if array.dtype == np.bool_ else array.view(f"u{array.dtype.itemsize}")


@pytest.mark.parametrize("name", [*VALUES, "pred"])
def test_mov(name: str) -> None:
    (a,) = operands(name)
    np.testing.assert_array_equal(bits(run(f"mov.{name}", DTYPES[name], a)), bits(a))


@pytest.mark.parametrize(
    ("name", "immediate", "bytes_of_it"),
    [
        ("u16", "0xFFFF", b"\xff\xff"),
        ("s16", "-2", b"\xfe\xff"),
        ("b32", "0x89ABCDEF", struct.pack("<I", 0x89ABCDEF)),
        ("s32", "-2147483648", struct.pack("<i", -(2**31))),
        ("u32", "4294967295", b"\xff" * 4),
        ("s64", "-9223372036854775808", struct.pack("<q", -(2**63))),
        ("u64", "0xFEDCBA9876543210", struct.pack("<Q", 0xFEDCBA9876543210)),
        ("f32", "0f3EAAAAAB", struct.pack("<f", 1 / 3)),
        ("b32", "0fFF800000", struct.pack("<f", -np.inf)),
        ("f32", "0.5", struct.pack("<f", 0.5)),
        ("f64", "0d3FD5555555555555", struct.pack("<d", 1 / 3)),
        ("b64", "0dBFF0000000000000", struct.pack("<d", -1.0)),
    ],
)
def test_mov_of_an_immediate(name: str, immediate: str, bytes_of_it: bytes) -> None:
    (any_operand,) = operands("b32", count=128)
    (got,) = run_lines(f"mov.{name} %d0, {immediate};", [DTYPES[name]], any_operand)
    assert got.tobytes() == bytes_of_it * 128


@pytest.mark.parametrize("value", [0, 1])
def test_mov_of_a_constant_predicate(value: int) -> None:
    (got,) = run_lines(f"mov.pred %d0, {value};", [np.bool_], operands("b32", count=128)[0])
    assert (got == bool(value)).all()


@pytest.mark.parametrize(("whole", "part", "count"), [("b32", "b16", 2), ("b64", "b32", 2), ("b64", "b16", 4)])
def test_packing(whole: str, part: str, count: int) -> None:
    parts = operands(*[part] * count)
    packed = np.stack(parts, axis=-1).view(DTYPES[whole])[:, 0]
    vector = "{" + ", ".join(f"%a{i}" for i in range(count)) + "}"
    (got,) = run_lines(f"mov.{whole} %d0, {vector};", [DTYPES[whole]], *parts)
    np.testing.assert_array_equal(got, packed)
    vector = vector.replace("%a", "%d")
    for found, wanted in zip(
        run_lines(f"mov.{whole} {vector}, %a0;", [DTYPES[part]] * count, packed), parts, strict=True
    ):
        np.testing.assert_array_equal(found, wanted)


def test_packing_of_constants_and_into_nothing() -> None:
    low, whole = operands("b32", "b64")
    packed, high = run_lines("mov.b64 %d0, {%a0, 7}; mov.b64 {_, %d1}, %a1;", [np.uint64, np.uint32], low, whole)
    np.testing.assert_array_equal(packed, low.astype(np.uint64) | np.uint64(7 << 32))
    np.testing.assert_array_equal(high, whole >> np.uint64(32))


@pytest.mark.parametrize("name", VALUES)
def test_selp(name: str) -> None:
    a, b, p = operands(name, name, "pred")
    np.testing.assert_array_equal(bits(run(f"selp.{name}", DTYPES[name], a, b, p)), np.where(p, bits(a), bits(b)))


@pytest.mark.parametrize("name", VALUES)
def test_slct(name: str) -> None:
    a, b, c, x = operands(name, name, "s32", "f32")
    lines = f"slct.{name}.s32 %d0, %a0, %a1, %a2; slct.{name}.f32 %d1, %a0, %a1, %a3; slct.ftz.{name}.f32 %d2, %a0, %a1, %a3;"
    got = run_lines(lines, [DTYPES[name]] * 3, a, b, c, x)
    tiny = np.abs(x) < np.finfo(np.float32).tiny  # a NaN is not
    for found, condition in zip(got, (c >= 0, x >= 0, (x >= 0) | tiny), strict=True):
        np.testing.assert_array_equal(bits(found), np.where(condition, bits(a), bits(b)))


KERNEL = """.version 9.0
.target sm_80
.address_size 64
.global .align 8 .b8 table[16] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
.const .align 4 .u32 number = 42;
.visible .entry kernel(.param .u64 out) {
    .shared .align 8 .b8 first[8];
    .shared .align 8 .b8 second[8];
    .local .align 8 .b8 depot[16];
    .reg .b32 %r<8>; .reg .b64 %rd<16>; .reg .pred %p<8>; .reg .b64 %at;
    ld.param.u64 %at, [out];
"""


def run_text(text: str, dtype: type, grid: int | tuple[int, ...] = 1, block: int | tuple[int, ...] = 32) -> np.ndarray:
    """What the threads write to ``%at``: an array [threads, ...] of as many values as one block's ``text`` stores."""
    count = int(np.prod(grid) * np.prod(block))
    stored = text.count("st.global")
    out = torch.full((count * stored * np.dtype(dtype).itemsize,), 255, dtype=torch.uint8)
    Module(KERNEL + text + "\nret;\n}\n").launch("kernel", grid, block, out)
    return out.numpy().view(dtype).reshape(count, stored)


def test_special_registers() -> None:
    names = ["tid.x", "tid.y", "tid.z", "ntid.x", "ntid.y", "ntid.z", "ctaid.x", "ctaid.y", "ctaid.z"]
    names += ["nctaid.x", "nctaid.y", "nctaid.z", "laneid", "warpid"]
    names += [f"lanemask_{which}" for which in ("eq", "lt", "le", "gt", "ge")]
    block, grid = (5, 4, 3), (2, 3, 2)
    thread = """
    mov.u32 %r0, %tid.z; mov.u32 %r1, %ntid.y; mov.u32 %r2, %tid.y; mad.lo.u32 %r0, %r0, %r1, %r2;
    mov.u32 %r1, %ntid.x; mov.u32 %r2, %tid.x; mad.lo.u32 %r0, %r0, %r1, %r2;
    mov.u32 %r3, %ctaid.z; mov.u32 %r1, %nctaid.y; mov.u32 %r2, %ctaid.y; mad.lo.u32 %r3, %r3, %r1, %r2;
    mov.u32 %r1, %nctaid.x; mov.u32 %r2, %ctaid.x; mad.lo.u32 %r3, %r3, %r1, %r2;
    mad.lo.u32 %r0, %r3, 60, %r0;
    """
    lines = [f"mov.u32 %r4, %{name};\nst.global.u32 [%at+{4 * i}], %r4;" for i, name in enumerate(names)]
    got = run_text(
        f"{thread}\nmad.wide.u32 %at, %r0, {4 * len(names)}, %at;\n" + "\n".join(lines), np.uint32, grid, block
    )
    index = np.arange(len(got))
    thread_index, block_index = index % 60, index // 60
    lane = thread_index % 32
    expected = [thread_index % 5, thread_index // 5 % 4, thread_index // 20, *block]
    expected += [block_index % 2, block_index // 2 % 3, block_index // 6, *grid, lane, thread_index // 32]
    expected += [1 << lane, (1 << lane) - 1, (2 << lane) - 1, 2**32 - (2 << lane), 2**32 - (1 << lane)]
    for name, found, wanted in zip(names, got.T, expected, strict=True):
        np.testing.assert_array_equal(found, wanted, err_msg=name)


def test_clocks_advance() -> None:
    text = ""
    for i, (register, kind) in enumerate([("clock64", "rd"), ("globaltimer", "rd")] * 2):
        text += f"mov.u64 %{kind}{i}, %{register};\n"
    text += "mov.u32 %r0, %clock; mov.u32 %r1, %clock; mov.u32 %r2, %clock_hi;\n"
    text += "\n".join(f"st.global.u64 [%at+{8 * i}], %rd{i};" for i in range(4))
    text += "\nsub.u32 %r0, %r1, %r0; mov.b64 %rd4, {%r0, %r2}; st.global.u64 [%at+32], %rd4;"
    first, timer, later, later_timer, difference = run_text(text, np.uint64, block=1)[0]
    assert later > first
    assert later_timer > timer
    assert 0 < difference < 1000  # of the lower words; the upper one is zero


def test_symbols() -> None:
    text = """
    mov.u64 %rd0, table; ld.global.u8 %r0, [%rd0]; mov.u64 %rd0, table+8; ld.global.u8 %r1, [%rd0];
    mov.u64 %rd1, number; ld.const.u32 %r2, [%rd1]; add.u32 %r0, %r0, %r2; add.u32 %r0, %r0, %r1;
    st.global.u32 [%at], %r0;
    mov.u32 %r3, first; mov.u32 %r4, second; mov.u32 %r5, second+4;
    st.shared.u32 [%r5], %r2; ld.shared.u32 %r6, [second+4]; sub.u32 %r5, %r5, %r4;
    st.global.u32 [%at+4], %r3; st.global.u32 [%at+8], %r4; st.global.u32 [%at+12], %r5; st.global.u32 [%at+16], %r6;
    """
    total, first, second, step, through_shared = run_text(text, np.uint32, block=1)[0]
    assert total == 1 + 9 + 42
    assert abs(int(second) - int(first)) == 8
    assert step == 4
    assert through_shared == 42


def test_generic_addresses() -> None:
    """cvta and back is the same address, generic accesses reach it, and isspacep tells where it lies."""
    text = """
    mov.u64 %rd0, first; cvta.shared.u64 %rd1, %rd0; cvta.to.shared.u64 %rd2, %rd1;
    cvta.shared::cta.u64 %rd3, first;
    mov.u64 %rd4, depot; cvta.local.u64 %rd5, %rd4; cvta.to.local.u64 %rd6, %rd5;
    mov.u64 %rd7, table; cvta.global.u64 %rd8, %rd7; cvta.to.global.u64 %rd9, %rd8; cvta.to.const.u64 %rd10, %rd8;
    mov.u32 %r0, 5; st.u32 [%rd1], %r0; ld.shared.u32 %r1, [%rd0];
    st.u32 [%rd5+4], %r0; ld.local.u32 %r2, [%rd4+4]; ld.u8 %r3, [%rd8];
    setp.eq.u64 %p0, %rd0, %rd2; setp.eq.and.u64 %p0, %rd1, %rd3, %p0; setp.ne.and.u64 %p0, %rd0, %rd1, %p0;
    setp.eq.and.u64 %p0, %rd4, %rd6, %p0; setp.ne.and.u64 %p0, %rd4, %rd5, %p0;
    setp.eq.and.u64 %p0, %rd7, %rd8, %p0; setp.eq.and.u64 %p0, %rd7, %rd9, %p0; setp.eq.and.u64 %p0, %rd7, %rd10, %p0;
    selp.u32 %r4, 1, 0, %p0;
    """
    for i, register in enumerate(("r1", "r2", "r3", "r4")):
        text += f"st.global.u32 [%at+{4 * i}], %{register};\n"
    expected = [5, 5, 1, 1]
    for space, register in (("shared", "rd1"), ("local", "rd5"), ("global", "rd8")):
        for asked in ("shared", "shared::cta", "local", "global"):
            text += f"isspacep.{asked} %p1, %{register}; selp.u32 %r5, 1, 0, %p1; "
            text += f"st.global.u32 [%at+{4 * len(expected)}], %r5;\n"
            expected.append(int(asked.split(":")[0] == space))
    np.testing.assert_array_equal(run_text(text, np.uint32, block=1)[0], expected)


@pytest.mark.parametrize(
    "line",
    [
        "mov.v2.f32 %f0, %f1",
        "mov.f16 %rs0, %rs1",
        "mov.b8 %rs0, %rs1",
        "mov.sat.b32 %r0, %r1",
        "cvta.u64 %rd0, %rd1",
        "cvta.shared.u32 %r0, %r1",
        "cvta.to.texture.u64 %rd0, %rd1",
        "cvta.to.global.shared.u64 %rd0, %rd1",
        "isspacep.u64 %p0, %rd0",
        "isspacep.const %p0, %rd0",
        "isspacep.shared.u64 %p0, %rd0",
        "selp.pred %p0, %p1, %p2, %p3",
        "slct.u32.u32 %r0, %r1, %r2, %r3",
        "slct.ftz.u32.s32 %r0, %r1, %r2, %r3",
        "slct.u32 %r0, %r1, %r2, %r3",
    ],
)
def test_unknown_opcode(line: str) -> None:
    with pytest.raises(ValueError, match=f"line {LINE}: unknown opcode '{re.escape(line.split()[0])}'"):
        module_of(f"{line};")


@pytest.mark.parametrize(
    "line",
    [
        "mov.b32 %r0, %rd0",
        "mov.b64 %rd0, {%r0, %rd1}",
        "mov.b32 %r0, {%rs0, %rs1, %rs2}",
        "mov.pred %p0, !%p1",
        "mov.u64 %rd0, %clock",
        "mov.u32 %r0, %envreg3",
        "selp.b32 %r0, %r1, %r2, !%p0",
        "cvta.shared.u64 %rd0",
    ],
)
def test_operands_must_fit(line: str) -> None:
    with pytest.raises(ValueError, match=f"line {LINE}: {re.escape(line.split()[0])}: "):
        module_of(f"{line};")
