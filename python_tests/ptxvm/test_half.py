"""Arithmetic of f16 and bf16, alone and packed, against exact integers, bit for bit."""

from __future__ import annotations

import re

import numpy as np
import pytest

from .exact import (
    FORMATS,
    OPERATIONS,
    bits_of,
    check_bits,
    doubles,
    expected,
    float_operands,
    flushed,
    saturated,
)
from .opcode_kernel import LINE, module_of, run
from .test_float import extremum

TYPES = ("f16", "bf16")
EVERY = np.arange(65536, dtype=np.uint16)


def check_both(opcode: str, type_name: str, arrays: list[np.ndarray], want: np.ndarray) -> None:
    """Of the type alone, and of each half of a pair."""
    check_bits(f"{opcode}.{type_name}", type_name, arrays, want)

    def paired(a: np.ndarray) -> np.ndarray:
        return np.stack([a, np.roll(a, 1)], axis=-1).view(np.uint32)[:, 0]

    check_bits(f"{opcode}.{type_name}x2", f"{type_name}x2", [paired(a) for a in arrays], paired(want))


def positive(type_name: str, bits: np.ndarray) -> np.ndarray:
    """.relu: what is negative becomes zero."""
    with np.errstate(invalid="ignore"):
        return np.where(doubles(type_name, bits) <= 0, 0, bits).astype(bits.dtype)


@pytest.mark.parametrize("operation", ("add", "sub", "mul", "fma"))
@pytest.mark.parametrize("type_name", TYPES)
def test_arithmetic_rounds_once(type_name: str, operation: str) -> None:
    arrays = float_operands(type_name, OPERATIONS[operation][0], count=2048)
    want = expected(operation, type_name, "rn", arrays)
    check_both(f"{operation}.rn", type_name, arrays, want)
    if operation == "fma":
        check_both("fma.rn.relu", type_name, arrays, positive(type_name, want))
    else:
        check_bits(f"{operation}.{type_name}", type_name, arrays, want)
    if type_name == "f16":
        check_both(f"{operation}.rn.sat", type_name, arrays, saturated(type_name, want))
        want = flushed("f16", expected(operation, "f16", "rn", [flushed("f16", a) for a in arrays]))
        check_both(f"{operation}.rn.ftz", type_name, arrays, want)
        check_both(f"{operation}.rn.ftz.sat", type_name, arrays, saturated(type_name, want))
        if operation == "fma":
            check_both("fma.rn.ftz.relu", type_name, arrays, positive(type_name, want))


@pytest.mark.parametrize("type_name", TYPES)
def test_sum_of_a_product_half_way_and_a_tiny_addend(type_name: str) -> None:
    """Rounded twice it loses the addend: the product lies half-way between two values, the sum barely beside it."""
    form = FORMATS[type_name]
    one, tiny = form.bias << form.mantissa_bits, 1 << form.mantissa_bits
    k = np.arange(1, 1 << form.mantissa_bits // 2, dtype=np.uint16)
    half = form.mantissa_bits - form.mantissa_bits // 2
    # (1 + 2^-m) (1 + k 2^-n) with m + n = mantissa_bits + 1 ends in the place after the last.
    a = np.full_like(k, one | 1 << half - 1)
    b = (one | k << half).astype(np.uint16)
    for addend in (tiny, tiny | form.sign, 1, 1 | form.sign):
        arrays = [a, b, np.full_like(k, addend)]
        check_both("fma.rn", type_name, arrays, expected("fma", type_name, "rn", arrays))


@pytest.mark.parametrize("type_name", TYPES)
def test_extremes(type_name: str) -> None:
    arrays = float_operands(type_name, 2, seed=5)
    for name in ("min", "max"):
        for modifiers in ("", ".NaN", ".xorsign.abs", ".NaN.xorsign.abs", *[".ftz", ".ftz.NaN"] * (type_name == "f16")):
            check_both(f"{name}{modifiers}", type_name, arrays, extremum(type_name, name, *arrays, modifiers))


@pytest.mark.parametrize("type_name", TYPES)
def test_signs_of_every_value(type_name: str) -> None:
    check_both("abs", type_name, [EVERY], EVERY & np.uint16(0x7FFF))
    check_both("neg", type_name, [EVERY], EVERY ^ np.uint16(0x8000))
    if type_name == "f16":
        check_both("abs.ftz", "f16", [EVERY], flushed("f16", EVERY) & np.uint16(0x7FFF))
        check_both("neg.ftz", "f16", [EVERY], flushed("f16", EVERY) ^ np.uint16(0x8000))


@pytest.mark.parametrize(
    "opcode", ("ex2.approx.f16", "ex2.approx.ftz.bf16", "tanh.approx.f16", "tanh.approx.bf16"), ids=str
)
def test_approximations_of_every_value(opcode: str) -> None:
    """Within one value of the nearest; zeros, infinities and NaN exactly."""
    type_name = opcode.rpartition(".")[2]
    form = FORMATS[type_name]
    x = doubles(type_name, flushed(type_name, EVERY) if ".ftz" in opcode else EVERY)
    with np.errstate(all="ignore"):
        exact = (np.exp2 if opcode.startswith("ex2") else np.tanh)(x)
        rounded = exact.astype(np.float16 if type_name == "f16" else np.float32)
    want = bits_of(rounded).astype(np.int64)
    if type_name == "bf16":
        want = want + 0x7FFF + (want >> 16 & 1) >> 16
    got = run(opcode, np.uint16, EVERY).astype(np.int64)
    if ".ftz" in opcode:
        want = flushed(type_name, want)
    is_nan = np.isnan(x)
    assert (got[is_nan] == form.nan).all()
    ends = ~is_nan & (~np.isfinite(x) | (x == 0) | (np.abs(x) > 512))
    np.testing.assert_array_equal(got[ends], want[ends])
    assert np.abs(got - want)[~is_nan].max() <= 1
    packed = run(f"{opcode}x2", np.uint32, EVERY.view(np.uint32))
    np.testing.assert_array_equal(packed.view(np.uint16), got)


UNKNOWN = (
    "add.rz.f16 %rs0, %rs1, %rs2",
    "add.relu.f16 %rs0, %rs1, %rs2",
    "add.ftz.bf16 %rs0, %rs1, %rs2",
    "mul.sat.bf16x2 %r0, %r1, %r2",
    "fma.f16 %rs0, %rs1, %rs2, %rs3",
    "fma.rn.sat.relu.f16 %rs0, %rs1, %rs2, %rs3",
    "fma.rn.ftz.bf16 %rs0, %rs1, %rs2, %rs3",
    "min.ftz.bf16 %rs0, %rs1, %rs2",
    "neg.ftz.bf16x2 %r0, %r1",
    "ex2.approx.bf16 %rs0, %rs1",
    "ex2.approx.ftz.f16 %rs0, %rs1",
    "tanh.f16 %rs0, %rs1",
)


@pytest.mark.parametrize("line", UNKNOWN)
def test_unknown_modifiers_are_errors(line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"PTX line {LINE}: unknown opcode '{line.split()[0]}'")):
        module_of(f"{line};")
