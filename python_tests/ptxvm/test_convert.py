"""Conversions against Python's integers and exact roundings, bit for bit."""

from __future__ import annotations

import itertools
import math
import re

import numpy as np
import pytest

from .exact import (
    FORMATS,
    ROUNDINGS,
    bits_of,
    check_bits,
    convert,
    doubles,
    encoded,
    float_operands,
    flushed,
    saturated,
)
from .opcode_kernel import DTYPES, LINE, module_of, run, run_lines, values

INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
FLOATS = ("f16", "bf16", "f32", "f64")


def size(name: str) -> int:
    return int(name.lstrip("usbf"))


def bounds(name: str) -> tuple[int, int]:
    bits = size(name)
    return (-(1 << bits - 1), (1 << bits - 1) - 1) if name[0] == "s" else (0, (1 << bits) - 1)


def low(number: int, name: str) -> int:
    """The number whose bits are the lowest ones of ``number``."""
    least, _ = bounds(name)
    return (number - least) % (1 << size(name)) + least


def clamped(number: int, name: str) -> int:
    least, most = bounds(name)
    return min(max(number, least), most)


def array(numbers: list[int], bits: int) -> np.ndarray:
    return np.array([number & (1 << bits) - 1 for number in numbers], f"u{bits // 8}")


def word(name: str) -> np.dtype:
    """What holds the bits of values of a PTX type."""
    return np.dtype(f"u{np.dtype(DTYPES[name]).itemsize}")


def float_values(name: str, seed: int) -> np.ndarray:
    """Bits, some of them of values near integers and near the ends of the integer types."""
    ends = [
        sign * (2.0**e + step)
        for e in (7, 8, 15, 16, 31, 32, 63, 64)
        for sign in (1, -1)
        for step in (-1, -0.5, 0, 0.5)
    ]
    chosen = ends + [i / 4 for i in range(-300, 300)]
    chosen += [math.nextafter(x, towards) for x in chosen for towards in (math.inf, -math.inf)]
    bits = [convert(x, FORMATS[name], rounding) for x in chosen for rounding in ("rm", "rp")]
    return np.unique(np.concatenate([np.array(bits, word(name)), *float_operands(name, 1, seed, 512)]))


@pytest.mark.parametrize("source", INTEGERS)
def test_integers(source: str) -> None:
    """Of every size of register on either side: upper bits of a source do not count, a result fills its register."""
    for source_bits, result in itertools.product((16, 32, 64), INTEGERS):
        if source_bits < size(source):
            continue
        x = values(f"b{source_bits}", seed=source_bits, count=512)
        numbers = [low(number, source) for number in x.tolist()]
        registers = [bits for bits in (16, 32, 64) if bits >= size(result)]
        dtypes = [np.dtype(f"u{bits // 8}") for bits in registers]
        for modifier, function in {"": low, ".sat": clamped}.items():
            lines = " ".join(f"cvt{modifier}.{result}.{source} %d{i}, %a0;" for i in range(len(registers)))
            for bits, got in zip(registers, run_lines(lines, dtypes, x), strict=True):
                want = array([function(number, result) for number in numbers], bits)
                np.testing.assert_array_equal(
                    got, want, err_msg=f"cvt{modifier}.{result}.{source} from {source_bits} to {bits}"
                )


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("result", FLOATS)
def test_integers_to_floats(result: str, source: str) -> None:
    form = FORMATS[result]
    x = values(source, seed=1, count=1024)
    narrow = x.astype(np.int64 if source[0] == "s" else np.uint64).astype(f"u{max(2, x.dtype.itemsize)}")
    for rounding in ROUNDINGS:
        want = np.array([encoded((number, 0), form, rounding) for number in x.tolist()], word(result))
        check_bits(f"cvt.{rounding}.{result}.{source}", result, [narrow], want)
        if source == "s16":  # a register wider than the type, with other bits above it
            check_bits(f"cvt.{rounding}.{result}.{source}", result, [narrow | np.uint64(0xABCD << 16)], want)
        check_bits(f"cvt.{rounding}.sat.{result}.{source}", result, [narrow], saturated(result, want))


def to_integer(x: float, rounding: str, source: str, result: str) -> int:
    if math.isnan(x):
        return 1 << size(result) - 1 if source == "f64" or size(result) == 64 else 0
    if math.isinf(x):
        return bounds(result)[x > 0]
    return clamped({"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}[rounding](x), result)


@pytest.mark.parametrize("source", FLOATS)
@pytest.mark.parametrize("result", INTEGERS)
def test_floats_to_integers(result: str, source: str) -> None:
    x = float_values(source, seed=2)
    numbers = doubles(source, x).tolist()
    for rounding in ("rni", "rzi", "rmi", "rpi"):
        converted = [to_integer(number, rounding, source, result) for number in numbers]
        registers = [bits for bits in (16, 32, 64) if bits >= size(result)]
        opcode = f"cvt.{rounding}.{result}.{source}"
        lines = " ".join(f"{opcode} %d{i}, %a0;" for i in range(len(registers)))
        got = run_lines(lines, [np.dtype(f"u{bits // 8}") for bits in registers], x)
        for bits, found in zip(registers, got, strict=True):
            np.testing.assert_array_equal(found, array([low(n, result) for n in converted], bits), err_msg=opcode)
    if source == "f32":
        got = run(f"cvt.rpi.ftz.{result}.f32", np.uint64, x)
        want = [to_integer(n, "rpi", source, result) for n in doubles("f32", flushed("f32", x)).tolist()]
        np.testing.assert_array_equal(got, array([low(n, result) for n in want], 64))


def quiet(name: str, x: np.ndarray) -> np.ndarray:
    """Values, of which no NaN signals."""
    exact = doubles(name, x)
    return np.where(np.isnan(exact), np.nan, exact)


def widened(source: str, result: str, x: np.ndarray) -> np.ndarray:
    """Bits of the same values in a wider type."""
    exact = quiet(source, x)
    return (
        bits_of(exact)
        if result == "f64"
        else np.where(np.isnan(exact), FORMATS["f32"].nan, bits_of(exact.astype(np.float32)))
    )


@pytest.mark.parametrize(
    ("source", "result"), [("f16", "f32"), ("f16", "f64"), ("bf16", "f32"), ("bf16", "f64"), ("f32", "f64")], ids=str
)
def test_floats_to_wider_floats(source: str, result: str) -> None:
    x = float_values(source, seed=3) if source == "f32" else np.arange(65536, dtype=np.uint16)
    want = widened(source, result, x)
    check_bits(f"cvt.{result}.{source}", result, [x], want)
    check_bits(f"cvt.sat.{result}.{source}", result, [x], saturated(result, want))
    if source == "f32":
        check_bits("cvt.ftz.f64.f32", result, [x], widened(source, result, flushed("f32", x)))
    elif result == "f32":
        check_bits(f"cvt.ftz.f32.{source}", result, [x], flushed("f32", want))


NARROWER = [
    ("f64", "f32"),
    ("f64", "f16"),
    ("f64", "bf16"),
    ("f32", "f16"),
    ("f32", "bf16"),
    ("f16", "bf16"),
    ("bf16", "f16"),
]


def narrowed(source: str, result: str, rounding: str, x: np.ndarray) -> np.ndarray:
    form = FORMATS[result]
    return np.array([convert(n, form, rounding) for n in doubles(source, x).tolist()], word(result))


def without_negative(result: str, bits: np.ndarray) -> np.ndarray:
    return np.where(bits & FORMATS[result].sign, 0, bits).astype(bits.dtype)


@pytest.mark.parametrize(("source", "result"), NARROWER, ids=str)
def test_floats_to_narrower_floats(source: str, result: str) -> None:
    # Values of the narrower type and their neighbours in the wider one, among them those half-way between.
    near = narrowed(result, source, "rn", float_values(result, seed=4))
    half = 1 << max(FORMATS[source].mantissa_bits - FORMATS[result].mantissa_bits - 1, 0)
    steps = np.array([-1, 0, 1, half - 1, half, half + 1]).astype(near.dtype)
    x = np.unique(np.concatenate([float_values(source, seed=5), *(near + step for step in steps)]))
    for rounding in ROUNDINGS:
        want = narrowed(source, result, rounding, x)
        check_bits(f"cvt.{rounding}.{result}.{source}", result, [x], want)
        check_bits(f"cvt.{rounding}.sat.{result}.{source}", result, [x], saturated(result, want))
        if result != "f32":
            check_bits(f"cvt.{rounding}.relu.{result}.{source}", result, [x], without_negative(result, want))
        if source == "f32":
            check_bits(
                f"cvt.{rounding}.ftz.{result}.f32", result, [x], narrowed(source, result, rounding, flushed("f32", x))
            )
        elif result == "f32":
            check_bits(f"cvt.{rounding}.ftz.f32.{source}", result, [x], flushed("f32", want))


@pytest.mark.parametrize("name", FLOATS)
def test_floats_to_the_same_type(name: str) -> None:
    x = float_values(name, seed=6)
    canonical = np.where(np.isnan(doubles(name, x)), FORMATS[name].nan, x).astype(x.dtype)
    check_bits(f"cvt.{name}.{name}", name, [x], canonical)
    check_bits(f"cvt.sat.{name}.{name}", name, [x], saturated(name, x))
    if name == "f32":
        check_bits("cvt.ftz.f32.f32", name, [x], flushed(name, canonical))
    for rounding, function in {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}.items():
        want = np.array([convert(n, FORMATS[name], "rn") for n in function(quiet(name, x)).tolist()], x.dtype)
        check_bits(f"cvt.{rounding}.{name}.{name}", name, [x], want)
        check_bits(f"cvt.{rounding}.sat.{name}.{name}", name, [x], saturated(name, want))


@pytest.mark.parametrize("result", ("f16", "bf16"))
def test_two_floats_to_a_pair(result: str) -> None:
    high, low_half = float_operands("f32", 2, seed=7)
    for rounding in ("rn", "rz"):
        halves = [narrowed("f32", result, rounding, x).astype(np.uint32) for x in (high, low_half)]
        check_bits(f"cvt.{rounding}.{result}x2.f32", f"{result}x2", [high, low_half], halves[0] << 16 | halves[1])
        halves = [without_negative(result, half) for half in halves]
        check_bits(f"cvt.{rounding}.relu.{result}x2.f32", f"{result}x2", [high, low_half], halves[0] << 16 | halves[1])


@pytest.mark.parametrize("rounding", ("rna", "rn", "rz"))
def test_tf32(rounding: str) -> None:
    x = float_values("f32", seed=8)
    x = np.concatenate([x, x & np.uint32(0xFFFFE000) | np.uint32(0x1000)])
    form = FORMATS["tf32"]
    converted = [convert(n, form, rounding) for n in doubles("f32", x).tolist()]
    want = np.array([FORMATS["f32"].nan if bits == form.nan else bits << 13 for bits in converted], np.uint32)
    check_bits(f"cvt.{rounding}.tf32.f32", "b32", [x], want)
    check_bits(f"cvt.{rounding}.relu.tf32.f32", "b32", [x], without_negative("f32", want))


@pytest.mark.parametrize("name", ("u16", "s16", "u8", "s8"))
def test_packed_integers(name: str) -> None:
    bits = size(name)
    a, b, c = (values(kind, seed, 1024) for seed, kind in enumerate(("s32", "s32", "b32")))
    pairs = zip(a.tolist(), b.tolist(), strict=True)
    packed = [(clamped(x, name) & (1 << bits) - 1) << bits | clamped(y, name) & (1 << bits) - 1 for x, y in pairs]
    if bits == 16:
        check_bits(f"cvt.pack.sat.{name}.s32", "b32", [a, b], array(packed, 32))
    else:
        want = [z << 2 * bits | pair for z, pair in zip(c.tolist(), packed, strict=True)]
        check_bits(f"cvt.pack.sat.{name}.s32.b32", "b32", [a, b, c], array(want, 32))


UNKNOWN = (
    "cvt.rn.s32.s16 %r0, %rs1",
    "cvt.relu.u8.s32 %rs0, %r1",
    "cvt.rn.s32.f32 %r0, %f1",
    "cvt.rzi.f32.s32 %f0, %r1",
    "cvt.rn.f64.f32 %fd0, %f1",
    "cvt.rzi.f16.f32 %rs0, %f1",
    "cvt.relu.f32.f64 %f0, %fd1",
    "cvt.ftz.f64.f16 %fd0, %rs1",
    "cvt.rm.f16x2.f64 %r0, %fd1, %fd2",
    "cvt.rn.satfinite.f16x2.f32 %r0, %f1, %f2",
    "cvt.rn.e4m3x2.f32 %rs0, %f1, %f2",
    "cvt.pack.s16.s32 %r0, %r1, %r2",
    "cvt.pack.sat.s32.s32 %r0, %r1, %r2",
    "cvt.f32 %f0, %f1",
    "cvt.f32.f32.f32 %f0, %f1",
    "cvt.b32.u16 %r0, %rs1",
)


@pytest.mark.parametrize("line", UNKNOWN)
def test_unknown_modifiers_are_errors(line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"PTX line {LINE}: unknown opcode '{line.split()[0]}'")):
        module_of(f"{line};")


def test_wrong_operands_are_errors() -> None:
    for line, message in {
        "cvt.f32.s32 %f0, %r1;": "needs a rounding",
        "cvt.s32.f32 %r0, %f1;": "needs a rounding",
        "cvt.f16.f32 %rs0, %f1;": "needs a rounding",
        "cvt.u32.u64 %r0, %r1;": "register is too narrow",
        "cvt.u32.u16 %rs0, %rs1;": "register is too narrow",
        "cvt.rn.f16.f32 %r0, %f1;": "size of a register",
        "cvt.u32.u16 %r0, %rs1, %rs2;": "wrong number of operands",
    }.items():
        with pytest.raises(ValueError, match=message):
            module_of(line)
