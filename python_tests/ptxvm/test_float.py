"""Arithmetic of f32 and f64 against exact integers, bit for bit; approximations against numpy's functions of float64."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

from lumos_engine.testing.emulation import extension

from .exact import (
    FORMATS,
    OPERATIONS,
    ROUNDINGS,
    bits_of,
    check_bits,
    check_near,
    expected,
    float_operands,
    flushed,
    saturated,
)
from .opcode_kernel import LINE, module_of, run, values

TYPES = ("f32", "f64")


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("type_name", TYPES)
def test_arithmetic_rounds_once(type_name: str, operation: str, rounding: str) -> None:
    arrays = float_operands(type_name, OPERATIONS[operation][0])
    want = expected(operation, type_name, rounding, arrays)
    check_bits(f"{operation}.{rounding}.{type_name}", type_name, arrays, want)
    if operation == "fma":
        check_bits(f"mad.{rounding}.{type_name}", type_name, arrays, want)
    if rounding == "rn" and operation in ("add", "sub", "mul"):
        check_bits(f"{operation}.{type_name}", type_name, arrays, want)


@pytest.mark.parametrize("rounding", ("rn", "rp"))
@pytest.mark.parametrize("operation", OPERATIONS)
def test_flushing_and_saturation(operation: str, rounding: str) -> None:
    arrays = float_operands("f32", OPERATIONS[operation][0], seed=3)
    normal = [flushed("f32", a) for a in arrays]
    want = flushed("f32", expected(operation, "f32", rounding, normal))
    check_bits(f"{operation}.{rounding}.ftz.f32", "f32", arrays, want)
    if operation in ("add", "sub", "mul", "fma"):
        check_bits(f"{operation}.{rounding}.ftz.sat.f32", "f32", arrays, saturated("f32", want))
        want = saturated("f32", expected(operation, "f32", rounding, arrays))
        check_bits(f"{operation}.{rounding}.sat.f32", "f32", arrays, want)


def extremum(type_name: str, name: str, a: np.ndarray, b: np.ndarray, modifiers: str = "") -> np.ndarray:
    """Bits of min or max of bits."""
    form = FORMATS[type_name]
    if ".ftz" in modifiers:
        a, b = flushed(type_name, a), flushed(type_name, b)
    sign = 0
    if ".xorsign" in modifiers:
        sign, a, b = (a ^ b) & form.sign, a & ~np.array(form.sign, a.dtype), b & ~np.array(form.sign, b.dtype)

    def order(x: np.ndarray) -> np.ndarray:
        magnitude = (x & (form.sign - 1)).astype(np.int64)
        return np.where(x & form.sign, -1 - magnitude, magnitude)

    a_is_nan, b_is_nan = ((x & (form.sign - 1)) > form.infinity for x in (a, b))
    first = order(a) <= order(b) if name == "min" else order(a) >= order(b)
    chosen = np.where(b_is_nan | (first & ~a_is_nan), a, b) | sign
    is_nan = a_is_nan | b_is_nan if ".NaN" in modifiers else a_is_nan & b_is_nan
    return np.where(is_nan, form.nan, chosen).astype(a.dtype)


@pytest.mark.parametrize("name", ("min", "max"))
def test_extremes(name: str) -> None:
    for type_name in TYPES:
        arrays = float_operands(type_name, 2, seed=5)
        for modifiers in ("", ".ftz", ".NaN", ".xorsign.abs", ".ftz.NaN.xorsign.abs")[: 5 if type_name == "f32" else 1]:
            want = extremum(type_name, name, *arrays, modifiers)
            check_bits(f"{name}{modifiers}.{type_name}", type_name, arrays, want)


@pytest.mark.parametrize("type_name", TYPES)
def test_signs(type_name: str) -> None:
    a, b = float_operands(type_name, 2, seed=7)
    sign = np.array(FORMATS[type_name].sign, a.dtype)
    check_bits(f"abs.{type_name}", type_name, [a], a & ~sign)
    check_bits(f"neg.{type_name}", type_name, [a], a ^ sign)
    check_bits(f"copysign.{type_name}", type_name, [a, b], (a & sign) | (b & ~sign))
    if type_name == "f32":
        check_bits("abs.ftz.f32", "f32", [a], flushed("f32", a) & ~sign)
        check_bits("neg.ftz.f32", "f32", [a], flushed("f32", a) ^ sign)


@pytest.mark.parametrize("type_name", TYPES)
def test_kinds_of_values(type_name: str) -> None:
    x = values(type_name, seed=11)
    magnitude = np.abs(x)
    subnormal = (magnitude > 0) & (magnitude < np.finfo(x.dtype).tiny)
    for name, want in {
        "finite": np.isfinite(x),
        "infinite": np.isinf(x),
        "number": ~np.isnan(x),
        "notanumber": np.isnan(x),
        "normal": np.isfinite(x) & ~subnormal,
        "subnormal": subnormal,
    }.items():
        np.testing.assert_array_equal(run(f"testp.{name}.{type_name}", np.bool_, x), want, err_msg=name)


def moderate(seed: int, largest_exponent: int = 8) -> np.ndarray:
    """Values of f32, corner cases among them, whose magnitudes spread over many powers of two."""
    random = np.random.default_rng(seed)
    spread = (random.normal(0, 1, 8192) * np.exp2(random.uniform(-40, largest_exponent, 8192))).astype(np.float32)
    return np.concatenate([values("f32", seed, 4096), spread])


APPROXIMATE: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rcp": np.reciprocal,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1 / np.sqrt(x),
}


@pytest.mark.parametrize("name", APPROXIMATE)
def test_approximations(name: str) -> None:
    x = moderate(seed=13)
    with np.errstate(all="ignore"):
        want = APPROXIMATE[name](x.astype(np.float64))
        check_near(f"{name}.approx.f32", x, want, ulps=1.5)
        if name == "tanh":  # has no .ftz
            return
        got = run(f"{name}.approx.ftz.f32", np.float32, x)
        normal = flushed("f32", bits_of(x))
        want = flushed("f32", bits_of(run(f"{name}.approx.f32", np.float32, normal.view(np.float32))))
    np.testing.assert_array_equal(bits_of(got), want)


def test_ex2_of_integers_is_exact() -> None:
    x = np.arange(-160, 140, dtype=np.float32)
    with np.errstate(all="ignore"):
        want = np.exp2(x.astype(np.float64)).astype(np.float32)
    np.testing.assert_array_equal(run("ex2.approx.f32", np.float32, x), want)


def test_approximate_division() -> None:
    arrays = float_operands("f32", 2, seed=17)
    want = expected("div", "f32", "rn", arrays)
    normal = flushed("f32", expected("div", "f32", "rn", [flushed("f32", a) for a in arrays]))
    for mode in ("approx", "full"):
        check_bits(f"div.{mode}.f32", "f32", arrays, want)
        check_bits(f"div.{mode}.ftz.f32", "f32", arrays, normal)


def test_coarse_functions_of_f64_see_and_yield_the_upper_half() -> None:
    x = values("f64", seed=19)
    upper = (flushed("f64", bits_of(x)) & 0xFFFFFFFF00000000).view(np.float64)
    with np.errstate(all="ignore"):
        exact = {"rcp": 1 / upper, "rsqrt": 1 / np.sqrt(upper)}
    for name, want in exact.items():
        got = run(f"{name}.approx.ftz.f64", np.float64, x)
        assert not (bits_of(got) & 0xFFFFFFFF).any()
        want = flushed("f64", bits_of(want)).view(np.float64)
        np.testing.assert_array_equal(np.isnan(got), np.isnan(want))
        np.testing.assert_allclose(got, want, rtol=2**-20, atol=0)
    with np.errstate(all="ignore"):
        want = 1 / np.sqrt(x)
    np.testing.assert_allclose(run("rsqrt.approx.f64", np.float64, x), want, rtol=2**-52, atol=0)


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("add.f32 %f0, 0f00000000, 0f00000000", "fp32"),
        ("max.f32 %f0, 0f00000000, 0f00000000", "fp32"),
        ("sqrt.rm.f64 %fd0, 0d0000000000000000", "fp64"),
        ("mul.bf16 %rs0, 1, 1", "half"),
        ("neg.f16x2 %r0, 1", "half"),
        ("ex2.approx.f32 %f0, 0f00000000", "special"),
        ("tanh.approx.f16 %rs0, 1", "special"),
        ("cvt.u16.u32 %rs0, 1", "convert"),
    ],
    ids=str,
)
def test_classes_that_instructions_are_counted_as(line: str, kind: str) -> None:
    extension().clear_launches()
    module_of(f"{line};").launch("kernel", 1, 32)
    (launch,) = extension().launches()
    assert {row["class"]: row["instructions"] for row in launch["lines"]} == {kind: 1, "control": 1}


UNKNOWN = (
    "add.rna.f32 %f0, %f1, %f2",
    "add.ftz.f64 %fd0, %fd1, %fd2",
    "add.sat.f64 %fd0, %fd1, %fd2",
    "add.f32.f32 %f0, %f1, %f2",
    "mul.relu.f32 %f0, %f1, %f2",
    "fma.rn.relu.f32 %f0, %f1, %f2, %f3",
    "div.rn.sat.f32 %f0, %f1, %f2",
    "div.approx.f64 %fd0, %fd1, %fd2",
    "sqrt.full.f32 %f0, %f1",
    "rcp.approx.f64 %fd0, %fd1",
    "rsqrt.rn.f32 %f0, %f1",
    "ex2.f32 %f0, %f1",
    "ex2.approx.f64 %fd0, %fd1",
    "lg2.approx.f16 %rs0, %rs1",
    "tanh.approx.ftz.f32 %f0, %f1",
    "min.NaN.f64 %fd0, %fd1, %fd2",
    "min.xorsign.f32 %f0, %f1, %f2",
    "min.abs.f32 %f0, %f1, %f2",
    "abs.ftz.f64 %fd0, %fd1",
    "copysign.f16 %rs0, %rs1, %rs2",
    "testp.odd.f32 %p0, %f1",
    "testp.f32 %p0, %f1",
)


@pytest.mark.parametrize("line", UNKNOWN)
def test_unknown_modifiers_are_errors(line: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"PTX line {LINE}: unknown opcode '{line.split()[0]}'")):
        module_of(f"{line};")


def test_wrong_operands_are_errors() -> None:
    for line, message in {
        "sqrt.f32 %f0, %f1;": "needs a rounding or .approx",
        "add.f32 %f0, %f1;": "wrong number of operands",
        "add.f32 %f0, %f1, %fd2;": "size of a register",
    }.items():
        with pytest.raises(ValueError, match=message):
            module_of(line)
