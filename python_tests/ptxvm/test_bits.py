"""Operations on bits against Python's integers, bit for bit."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable

import numpy as np
import pytest

from .opcode_kernel import LINE, check, module_of, operands, run_lines

Case = tuple[
    str, str, tuple[str, ...], Callable[..., int]
]  # opcode, type of the result, types of the operands, meaning


def low_bits(count: int) -> int:
    return (1 << count) - 1


def reverse(a: int, bits: int) -> int:
    return int(f"{a:0{bits}b}"[::-1], 2)


def highest(a: int, bits: int, distance: bool) -> int:
    """bfind: a is of the type of the instruction."""
    found = (~a if a < 0 else a).bit_length() - 1
    return -1 if found < 0 else bits - 1 - found if distance else found


def extract(a: int, b: int, c: int, bits: int, is_signed: bool) -> int:
    """bfe, bit by bit as its definition has it."""
    begin, count = b & 0xFF, c & 0xFF
    sign = a >> min(begin + count - 1, bits - 1) & 1 if is_signed and count else 0
    return sum((a >> (begin + i) & 1 if i < count and begin + i < bits else sign) << i for i in range(bits))


def insert(a: int, b: int, c: int, d: int, bits: int) -> int:
    begin, count = c & 0xFF, d & 0xFF
    for i in range(min(count, max(bits - begin, 0))):
        b = b & ~(1 << (begin + i)) | (a >> i & 1) << (begin + i)
    return b


def field_mask(begin: int, count: int, clamp: bool) -> int:
    if clamp:
        return low_bits(min(count, 32)) << begin if begin < 32 else 0
    return low_bits(count % 32) << begin % 32


def extend(a: int, count: int, clamp: bool, is_signed: bool) -> int:
    if clamp and count >= 32:
        return a
    count %= 32
    field = a & low_bits(count)
    return field - (1 << count) if is_signed and count and field >> (count - 1) else field


def find_nth(bits: int, base: int, n: int) -> int:
    if n == 0:
        return base if bits >> base & 1 else -1
    places = range(base, 32) if n > 0 else range(base, -1, -1)
    found = [place for place in places if bits >> place & 1]
    return found[abs(n) - 1] if abs(n) <= len(found) else -1


def permute(a: int, b: int, c: int) -> int:
    source, result = (b << 32 | a).to_bytes(8, "little"), 0
    for i in range(4):
        control = c >> 4 * i & 15
        byte = source[control & 7]
        result |= (byte if control < 8 else 0xFF * (byte >> 7)) << 8 * i
    return result


# The bytes that the modes of prmt choose, highest first, for the four values of the control word.
MODES = {
    "f4e": ["3210", "4321", "5432", "6543"],
    "b4e": ["5670", "6701", "7012", "0123"],
    "rc8": ["0000", "1111", "2222", "3333"],
    "ecl": ["3210", "3211", "3222", "3333"],
    "ecr": ["0000", "1110", "2210", "3210"],
    "rc16": ["1010", "3232", "1010", "3232"],
}


def lop3(a: int, b: int, c: int, table: int, bits: int = 32) -> int:
    result = 0
    for i in range(8):
        if table >> i & 1:
            result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (c if i & 1 else ~c)
    return result & low_bits(bits)


CASES: list[Case] = []
for t in ("b16", "b32", "b64"):
    n = int(t[1:])
    CASES += [
        (f"and.{t}", t, (t, t), operator.and_),
        (f"or.{t}", t, (t, t), operator.or_),
        (f"xor.{t}", t, (t, t), operator.xor),
        (f"not.{t}", t, (t,), operator.invert),
        (f"cnot.{t}", t, (t,), lambda a: int(a == 0)),
        (f"shl.{t}", t, (t, "u32"), lambda a, b: a << min(b, 64)),
    ]
    for kind in "bus":
        typed = f"{kind}{n}"
        CASES.append((f"shr.{typed}", typed, (typed, "u32"), lambda a, b: a >> min(b, 64)))
for t in ("b32", "b64"):
    n = int(t[1:])
    CASES += [
        (f"popc.{t}", "u32", (t,), lambda a: a.bit_count()),
        (f"clz.{t}", "u32", (t,), lambda a, n=n: n - a.bit_length()),
        (f"brev.{t}", t, (t,), lambda a, n=n: reverse(a, n)),
        (f"bfi.{t}", t, (t, t, "u32", "u32"), lambda a, b, c, d, n=n: insert(a, b, c, d, n)),
    ]
    for kind in "us":
        typed = f"{kind}{n}"
        CASES += [
            (f"bfind.{typed}", "u32", (typed,), lambda a, n=n: highest(a, n, False)),
            (f"bfind.shiftamt.{typed}", "u32", (typed,), lambda a, n=n: highest(a, n, True)),
            (f"bfe.{typed}", typed, (typed, "u32", "u32"), lambda a, b, c, n=n, s=kind == "s": extract(a, b, c, n, s)),
        ]
for mode in ("clamp", "wrap"):
    clamp = mode == "clamp"
    CASES += [
        (
            f"shf.l.{mode}.b32",
            "b32",
            ("b32", "b32", "u32"),
            lambda a, b, c, clamp=clamp: (b << 32 | a) << (min(c, 32) if clamp else c % 32) >> 32,
        ),
        (
            f"shf.r.{mode}.b32",
            "b32",
            ("b32", "b32", "u32"),
            lambda a, b, c, clamp=clamp: (b << 32 | a) >> (min(c, 32) if clamp else c % 32),
        ),
        (f"bmsk.{mode}.b32", "b32", ("u32", "u32"), lambda a, b, clamp=clamp: field_mask(a, b, clamp)),
        (f"szext.{mode}.u32", "u32", ("u32", "u32"), lambda a, b, clamp=clamp: extend(a, b, clamp, False)),
        (f"szext.{mode}.s32", "s32", ("s32", "u32"), lambda a, b, clamp=clamp: extend(a, b, clamp, True)),
    ]
CASES.append(("prmt.b32", "b32", ("b32", "b32", "b32"), permute))
for mode, choices in MODES.items():
    controls = [int(choice, 16) for choice in choices]
    CASES.append(
        (f"prmt.b32.{mode}", "b32", ("b32", "b32", "b32"), lambda a, b, c, k=controls: permute(a, b, k[c & 3]))
    )


@pytest.mark.parametrize(("opcode", "result", "types", "meaning"), CASES, ids=[case[0] for case in CASES])
def test_bits(opcode: str, result: str, types: tuple[str, ...], meaning: Callable[..., int]) -> None:
    check(opcode, result, types, meaning)


@pytest.mark.parametrize(
    ("opcode", "meaning"),
    [
        ("and", operator.and_),
        ("or", operator.or_),
        ("xor", operator.xor),
        ("not", operator.not_),
        ("mov", operator.pos),
    ],
)
def test_predicates(opcode: str, meaning: Callable[..., int]) -> None:
    check(f"{opcode}.pred", "pred", ("pred",) * (1 if opcode in ("not", "mov") else 2), lambda *p: int(meaning(*p)))


def test_fns() -> None:
    mask, base, n = operands("b32", "u32", "s32")
    base = base % 32
    n = np.where(np.arange(len(n)) % 2 == 0, n % 20 - 10, n).astype(np.int32)
    (got,) = run_lines("fns.b32 %d0, %a0, %a1, %a2;", [np.int32], mask, base, n)
    np.testing.assert_array_equal(got, [find_nth(*map(int, t)) for t in zip(mask, base, n, strict=True)])


def test_lop3() -> None:
    """All 256 functions of three bits."""
    arrays = operands("b32", "b32", "b32", count=512)
    for first in range(0, 256, 32):
        tables = range(first, first + 32)
        lines = " ".join(f"lop3.b32 %d{i}, %a0, %a1, %a2, {table};" for i, table in enumerate(tables))
        results = run_lines(lines, [np.uint32] * 32, *arrays)
        for table, got in zip(tables, results, strict=True):
            a, b, c = (x.astype(np.int64) for x in arrays)
            np.testing.assert_array_equal(got, lop3(a, b, c, table), err_msg=f"table {table:#x}")


@pytest.mark.parametrize("name", ["and", "or"])
def test_lop3_with_predicate(name: str) -> None:
    a, b, c, q = operands("b32", "b32", "b32", "pred")
    for table in (0x00, 0x01, 0x80, 0xC0, 0x96, 0xFF):
        lines = (
            f"lop3.{name}.b32 %d0|%d1, %a0, %a1, %a2, {table}, %a3; lop3.{name}.b32 _|%d2, %a0, %a1, %a2, {table}, %a3;"
        )
        word, predicate, alone = run_lines(lines, [np.uint32, np.bool_, np.bool_], a, b, c, q)
        want = lop3(a.astype(np.int64), b.astype(np.int64), c.astype(np.int64), table)
        np.testing.assert_array_equal(word, want)
        np.testing.assert_array_equal(predicate, (want != 0) & q if name == "and" else (want != 0) | q)
        np.testing.assert_array_equal(predicate, alone)


@pytest.mark.parametrize(
    "line",
    [
        "and.u32 %r0, %r1, %r2",
        "shl.u32 %r0, %r1, %r2",
        "shf.l.b32 %r0, %r1, %r2, %r3",
        "shf.l.r.wrap.b32 %r0, %r1, %r2, %r3",
        "bfe.b32 %r0, %r1, %r2, %r3",
        "popc.u32 %r0, %r1",
        "bmsk.b32 %r0, %r1, %r2",
        "prmt.b32.f4e.rc8 %r0, %r1, %r2, %r3",
        "lop3.b32.b32 %r0, %r1, %r2, %r3, 1, %p1",
        "prmt.b32.abc %r0, %r1, %r2, %r3",
        "lop3.xor.b32 %r0|%p0, %r1, %r2, %r3, 1, %p1",
        "cnot.pred %p0, %p1",
    ],
)
def test_unknown_opcode(line: str) -> None:
    with pytest.raises(ValueError, match=f"line {LINE}: unknown opcode '{re.escape(line.split()[0])}'"):
        module_of(f"{line};")


@pytest.mark.parametrize("table", ["%r4", "256", "-1"])
def test_table_of_lop3_is_a_byte(table: str) -> None:
    with pytest.raises(ValueError, match=f"line {LINE}: lop3.b32: the table"):
        module_of(f"lop3.b32 %r0, %r1, %r2, %r3, {table};")


@pytest.mark.parametrize("count", [0, 1, 31, 32, 33, 64, 255, 256, 0xFFFFFFFF])
def test_shift_by_immediate(count: int) -> None:
    value, clamped = operands("s32")[0], min(count, 64)
    lines = f"shl.b32 %d0, %a0, {count}; shr.s32 %d1, %a0, {count}; shr.u32 %d2, %a0, {count};"
    left, right, logical = run_lines(lines, [np.uint32, np.int32, np.uint32], value)
    np.testing.assert_array_equal(left, [x << clamped & 0xFFFFFFFF for x in value.tolist()])
    np.testing.assert_array_equal(right, [x >> clamped for x in value.tolist()])
    np.testing.assert_array_equal(logical, [(x & 0xFFFFFFFF) >> clamped for x in value.tolist()])
