"""Integer arithmetic against Python's integers, bit for bit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

from lumos_engine.testing.emulation import Module

from .opcode_kernel import DTYPES, LINE, check, module_of, operands, run_lines

ALL = ("u16", "s16", "u32", "s32", "u64", "s64")
WIDER = {"u16": "u32", "s16": "s32", "u32": "u64", "s32": "s64"}

Case = tuple[
    str, str, tuple[str, ...], Callable[..., int]
]  # opcode, type of the result, types of the operands, meaning


def bits_of(name: str) -> int:
    return int(name[1:])


def signed(x: int, bits: int) -> int:
    x &= (1 << bits) - 1
    return x - (1 << bits) if x >> (bits - 1) else x


def saturated(x: int) -> int:
    return min(max(x, -(2**31)), 2**31 - 1)


def quotient(a: int, b: int) -> int:
    return -1 if b == 0 else abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


def remainder(a: int, b: int) -> int:
    return a if b == 0 else a - b * quotient(a, b)


def low24(x: int, name: str) -> int:
    return signed(x, 24) if name[0] == "s" else x & 0xFFFFFF


def halves(name: str, function: Callable[[int, int], int]) -> Callable[[int, int], int]:
    """A function of packed halves out of one of integers: ``name`` is u16 or s16."""

    def packed(a: int, b: int) -> int:
        parts = [[signed(x >> s, 16) if name == "s16" else x >> s & 0xFFFF for x in (a, b)] for s in (0, 16)]
        low, high = (function(*part) & 0xFFFF for part in parts)
        return low | high << 16

    return packed


def parts(x: int, bits: int, name: str) -> list[int]:
    found = [x >> shift & ((1 << bits) - 1) for shift in range(0, 32, bits)]
    return [signed(part, bits) for part in found] if name[0] == "s" else found


def dot_product(bits_of_a: int, type_of_a: str, type_of_b: str, first: int) -> Callable[[int, int, int], int]:
    """c and the products of the parts of a with the bytes of b from the first one on."""

    def sum_of_products(a: int, b: int, c: int) -> int:
        return c + sum(
            x * y for x, y in zip(parts(a, bits_of_a, type_of_a), parts(b, 8, type_of_b)[first:], strict=False)
        )

    return sum_of_products


def same(opcode: str, name: str, num_operands: int, function: Callable[..., int]) -> Case:
    return f"{opcode}.{name}", name, (name,) * num_operands, function


CASES: list[Case] = []
for t in ALL:
    n = bits_of(t)
    CASES += [
        same("add", t, 2, lambda a, b: a + b),
        same("sub", t, 2, lambda a, b: a - b),
        same("mul.lo", t, 2, lambda a, b: a * b),
        same("mul.hi", t, 2, lambda a, b, n=n: a * b >> n),
        same("mad.lo", t, 3, lambda a, b, c: a * b + c),
        same("mad.hi", t, 3, lambda a, b, c, n=n: (a * b >> n) + c),
        same("sad", t, 3, lambda a, b, c: c + abs(a - b)),
        same("div", t, 2, quotient),
        same("rem", t, 2, remainder),
        same("min", t, 2, min),
        same("max", t, 2, max),
    ]
for t in ("s16", "s32", "s64"):
    CASES += [same("abs", t, 1, abs), same("neg", t, 1, lambda a: -a)]
for t, wide in WIDER.items():
    CASES += [
        (f"mul.wide.{t}", wide, (t, t), lambda a, b: a * b),
        (f"mad.wide.{t}", wide, (t, t, wide), lambda a, b, c: a * b + c),
    ]
for t in ("u32", "s32"):
    CASES += [
        same("mul24.lo", t, 2, lambda a, b, t=t: low24(a, t) * low24(b, t)),
        same("mul24.hi", t, 2, lambda a, b, t=t: low24(a, t) * low24(b, t) >> 16),
        same("mad24.lo", t, 3, lambda a, b, c, t=t: low24(a, t) * low24(b, t) + c),
        same("mad24.hi", t, 3, lambda a, b, c, t=t: (low24(a, t) * low24(b, t) >> 16) + c),
    ]
CASES += [
    same("add.sat", "s32", 2, lambda a, b: saturated(a + b)),
    same("sub.sat", "s32", 2, lambda a, b: saturated(a - b)),
    same("mad.hi.sat", "s32", 3, lambda a, b, c: saturated((a * b >> 32) + c)),
    same("mad24.hi.sat", "s32", 3, lambda a, b, c: saturated((low24(a, "s32") * low24(b, "s32") >> 16) + c)),
    same("min.relu", "s32", 2, lambda a, b: max(0, min(a, b))),
    same("max.relu", "s32", 2, lambda a, b: max(0, a, b)),
    same("min.relu", "s16x2", 2, halves("s16", lambda a, b: max(0, min(a, b)))),
    same("max.relu", "s16x2", 2, halves("s16", lambda a, b: max(0, a, b))),
]
for t in ("u16", "s16"):
    CASES += [
        same("add", f"{t}x2", 2, halves(t, lambda a, b: a + b)),
        same("min", f"{t}x2", 2, halves(t, min)),
        same("max", f"{t}x2", 2, halves(t, max)),
    ]
for ta, tb in itertools.product(("u32", "s32"), repeat=2):
    CASES.append((f"dp4a.{ta}.{tb}", "s32", ("b32", "b32", "s32"), dot_product(8, ta, tb, 0)))
    for mode, first in (("lo", 0), ("hi", 2)):
        CASES.append((f"dp2a.{mode}.{ta}.{tb}", "s32", ("b32", "b32", "s32"), dot_product(16, ta, tb, first)))


@pytest.mark.parametrize(("opcode", "result", "types", "meaning"), CASES, ids=[case[0] for case in CASES])
def test_arithmetic(opcode: str, result: str, types: tuple[str, ...], meaning: Callable[..., int]) -> None:
    check(opcode, result, types, meaning)


@pytest.mark.parametrize("name", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("opcode", ["addc", "subc", "madc.lo", "madc.hi"])
@pytest.mark.parametrize("first", ["add", "sub", "mad.lo", "mad.hi"])
def test_carry(first: str, opcode: str, name: str) -> None:
    """The condition code goes from one instruction to the next and on to a third."""
    bits = bits_of(name)

    def step(opcode: str, a: int, b: int, c: int, carry: int) -> tuple[int, int]:
        mask = (1 << bits) - 1
        if opcode.startswith("mad"):
            product = a * b >> bits if opcode.endswith("hi") else a * b
            a, b = product, c
        total = (a & mask) + (b & mask) + carry if opcode[:3] != "sub" else (a & mask) - (b & mask) - carry
        return total & mask, total >> bits & 1

    arrays = operands(*[name] * 6)
    third = ", %a2" if first.startswith("mad") else ""
    last = ", %a5" if opcode.startswith("mad") else ""
    lines = (
        f"{first}.cc.{name} %d0, %a0, %a1{third}; {opcode}.cc.{name} %d1, %a3, %a4{last}; addc.{name} %d2, %a2, %a5;"
    )
    got = run_lines(lines, [DTYPES[name]] * 3, *arrays)
    for i, (a, b, c, d, e, f) in enumerate(zip(*(x.tolist() for x in arrays), strict=True)):
        low, carry = step(first, a, b, c, 0)
        middle, carry = step(opcode, d, e, f, carry)
        high, _ = step("addc", c, f, 0, carry)
        assert [int(x[i]) & ((1 << bits) - 1) for x in got] == [low, middle, high], (a, b, c, d, e, f)


def test_carry_belongs_to_its_lane() -> None:
    """Lanes that leave an ``add.cc`` out keep the condition code that they had."""
    module = Module(
        """.version 9.0
        .target sm_80
        .address_size 64
        .visible .entry carries(.param .u64 out) {
            .reg .b32 %r<3>; .reg .b64 %rd<2>; .reg .pred %p;
            mov.u32 %r0, %tid.x;
            and.b32 %r1, %r0, 1;
            setp.eq.u32 %p, %r1, 0;
            add.cc.u32 %r1, -1, 1;
            @%p add.cc.u32 %r1, %r0, 0;
            addc.u32 %r2, 0, 0;
            ld.param.u64 %rd0, [out];
            mad.wide.u32 %rd1, %r0, 4, %rd0;
            st.global.u32 [%rd1], %r2;
            ret;
        }"""
    )
    out = torch.full((32,), -1, dtype=torch.int32)
    module.launch("carries", 1, 32, out)
    np.testing.assert_array_equal(out.numpy(), np.arange(32) % 2)


@pytest.mark.parametrize(
    "opcode",
    [
        "add.u8",
        "add.pred",
        "add.b32",
        "add.sat.u32",
        "add.sat.cc.s32",
        "add.rn.u32",
        "add.cc.u16",
        "add.u32.s32",
        "sub.u16x2",
        "sub.sat.cc.s32",
        "addc.sat.u32",
        "mul.u32",
        "mul.lo.hi.u32",
        "mul.wide.u64",
        "mul.sat.s32",
        "mul24.lo.u64",
        "div.rn.s32",
        "rem.f32",
        "min.relu.u32",
        "min.relu.u16x2",
        "max.s32x2",
        "max.u16x2.s16x2",
    ],
)
def test_unknown_opcode(opcode: str) -> None:
    with pytest.raises(ValueError, match=f"line {LINE}: unknown opcode '{re.escape(opcode)}'"):
        module_of(f"{opcode} %r0, %r1, %r2;")


@pytest.mark.parametrize("line", ["add.u32 %r0, %r1;", "add.u32 %r0, %r1, %rd1;", "mul.wide.u32 %r0, %r1, %r2;"])
def test_operands_must_fit(line: str) -> None:
    with pytest.raises(ValueError, match=rf"line {LINE}: .*(number of operands|size of a register)"):
        module_of(line)
