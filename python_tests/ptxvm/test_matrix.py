"""mma, ldmatrix, stmatrix and movmatrix against their definitions; fragments are laid out by the formulas of the PTX ISA."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos_engine.testing.emulation import KernelFault, Module

from .warps import kernel, run

WARPS = 64
LANES = np.arange(32)
GROUP, THREAD = LANES >> 2, LANES % 4  # groupID and threadID_in_group of the ISA's formulas
seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=2)

Place = Callable[[int], tuple[Any, Any]]  # of element i in all lanes: rows, columns


@dataclass(frozen=True)
class Fragments:
    """Where the elements lie that a lane holds of A (m x k), B (k x 8), and C and D (m x 8)."""

    m: int
    k: int
    num_a: int
    a: Place
    num_b: int
    b: Place
    num_c: int = 4
    c: Place = lambda i: (GROUP + 8 * (i >= 2), 2 * THREAD + (i & 1))


HALF_8 = Fragments(
    16, 8, 4, lambda i: (GROUP + 8 * (i >= 2), 2 * THREAD + (i & 1)), 2, lambda i: (2 * THREAD + i, GROUP)
)
HALF_16 = Fragments(
    16,
    16,
    8,
    lambda i: (GROUP if i in (0, 1, 4, 5) else GROUP + 8, 2 * THREAD + (i & 1) + (8 if i >= 4 else 0)),
    4,
    lambda i: (2 * THREAD + (i & 1) + (8 if i >= 2 else 0), GROUP),
)
WORD_4 = Fragments(16, 4, 2, lambda i: (GROUP + 8 * i, THREAD), 1, lambda i: (THREAD, GROUP))
WORD_8 = Fragments(
    16,
    8,
    4,
    lambda i: (GROUP if i in (0, 2) else GROUP + 8, THREAD if i < 2 else THREAD + 4),
    2,
    lambda i: (THREAD if i == 0 else THREAD + 4, GROUP),
)
DOUBLE_4 = Fragments(
    8, 4, 1, lambda i: (GROUP, THREAD), 1, lambda i: (THREAD, GROUP), 2, lambda i: (GROUP, 2 * THREAD + i)
)
DOUBLE_16 = Fragments(
    16,
    16,
    8,
    lambda i: (GROUP, 2 * i + THREAD) if i % 2 == 0 else (GROUP + 8, 2 * i - 2 + THREAD),
    4,
    lambda i: (THREAD + 4 * i, GROUP),
)
BYTE_16 = Fragments(
    16,
    16,
    8,
    lambda i: (GROUP if i < 4 else GROUP + 8, 4 * THREAD + (i & 3)),
    4,
    lambda i: (4 * THREAD + i, GROUP),
)
BYTE_32 = Fragments(
    16,
    32,
    16,
    lambda i: (GROUP if i < 4 or 8 <= i < 12 else GROUP + 8, 4 * THREAD + (i & 3) + (16 if i >= 8 else 0)),
    8,
    lambda i: (4 * THREAD + (i & 3) + (16 if i >= 4 else 0), GROUP),
)

FLOATS = {
    "m16n8k8.row.col.f16.f16.f16.f16": HALF_8,
    "m16n8k16.row.col.f16.f16.f16.f16": HALF_16,
    "m16n8k8.row.col.f32.f16.f16.f32": HALF_8,
    "m16n8k16.row.col.f32.f16.f16.f32": HALF_16,
    "m16n8k8.row.col.f32.bf16.bf16.f32": HALF_8,
    "m16n8k16.row.col.f32.bf16.bf16.f32": HALF_16,
    "m16n8k4.row.col.f32.tf32.tf32.f32": WORD_4,
    "m16n8k8.row.col.f32.tf32.tf32.f32": WORD_8,
    "m8n8k4.row.col.f64.f64.f64.f64": DOUBLE_4,
    "m16n8k4.row.col.f64.f64.f64.f64": WORD_4,
    "m16n8k8.row.col.f64.f64.f64.f64": WORD_8,
    "m16n8k16.row.col.f64.f64.f64.f64": DOUBLE_16,
}
BYTES = {
    f"m16n8k{k}.row.col{saturates}.s32.{a}.{b}.s32": fragments
    for k, fragments in ((16, BYTE_16), (32, BYTE_32))
    for saturates in ("", ".satfinite")
    for a in ("s8", "u8")
    for b in ("s8", "u8")
}
STORED = {"f16": np.float16, "f32": np.float32, "f64": np.float64, "s8": np.int8, "u8": np.uint8, "s32": np.int32}


def encoded(values: np.ndarray, kind: str) -> np.ndarray:
    """Elements as registers hold them; bf16 and tf32 are cut off."""
    if kind == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    if kind == "tf32":
        return values.astype(np.float32).view(np.uint32) & 0xFFFFE000
    return values.astype(STORED[kind])


def decoded(elements: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (elements.astype(np.uint32) << 16).view(np.float32)
    return elements.view(np.float32) if kind == "tf32" else elements


def distributed(matrices: np.ndarray, num: int, place: Place) -> list[np.ndarray]:
    """``[warps, rows, columns]`` to registers ``[warps * 32]``: ``num`` elements a lane, the first in the lowest bits."""
    lanes = np.stack([matrices[:, place(i)[0], place(i)[1]] for i in range(num)], -1)
    words = np.ascontiguousarray(lanes).view(np.uint64 if matrices.itemsize == 8 else np.uint32)
    return [words[..., r].reshape(-1).copy() for r in range(words.shape[-1])]


def collected(registers: list[np.ndarray], dtype: Any, shape: tuple[int, int], num: int, place: Place) -> np.ndarray:
    lanes = np.ascontiguousarray(np.stack([r.reshape(WARPS, 32) for r in registers], -1)).view(dtype)
    matrices = np.zeros((WARPS, *shape), dtype)
    for i in range(num):
        rows, columns = place(i)
        matrices[:, rows, columns] = lanes[..., i]
    return matrices


def multiply(opcode: str, fragments: Fragments, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """D of ``mma`` for A, B and C as ``encoded`` makes them."""
    f = fragments
    operands = [distributed(a, f.num_a, f.a), distributed(b, f.num_b, f.b), distributed(c, f.num_c, f.c)]
    num_d = len(operands[2])
    vectors = ["{" + ", ".join(f"%d{i}" for i in range(num_d)) + "}"]
    first = 0
    for registers in operands:
        vectors.append("{" + ", ".join(f"%a{first + i}" for i in range(len(registers))) + "}")
        first += len(registers)
    flat = [r for registers in operands for r in registers]
    results = run(f"mma.sync.aligned.{opcode} {', '.join(vectors)};", [operands[2][0].dtype] * num_d, *flat)
    return collected(results, c.dtype, c.shape[1:], f.num_c, f.c)


def kinds_of(opcode: str) -> tuple[str, str, str]:
    _, a, b, c = opcode.split(".")[-4:]
    return a, b, c


@few
@given(seeds)
@pytest.mark.parametrize("opcode", FLOATS)
def test_mma_of_integers_is_exact(opcode, seed):
    random = np.random.default_rng(seed)
    f = FLOATS[opcode]
    shapes = ((f.m, f.k), (f.k, 8), (f.m, 8))
    values = [random.integers(-8, 9, (WARPS, *shape)).astype(np.float64) for shape in shapes]
    a, b, c = (encoded(v, kind) for v, kind in zip(values, kinds_of(opcode), strict=True))
    if "tf32" in opcode:  # bits that it does not look at
        a |= random.integers(0, 1 << 13, a.shape, np.uint32)
        b |= random.integers(0, 1 << 13, b.shape, np.uint32)
    np.testing.assert_array_equal(multiply(opcode, f, a, b, c), values[0] @ values[1] + values[2])


@few
@given(seeds)
@pytest.mark.parametrize("opcode", FLOATS)
def test_mma_of_reals_is_near(opcode, seed):
    random = np.random.default_rng(seed)
    f = FLOATS[opcode]
    kinds = kinds_of(opcode)
    shapes = ((f.m, f.k), (f.k, 8), (f.m, 8))
    # Magnitudes from 2^-12 to 2^3: products of fp16 that are subnormal in fp16.
    stored = [
        encoded(random.normal(0, 1, (WARPS, *shape)) * 2.0 ** random.integers(-12, 3, (WARPS, *shape)), kind)
        for shape, kind in zip(shapes, kinds, strict=True)
    ]
    a, b, c = (decoded(s, kind).astype(np.float64) for s, kind in zip(stored, kinds, strict=True))
    exact, size = a @ b + c, abs(a) @ abs(b) + abs(c)
    epsilon = 2.0**-53 if kinds[2] == "f64" else 2.0**-24  # of one rounding
    bound = (f.k + 1) * epsilon * size
    if kinds[2] == "f16":
        bound += 2.0**-11 * abs(exact) + 2.0**-25
    d = multiply(opcode, f, *stored).astype(np.float64)
    assert (abs(d - exact) <= bound).all()
    assert (d != exact).any()  # the bound has something to bound


@few
@given(seeds)
@pytest.mark.parametrize("opcode", FLOATS)
def test_mma_hands_infinities_and_nan_on(opcode, seed):
    random = np.random.default_rng(seed)
    f = FLOATS[opcode]
    kinds = kinds_of(opcode)
    shapes = ((f.m, f.k), (f.k, 8), (f.m, 8))
    special = [0.0, 1.0, -2.0, np.inf, -np.inf, np.nan]
    values = [random.choice(special, (WARPS, *shape), p=[0.2, 0.46, 0.3, 0.015, 0.015, 0.01]) for shape in shapes]
    with np.errstate(invalid="ignore"):
        expected = (values[0][..., None] * values[1][:, None]).sum(2) + values[2]
    d = multiply(opcode, f, *(encoded(v, kind) for v, kind in zip(values, kinds, strict=True)))
    np.testing.assert_array_equal(d, expected)
    canonical = {"f16": 0x7FFF, "f32": 0x7FFFFFFF, "f64": 0x7FF8 << 48}[kinds[2]]
    assert (d[np.isnan(d)].view(f"u{d.itemsize}") == canonical).all()


@few
@given(seeds)
@pytest.mark.parametrize("opcode", BYTES)
def test_mma_of_bytes(opcode, seed):
    random = np.random.default_rng(seed)
    f = BYTES[opcode]
    a, b = (
        random.integers(np.iinfo(STORED[kind]).min, np.iinfo(STORED[kind]).max, (WARPS, *shape), STORED[kind], True)
        for kind, shape in zip(kinds_of(opcode), ((f.m, f.k), (f.k, 8)), strict=False)
    )
    edges = random.choice([-(2**31), 0, 2**31 - 1], (WARPS, f.m, 8))  # some sums leave the range
    c = np.clip(edges + random.integers(-(2**18), 2**18, edges.shape), -(2**31), 2**31 - 1).astype(np.int32)
    exact = a.astype(np.int64) @ b.astype(np.int64) + c
    wrapped = exact.astype(np.int32)
    assert (wrapped != exact).any()
    expected = np.clip(exact, -(2**31), 2**31 - 1) if "satfinite" in opcode else wrapped
    np.testing.assert_array_equal(multiply(opcode, f, a, b, c), expected)


def test_mma_into_its_own_operands():
    random = np.random.default_rng(1)
    f = HALF_16
    a, b, c = (random.integers(-8, 9, (WARPS, *s)).astype(np.float64) for s in ((16, 16), (16, 8), (16, 8)))
    flat = [
        *distributed(a.astype(np.float16), f.num_a, f.a),
        *distributed(b.astype(np.float16), f.num_b, f.b),
        *distributed(c.astype(np.float32), f.num_c, f.c),
    ]
    step = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%c0, %c1, %c2, %c3}, {%a0, %a1, %a2, %a3}, {%a4, %a5}, {%c0, %c1, %c2, %c3};"
    lines = ".reg .f32 %c<4>;\n" + "".join(f"mov.b32 %c{i}, %a{6 + i};" for i in range(4))
    lines += 2 * step + "".join(f"mov.b32 %d{i}, %c{i};" for i in range(4))
    d = collected(run(lines, [np.uint32] * 4, *flat), np.float32, (16, 8), 4, f.c)
    np.testing.assert_array_equal(d, 2 * (a @ b) + c)


def vector(name: str, num: int) -> str:
    return "{" + ", ".join(f"%{name}{i}" for i in range(num)) + "}"


# Every warp has 1 KiB of shared memory: each thread fills 32 bytes with %a0 ... %a3. %base is where the warp's begins, as an address in
# shared memory of 32 and 64 bits and as a generic one.
FILL = """
.shared .align 16 .b8 tile[4096];
.reg .b32 %own, %base; .reg .b64 %wide, %generic, %window;
mov.u32 %base, tile; and.b32 %own, %t, 0xffffffe0; mad.lo.u32 %base, %own, 32, %base;
and.b32 %own, %t, 31; mad.lo.u32 %own, %own, 32, %base;
st.shared.b64 [%own], %a0; st.shared.b64 [%own+8], %a1; st.shared.b64 [%own+16], %a2; st.shared.b64 [%own+24], %a3;
bar.sync 0;
cvt.u64.u32 %wide, %base; cvta.shared.u64 %generic, %wide;
"""
READ = "bar.sync 0; ld.shared.b64 %d0, [%own]; ld.shared.b64 %d1, [%own+8]; ld.shared.b64 %d2, [%own+16]; ld.shared.b64 %d3, [%own+24];"
ADDRESSES = {  # how the instruction gets at row %a4 of 16 bytes, and whether it says .shared
    "narrow": (".shared", "mad.lo.u32 %base, %a4, 16, %base;", "%base"),
    "cta": (".shared::cta", "mad.lo.u32 %base, %a4, 16, %base;", "%base"),
    "wide": (".shared", "mad.wide.u32 %wide, %a4, 16, %wide;", "%wide"),
    "offset": (".shared", "mad.lo.u32 %base, %a4, 16, %base; sub.u32 %base, %base, 64;", "%base+64"),
    "generic": ("", "mad.wide.u32 %generic, %a4, 16, %generic;", "%generic"),
    "generic offset": (
        "",
        "mad.wide.u32 %generic, %a4, 16, %generic; add.u64 %generic, %generic, 128;",
        "%generic+-128",
    ),
}


def tiles(seed: int, num: int) -> tuple[np.ndarray, np.ndarray]:
    """Contents ``[warps, 64 rows, 8]`` and distinct rows ``[warps, 32]``; lanes whose addresses do not count point anywhere."""
    random = np.random.default_rng(seed)
    contents = random.integers(0, 1 << 16, (WARPS, 64, 8), np.uint16)
    rows = np.stack([random.permutation(64)[:32] for _ in range(WARPS)]).astype(np.uint32)
    rows[:, 8 * num :] = random.integers(0, 1 << 32, (WARPS, 32 - 8 * num), np.uint32)
    return contents, rows


def quarters(contents: np.ndarray) -> list[np.ndarray]:
    return [q.copy() for q in contents.reshape(WARPS * 32, 16).view(np.uint64).T]


def fragment(matrices: np.ndarray) -> np.ndarray:
    """``[warps, 8, 8]`` to registers: lane l has elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4."""
    low, high = (matrices[:, GROUP, 2 * THREAD + i].astype(np.uint32) for i in (0, 1))
    return (low | high << 16).reshape(-1)


@few
@given(seeds)
@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_ldmatrix(num, transposed, address, seed):
    contents, rows = tiles(seed, num)
    space, compute, spelling = ADDRESSES[address]
    opcode = f"ldmatrix.sync.aligned.m8n8.x{num}{'.trans' if transposed else ''}{space}.b16"
    lines = f"{FILL} {compute} {opcode} {vector('d', num)}, [{spelling}];"
    found = run(lines, [np.uint32] * num, *quarters(contents), rows.reshape(-1))
    for i, register in enumerate(found):
        matrices = contents[np.arange(WARPS)[:, None], rows[:, 8 * i : 8 * i + 8]]
        np.testing.assert_array_equal(register, fragment(matrices.swapaxes(1, 2) if transposed else matrices))


@few
@given(seeds)
@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("num", [1, 2, 4])
def test_stmatrix(num, transposed, address, seed):
    contents, rows = tiles(seed, num)
    matrices = np.random.default_rng(seed).integers(0, 1 << 16, (num, WARPS, 8, 8), np.uint16)
    space, compute, spelling = ADDRESSES[address]
    opcode = f"stmatrix.sync.aligned.m8n8.x{num}{'.trans' if transposed else ''}{space}.b16"
    registers = [fragment(m.swapaxes(1, 2) if transposed else m) for m in matrices]
    values = "{" + ", ".join(f"%a{5 + i}" for i in range(num)) + "}"
    lines = f"{FILL} {compute} {opcode} [{spelling}], {values}; {READ}"
    found = run(lines, [np.uint64] * 4, *quarters(contents), rows.reshape(-1), *registers)
    for i in range(num):
        contents[np.arange(WARPS)[:, None], rows[:, 8 * i : 8 * i + 8]] = matrices[i]
    np.testing.assert_array_equal(found, quarters(contents))


@few
@given(seeds)
def test_movmatrix(seed):
    matrices = np.random.default_rng(seed).integers(0, 1 << 16, (WARPS, 8, 8), np.uint16)
    (found,) = run("movmatrix.sync.aligned.m8n8.trans.b16 %d0, %a0;", [np.uint32], fragment(matrices))
    np.testing.assert_array_equal(found, fragment(matrices.swapaxes(1, 2)))


ZEROS = "".join(f"mov.b32 %d{i}, 0; " for i in range(4))
LOAD = "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%d0, %d1, %d2, %d3}, [%base];"


@pytest.mark.parametrize(
    ("compute", "load", "message"),
    [
        ("mad.lo.u32 %base, %a4, 16, %base; add.u32 %base, %base, 8;", LOAD, "misaligned"),
        ("mad.lo.u32 %base, %a4, 1024, %base;", LOAD, r"out of bounds.*thread \(4, 0, 0\)"),
        ("mov.u32 %base, 0;", LOAD, "out of bounds"),
        ("mov.u64 %generic, 4096;", LOAD.replace(".shared", "").replace("%base", "%generic"), "out of bounds"),
        ("", "setp.lt.u32 %low, %t, 16; @%low " + LOAD, "barrier divergence: it needs all 32 lanes.*0000ffff"),
        ("", "setp.lt.u32 %low, %t, 16; @%low exit; " + LOAD, "barrier divergence: it needs all 32 lanes.*ffff0000"),
    ],
)
def test_ldmatrix_of_bad_addresses_and_lanes(compute, load, message):
    operands = [np.zeros(32, np.uint64)] * 4 + [np.arange(32, dtype=np.uint32)]
    with pytest.raises(KernelFault, match=message):
        run(f".reg .pred %low; {FILL} {ZEROS} {compute} {load}", [np.uint32] * 4, *operands)


def test_ldmatrix_of_memory_that_nobody_wrote():
    lines = ".shared .align 16 .b8 tile[512]; .reg .b32 %base; mov.u32 %base, tile; mad.lo.u32 %base, %t, 16, %base;"
    with pytest.raises(KernelFault, match="uninitialised"):
        run(lines + LOAD, [np.uint32] * 4, np.zeros(32, np.uint32))


@pytest.mark.parametrize(
    "line",
    [
        "movmatrix.sync.aligned.m8n8.trans.b16 %d0, %a0;",
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%d0, %d1, %d2, %d3}, {%a0, %a0}, {%a0}, {%d0, %d1, %d2, %d3};",
    ],
)
def test_lanes_that_are_missing(line):
    operand = np.zeros(16, np.uint32)  # a block of 16 threads
    with pytest.raises(KernelFault, match="barrier divergence: it needs all 32 lanes of the warp; lanes 0000ffff"):
        run(ZEROS + line, [np.uint32] * 4, operand)


@pytest.mark.parametrize(
    "opcode",
    [
        "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.bf16.f32",
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f16",
        "mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e4m3.f32",
        "mma.m16n8k16.row.col.f32.bf16.bf16.f32",
        "mma.sp.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32",
        "ldmatrix.sync.aligned.m8n8.x3.shared.b16",
        "ldmatrix.sync.aligned.m8n8.x4.shared.b8",
        "ldmatrix.sync.aligned.m8n8.x4.global.b16",
        "stmatrix.sync.aligned.m16n8.x1.trans.shared.b8",
        "movmatrix.sync.aligned.m8n8.b16",
    ],
)
def test_unknown(opcode):
    with pytest.raises(ValueError, match=rf"PTX line \d+: unknown opcode '{opcode}'"):
        Module(kernel(f"{opcode} {{%d0}}, [%at];", [np.dtype(np.uint32)] * 2, 1))


@pytest.mark.parametrize(
    "line",
    [
        "ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%d0}, [%at];",
        "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%at}, [%at];",
        "stmatrix.sync.aligned.m8n8.x1.shared.b16 [%at];",
        "mma.sync.aligned.m16n8k4.row.col.f32.tf32.tf32.f32 {%d0, %d0, %d0}, {%a0, %a0}, {%a0}, {%d0, %d0, %d0, %d0};",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d0, %d0}, {%at}, {%at}, {%at, %at};",
        "mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%at, %at}, {%at}, {%at};",
    ],
)
def test_operands_that_do_not_fit(line):
    with pytest.raises(ValueError, match=rf"PTX line \d+: {line.split()[0]}: .*(operands|register)"):
        Module(kernel(line, [np.dtype(np.uint32)] * 2, 1))
