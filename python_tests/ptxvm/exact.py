"""Floating-point operations by exact integers and one rounding: what any format and any rounding must yield, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .opcode_kernel import DTYPES, operands, run

ROUNDINGS = ("rn", "rz", "rm", "rp")


class Format(NamedTuple):
    exponent_bits: int
    mantissa_bits: int

    @property
    def bias(self) -> int:
        return (1 << self.exponent_bits - 1) - 1

    @property
    def infinity(self) -> int:
        return (1 << self.exponent_bits) - 1 << self.mantissa_bits

    @property
    def sign(self) -> int:
        return 1 << self.exponent_bits + self.mantissa_bits

    @property
    def nan(self) -> int:
        """The one that arithmetic yields, except that of f64."""
        return self.sign - 1


FORMATS = {
    "f16": Format(5, 10),
    "bf16": Format(8, 7),
    "tf32": Format(8, 10),
    "f32": Format(8, 23),
    "f64": Format(11, 52),
}
Dyadic = tuple[int, int]  # integer times a power of two, with the exponent second


def dyadic(x: float) -> Dyadic:
    mantissa, exponent = math.frexp(x)
    return int(mantissa * 2**53), exponent - 53


def encoded(value: Dyadic, form: Format, rounding: str) -> int:
    """Bits of the nearest value in the direction of ``rounding``: rn, rz, rm, rp or rna."""
    number, exponent = value
    negative, magnitude = number < 0, abs(number)
    if not magnitude:
        return 0
    top = magnitude.bit_length() + exponent - 1
    last_place = max(top, 1 - form.bias) - form.mantissa_bits
    shift = last_place - exponent
    kept, rest, half = magnitude << max(-shift, 0), 0, 1
    if shift > 0:
        kept, rest, half = magnitude >> shift, magnitude & (1 << shift) - 1, 1 << shift - 1
    outward = rounding == ("rm" if negative else "rp")
    if rounding == "rn":
        kept += rest > half or (rest == half and kept & 1)
    elif rounding == "rna":
        kept += rest >= half
    else:
        kept += outward and rest > 0
    bits = (last_place + form.mantissa_bits + form.bias - 1 << form.mantissa_bits) + kept
    if bits >= form.infinity:
        bits = form.infinity - (not (outward or rounding in ("rn", "rna")))
    return bits | form.sign * negative


def special(x: float, form: Format) -> int:
    """Bits of a zero, an infinity or a NaN."""
    if math.isnan(x):
        return form.nan
    return (form.infinity if x else 0) | form.sign * (math.copysign(1, x) < 0)


def convert(x: float, form: Format, rounding: str) -> int:
    return encoded(dyadic(x), form, rounding) if x and math.isfinite(x) else special(x, form)


def _sum(terms: list[Dyadic]) -> Dyadic:
    exponent = min(e for _, e in terms)
    return sum(m << e - exponent for m, e in terms), exponent


def _product(a: float, b: float) -> Dyadic:
    (x, x_exponent), (y, y_exponent) = dyadic(a), dyadic(b)
    return x * y, x_exponent + y_exponent


def _quotient(a: float, b: float) -> Dyadic:
    (x, x_exponent), (y, y_exponent) = dyadic(a), dyadic(b)
    # Enough places that what remains matters only for being there: it becomes an odd last place.
    whole, rest = divmod(abs(x) << 128, abs(y))
    return (whole << 1 | (rest > 0)) * (1 if (x < 0) == (y < 0) else -1), x_exponent - y_exponent - 129


def _root(a: float) -> Dyadic:
    x, exponent = dyadic(a)
    x, exponent = x << 128 + exponent % 2, exponent - exponent % 2 - 128
    whole = math.isqrt(x)
    return whole << 1 | (whole * whole < x), exponent // 2 - 1


def _zero(signs: list[bool], rounding: str) -> float:
    """The zero that a sum of these signs cancels to."""
    negative = signs[0] if len(set(signs)) == 1 else rounding == "rm"
    return -0.0 if negative else 0.0


def _is_negative(x: float) -> bool:
    return math.copysign(1, x) < 0


def add(a: float, b: float, form: Format, rounding: str) -> int:
    if not (math.isfinite(a) and math.isfinite(b)):
        return special(a + b, form)
    total = _sum([dyadic(a), dyadic(b)])
    return encoded(total, form, rounding) or special(_zero([_is_negative(a), _is_negative(b)], rounding), form)


def sub(a: float, b: float, form: Format, rounding: str) -> int:
    return add(a, -b, form, rounding)


def mul(a: float, b: float, form: Format, rounding: str) -> int:
    if not (a and b and math.isfinite(a) and math.isfinite(b)):
        return special(a * b, form)
    return encoded(_product(a, b), form, rounding)


def fma(a: float, b: float, c: float, form: Format, rounding: str) -> int:
    if not (math.isfinite(a) and math.isfinite(b)):
        return special(a * b + c, form)
    if not math.isfinite(c):
        return special(c, form)
    total = _sum([_product(a, b), dyadic(c)])
    return encoded(total, form, rounding) or special(
        _zero([_is_negative(a) != _is_negative(b), _is_negative(c)], rounding), form
    )


def div(a: float, b: float, form: Format, rounding: str) -> int:
    if not (a and b and math.isfinite(a) and math.isfinite(b)):
        with np.errstate(all="ignore"):
            return special(float(np.float64(a) / np.float64(b)), form)
    return encoded(_quotient(a, b), form, rounding)


def rcp(a: float, form: Format, rounding: str) -> int:
    return div(1.0, a, form, rounding)


def sqrt(a: float, form: Format, rounding: str) -> int:
    if a > 0 and math.isfinite(a):
        return encoded(_root(a), form, rounding)
    return special(math.nan if a < 0 else a, form)


OPERATIONS: dict[str, tuple[int, Callable[..., int]]] = {
    "add": (2, add),
    "sub": (2, sub),
    "mul": (2, mul),
    "fma": (3, fma),
    "div": (2, div),
    "rcp": (1, rcp),
    "sqrt": (1, sqrt),
}


def doubles(type_name: str, bits: np.ndarray) -> np.ndarray:
    """The values of an array of f16, bf16, f32 or f64, all of which are values of f64."""
    if type_name == "bf16":
        return doubles("f32", bits.astype(np.uint32) << 16)
    with np.errstate(invalid="ignore"):  # NaN that signal
        return bits.view(DTYPES[type_name]).astype(np.float64)


def flushed(type_name: str, bits: np.ndarray) -> np.ndarray:
    """Subnormal values become zeros of their sign."""
    form = FORMATS[type_name]
    return np.where(bits & form.infinity, bits, bits & form.sign).astype(bits.dtype)


def saturated(type_name: str, bits: np.ndarray) -> np.ndarray:
    x = doubles(type_name, bits)
    one = np.full_like(bits, convert(1.0, FORMATS[type_name], "rn"))
    return np.where(x > 0, np.where(x < 1, bits, one), 0).astype(bits.dtype)


def bits_of(array: np.ndarray) -> np.ndarray:
    return array.view(f"u{array.dtype.itemsize}")


def expected(operation: str, type_name: str, rounding: str, arrays: list[np.ndarray]) -> np.ndarray:
    """Bits of the results; ``arrays`` are bits of the operands."""
    _, function = OPERATIONS[operation]
    form = FORMATS[type_name]
    tuples = zip(*(doubles(type_name, a).tolist() for a in arrays), strict=True)
    return np.array([function(*t, form, rounding) for t in tuples], arrays[0].dtype)


def float_operands(type_name: str, num_operands: int, seed: int = 0, count: int = 1024) -> list[np.ndarray]:
    """Bits of operands: corner cases and random ones, and as many again whose exact results often lie half-way between values."""
    any_values = operands(*[type_name] * num_operands, seed=seed, count=count)
    return [np.concatenate([bits_of(a), _short(type_name, seed + i, count)]) for i, a in enumerate(any_values)]


def _short(type_name: str, seed: int, count: int) -> np.ndarray:
    """Values of few places and similar size; some of them subnormal."""
    form = FORMATS[type_name]
    random = np.random.default_rng((seed, *form))
    number = random.integers(0, 2 << form.mantissa_bits, count) >> random.integers(0, form.mantissa_bits + 1, count)
    place = random.integers(-form.mantissa_bits - 3, 3, count)
    tiny = random.random(count) < 0.1
    place[tiny] = random.integers(1 - form.bias - form.mantissa_bits, 3 - form.bias, count)[tiny]
    pairs = zip((number * random.choice([1, -1], count)).tolist(), place.tolist(), strict=True)
    return np.array([encoded(pair, form, "rz") for pair in pairs], f"u{np.dtype(DTYPES[type_name]).itemsize}")


def check_bits(opcode: str, result: str, arrays: list[np.ndarray], want: np.ndarray) -> None:
    """``opcode`` yields these bits; any NaN will do where a f64 is wanted to be one."""
    got = bits_of(run(opcode, DTYPES[result], *arrays))
    same = got == want
    if result == "f64":
        same |= np.isnan(got.view(np.float64)) & np.isnan(want.view(np.float64))
    wrong = np.flatnonzero(~same)
    if wrong.size:
        i = wrong[0]
        of = ", ".join(f"{int(bits_of(a)[i]):#x}" for a in arrays)
        found = f"{int(got[i]):#x}, not {int(want[i]):#x}"
        raise AssertionError(f"{opcode} of {of} is {found}; {wrong.size} of {len(want)} differ")


def check_near(opcode: str, x: np.ndarray, want: Any, ulps: float) -> None:
    """``opcode`` of f32 differs by so many units in the last place of f32 at most; zeros, infinities and NaN are exact."""
    got = run(opcode, np.float32, x)
    rounded = np.asarray(want, np.float64).astype(np.float32)
    exact = ~np.isfinite(rounded) | (rounded == 0)
    np.testing.assert_array_equal(got[exact], rounded[exact], err_msg=opcode)
    assert (bits_of(got)[np.isnan(got)] == FORMATS["f32"].nan).all(), f"{opcode}: a NaN that is not canonical"
    error = np.abs(got[~exact].astype(np.float64) - want[~exact]) / np.spacing(np.abs(rounded[~exact]))
    worst = int(np.argmax(error))
    assert error[worst] <= ulps, f"{opcode} of {x[~exact][worst]!r}: {error[worst]:.2f} ulp"
