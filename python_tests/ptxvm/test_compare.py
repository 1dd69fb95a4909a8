"""setp and set against Python's comparisons."""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Callable

import numpy as np
import pytest

from .opcode_kernel import DTYPES, LINE, module_of, operands, run_lines

ORDERED = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
COMBINATIONS = {"and": operator.and_, "or": operator.or_, "xor": operator.xor}
TRUTH = {"u16": 0xFFFF, "s16": 0xFFFF, "u32": 0xFFFFFFFF, "s32": 0xFFFFFFFF}
TRUTH |= {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80, "f16x2": 0x3C003C00, "bf16x2": 0x3F803F80}
FLOATS = ("f16", "bf16", "f32", "f64")

Compare = Callable[[np.ndarray, np.ndarray], np.ndarray]


def float_comparison(name: str) -> Compare:
    """NaN makes the plain ones false, those that end in u true."""

    def compare(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        unordered = np.isnan(a) | np.isnan(b)
        if name in ("num", "nan"):
            return unordered if name == "nan" else ~unordered
        plain = ORDERED[name[:2]](a, b)
        return plain | unordered if name.endswith("u") else plain & ~unordered

    return compare


def comparisons(type_name: str) -> dict[str, Compare]:
    if type_name.startswith(("f", "bf")):
        return {name: float_comparison(name) for name in [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"]}
    if type_name.startswith("b"):
        return {name: ORDERED[name] for name in ("eq", "ne")}
    return ORDERED | UNSIGNED if type_name.startswith("u") else ORDERED


def numbers(array: np.ndarray, type_name: str) -> np.ndarray:
    """The values that bits of this type stand for."""
    return (array.astype(np.uint32) << 16).view(np.float32) if type_name == "bf16" else array


def flushed(array: np.ndarray) -> np.ndarray:
    return np.where(np.abs(array) < np.finfo(array.dtype).tiny, array.dtype.type(0), array)


def split(array: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lower and upper halves of packed values, as bits."""
    return array.astype(np.uint16), (array >> 16).astype(np.uint16)


SCALARS = ("b16", "b32", "b64", "u16", "s16", "u32", "s32", "u64", "s64", *FLOATS)
CASES = [(name, "") for name in SCALARS] + [("f16", ".ftz"), ("f32", ".ftz")]


def close_operands(type_name: str) -> list[np.ndarray]:
    """Two arrays, equal or neighbours in a third of the places each, and two predicates."""
    a, b, p = operands(type_name, type_name, "pred")
    raw = a.view(f"u{a.dtype.itemsize}")
    third = np.arange(len(a)) % 3
    near = np.where(third == 0, raw, raw + raw.dtype.type(1)).view(a.dtype)
    return [a, np.where(third == 2, b, near), p]


@pytest.mark.parametrize(("type_name", "flush"), CASES)
def test_setp(type_name: str, flush: str) -> None:
    """Each comparison alone, with a second destination, and combined with a predicate."""
    a, b, c = close_operands(type_name)
    x, y = (numbers(v, type_name) for v in (a, b))
    if flush:
        x, y = flushed(x), flushed(y)
    for name, compare in comparisons(type_name).items():
        t = compare(x, y)
        lines, expected = f"setp.{name}{flush}.{type_name} %d0, %a0, %a1;", [t]
        lines += f"setp.{name}{flush}.{type_name} %d1|%d2, %a0, %a1;"
        expected += [t, ~t]
        for (combination, combine), negation in itertools.product(COMBINATIONS.items(), ("", "!")):
            destinations = "|".join(f"%d{len(expected) + i}" for i in (0, 1))
            lines += f"setp.{name}.{combination}{flush}.{type_name} {destinations}, %a0, %a1, {negation}%a2;"
            predicate = ~c if negation else c
            expected += [combine(t, predicate), combine(~t, predicate)]
        got = run_lines(lines, [np.bool_] * len(expected), a, b, c)
        for i, (found, wanted) in enumerate(zip(got, expected, strict=True)):
            np.testing.assert_array_equal(found, wanted, err_msg=f"{name}{flush}.{type_name}, result {i}")


@pytest.mark.parametrize(("type_name", "flush"), [("f16x2", ""), ("f16x2", ".ftz"), ("bf16x2", "")])
def test_packed(type_name: str, flush: str) -> None:
    """The two destinations of setp are the lower and the upper half; set writes the halves of its result."""
    a, b, c = close_operands(type_name)
    half = type_name[:-2]
    pairs = []
    for x, y in zip(split(a), split(b), strict=True):
        pair = [numbers(v.view(DTYPES[half]), half) for v in (x, y)]
        pairs.append([flushed(v) for v in pair] if flush else pair)
    for name, compare in comparisons(half).items():
        low, high = (compare(*pair) for pair in pairs)
        lines = f"setp.{name}{flush}.{type_name} %d0|%d1, %a0, %a1;"
        lines += f"setp.{name}.xor{flush}.{type_name} %d2|%d3, %a0, %a1, !%a2;"
        lines += f"set.{name}{flush}.{type_name}.{type_name} %d4, %a0, %a1;"
        lines += f"set.{name}.and{flush}.u32.{type_name} %d5, %a0, %a1, %a2;"
        got = run_lines(lines, [np.bool_] * 4 + [np.uint32] * 2, a, b, c)
        words = [np.where(p, 0xFFFF, 0) | np.where(q, 0xFFFF0000, 0) for p, q in ((low, high), (low & c, high & c))]
        expected = [low, high, low ^ ~c, high ^ ~c, words[0] & TRUTH[type_name], words[1]]
        for i, (found, wanted) in enumerate(zip(got, expected, strict=True)):
            np.testing.assert_array_equal(found, wanted, err_msg=f"{name}{flush}.{type_name}, result {i}")


@pytest.mark.parametrize(("type_name", "flush"), CASES)
def test_set(type_name: str, flush: str) -> None:
    a, b, c = close_operands(type_name)
    x, y = (numbers(v, type_name) for v in (a, b))
    if flush:
        x, y = flushed(x), flushed(y)
    is_half = type_name in ("f16", "bf16")
    destinations = [d for d in TRUTH if "x2" not in d and d not in (("f32",) if is_half else ("u16", "s16"))]
    for name, compare in comparisons(type_name).items():
        t = compare(x, y)
        lines, expected = "", []
        for destination in destinations:
            lines += f"set.{name}{flush}.{destination}.{type_name} %d{len(expected)}, %a0, %a1;"
            lines += f"set.{name}.and{flush}.{destination}.{type_name} %d{len(expected) + 1}, %a0, %a1, !%a2;"
            expected += [np.where(t, TRUTH[destination], 0), np.where(t & ~c, TRUTH[destination], 0)]
        dtypes = [f"u{np.dtype(DTYPES[d]).itemsize}" for d in destinations for _ in (0, 1)]
        for found, wanted in zip(run_lines(lines, dtypes, a, b, c), expected, strict=True):
            np.testing.assert_array_equal(found, wanted, err_msg=f"{name}{flush}.{type_name}")


def test_destinations_that_are_operands() -> None:
    """Both results come from what the registers held before."""
    a, b, p = close_operands("s32")
    lines = "mov.pred %d0, %a2; setp.lt.and.s32 %d0|%d1, %a0, %a1, %d0; mov.b32 %d2, %a0; set.lt.and.u32.s32 %d2, %d2, %a1, %a2;"
    first, second, word = run_lines(lines, [np.bool_, np.bool_, np.uint32], a, b, p)
    np.testing.assert_array_equal(first, (a < b) & p)
    np.testing.assert_array_equal(second, (a >= b) & p)
    np.testing.assert_array_equal(word, np.where((a < b) & p, 0xFFFFFFFF, 0))


def test_sinks_and_immediates() -> None:
    (a,) = operands("s32")
    lines = "setp.gt.s32 _|%d0, %a0, -7; setp.gt.s32 %d1|_, -7, %a0;"
    at_most, less = run_lines(lines, [np.bool_, np.bool_], a)
    np.testing.assert_array_equal(at_most, a <= -7)
    np.testing.assert_array_equal(less, a < -7)


@pytest.mark.parametrize(
    "line",
    [
        "setp.s32 %p0, %r0, %r1",
        "setp.lt.b32 %p0, %r0, %r1",
        "setp.lo.s32 %p0, %r0, %r1",
        "setp.lo.f32 %p0, %f0, %f1",
        "setp.num.s32 %p0, %r0, %r1",
        "setp.ltu.u32 %p0, %r0, %r1",
        "setp.lt.ftz.s32 %p0, %r0, %r1",
        "setp.lt.ftz.f64 %p0, %fd0, %fd1",
        "setp.lt.ftz.bf16 %p0, %rs0, %rs1",
        "setp.lt.and.or.s32 %p0, %r0, %r1, %p1",
        "setp.lt.nor.s32 %p0, %r0, %r1, %p1",
        "setp.lt.u32.s32 %p0, %r0, %r1",
        "setp.eq.pred %p0, %p1, %p2",
        "set.lt.s32 %r2, %r0, %r1",
        "set.lt.u64.s32 %rd2, %r0, %r1",
        "set.lt.u16.s32 %rs2, %r0, %r1",
        "set.lt.f32.f16 %f2, %rs0, %rs1",
        "set.lt.bf16x2.f16x2 %r2, %r0, %r1",
    ],
)
def test_unknown_opcode(line: str) -> None:
    with pytest.raises(ValueError, match=f"line {LINE}: unknown opcode '{re.escape(line.split()[0])}'"):
        module_of(f"{line};")


@pytest.mark.parametrize(
    "line",
    [
        "setp.lt.s32 %r0, %r1, %r2",
        "setp.lt.s32 %p0, %r1, %rd2",
        "setp.lt.s32 %p0, %r1, %r2, %p1",
        "setp.lt.and.s32 %p0, %r1, %r2",
        "setp.lt.f16x2 %p0, %r1, %r2",
        "set.lt.u32.s32 %p0, %r1, %r2",
    ],
)
def test_operands_must_fit(line: str) -> None:
    with pytest.raises(ValueError, match=f"line {LINE}: {re.escape(line.split()[0])}: "):
        module_of(f"{line};")
