"""Single opcodes over arrays: every element is one lane's value.

Each opcode runs twice: in full warps, and in warps of which a random part is active, where the other lanes must keep what they had.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lumos_engine.testing.emulation import Module

THREADS = 128  # of a block
# What holds values of a PTX type.
DTYPES: dict[str, Any] = {
    "pred": np.bool_,
    **{f"{kind}{bits}": np.dtype(f"u{bits // 8}") for kind in "bu" for bits in (8, 16, 32, 64)},
    **{f"s{bits}": np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)},
    **{f"f{bits}": np.dtype(f"f{bits // 8}") for bits in (16, 32, 64)},
    "bf16": np.dtype(np.uint16),
    **{f"{part}x2": np.dtype(np.uint32) for part in ("u16", "s16", "f16", "bf16")},
}
LINE = 7  # of the instruction of module_of
_HEADER = ".version 9.0\n.target sm_80\n.address_size 64\n"


def run(opcode: str, result: Any, *operands: np.ndarray) -> np.ndarray:
    """``opcode result, operands...`` on every element; ``result`` is a dtype. A dtype of bool means a predicate."""
    names = ", ".join(["%d0", *(f"%a{i}" for i in range(len(operands)))])
    return run_lines(f"{opcode} {names};", [result], *operands)[0]


def run_lines(lines: str, results: Sequence[Any], *operands: np.ndarray) -> list[np.ndarray]:
    """Instructions that compute ``%d0, %d1, ...`` (of the dtypes ``results``) from ``%a0, %a1, ...``, each ended by ``;``."""
    count = len(operands[0])
    padded = -(-count // THREADS) * THREADS
    arrays = [np.resize(a, padded) for a in operands]
    random = np.random.default_rng(len(lines))
    active = random.integers(0, 2, padded).astype(np.bool_)
    before = [
        random.integers(0, 2 if d.itemsize == 1 else 256, padded * d.itemsize, np.uint8) for d in map(np.dtype, results)
    ]
    module = Module(_HEADER + "".join(_kernel(name, lines, results, arrays) for name in ("all", "some")))
    after = {}
    for name in ("all", "some"):
        after[name] = [b.copy() for b in before]
        tensors = [torch.from_numpy(a.view(np.uint8)) for a in (*arrays, active, *after[name])]
        module.launch(name, padded // THREADS, THREADS, *tensors)
    for every, some, old, dtype in zip(after["all"], after["some"], before, results, strict=True):
        width = np.dtype(dtype).itemsize
        kept = np.where(active[:, None], every.reshape(-1, width), old.reshape(-1, width))
        np.testing.assert_array_equal(some.reshape(-1, width), kept, err_msg=f"{lines}: lanes that are not active")
    return [a.view(d)[:count] for a, d in zip(after["all"], results, strict=True)]


def module_of(line: str) -> Module:
    """A kernel of one instruction, which may name registers ``%p0, %rs0, %r0, %f0, %rd0, %fd0, ...``; it stands on line ``LINE``."""
    kinds = {"p": "pred", "rs": "b16", "r": "b32", "f": "f32", "rd": "b64", "fd": "f64"}
    declared = " ".join(f".reg .{kind} %{name}<8>;" for name, kind in kinds.items())
    return Module(f"{_HEADER}.visible .entry kernel()\n{{\n{declared}\n{line}\nret;\n}}\n")


def _kernel(name: str, lines: str, results: Sequence[Any], arrays: Sequence[np.ndarray]) -> str:
    declared, before, after = [], [], []
    num_operands = len(arrays)
    for i, dtype in enumerate([*(a.dtype for a in arrays), np.dtype(np.bool_), *map(np.dtype, results)]):
        is_result, is_active = i > num_operands, i == num_operands
        register = f"%d{i - num_operands - 1}" if is_result else "%on" if is_active else f"%a{i}"
        is_predicate = dtype == np.bool_
        declared.append(f".reg .{'pred' if is_predicate else f'b{max(16, 8 * dtype.itemsize)}'} {register};")
        address = [
            f"ld.param.u64 %at, [{name}_{i}];",
            f"mad.wide.u32 %at, %thread, {dtype.itemsize}, %at;",
        ]
        kind = {"i": "s8", "u": "u8", "b": "u8"}[dtype.kind] if dtype.itemsize == 1 else f"b{8 * dtype.itemsize}"
        if not is_result or name == "some":
            before += address
            if is_predicate:
                before += ["ld.global.u8 %byte, [%at];", f"setp.ne.b16 {register}, %byte, 0;"]
            else:
                before += [f"ld.global.{kind} {register}, [%at];"]
        if is_result:
            after += address
            if is_predicate:
                after += [f"selp.b16 %byte, 1, 0, {register};", "st.global.u8 [%at], %byte;"]
            else:
                after += [f"st.global.{kind} [%at], {register};"]
    guard = "@%on " if name == "some" else ""
    body = [f"{guard}{line.strip()};" for line in lines.split(";") if line.strip()]
    parameters = ", ".join(f".param .u64 {name}_{i}" for i in range(num_operands + 1 + len(results)))
    start = [
        ".reg .b64 %at;",
        ".reg .b32 %thread, %block, %width;",
        ".reg .b16 %byte;",
        "mov.u32 %thread, %tid.x;",
        "mov.u32 %block, %ctaid.x;",
        "mov.u32 %width, %ntid.x;",
        "mad.lo.u32 %thread, %block, %width, %thread;",
    ]
    text = "\n".join([*declared, *start, *before, *body, *after, "ret;"])
    return f".visible .entry {name}({parameters})\n{{\n{text}\n}}\n"


def operands(*types: str, seed: int = 0, count: int = 4096) -> list[np.ndarray]:
    """Arrays of values of these PTX types: first each combination of a few corner cases (if they are few), then random ones."""
    arrays = [values(t, seed + i, count) for i, t in enumerate(types)]
    corners = [_corners(t) for t in types]
    if math.prod(map(len, corners)) <= count // 2:
        for array, chosen in zip(arrays, zip(*itertools.product(*corners), strict=True), strict=True):
            array[: len(chosen)] = chosen
    return arrays


def values(type_name: str, seed: int, count: int = 4096) -> np.ndarray:
    """Random values of a PTX type: half of them or more are corner cases, or close to one."""
    if type_name == "pred":
        return np.random.default_rng(seed).integers(0, 2, count).astype(np.bool_)
    if type_name.endswith("x2"):
        halves = [values(type_name[:-2], 2 * seed + half, count) for half in (0, 1)]
        return np.stack(halves, axis=-1).view(np.uint32)[:, 0]
    if type_name == "bf16":
        return (_floats(np.float32, seed, count).view(np.uint32) >> 16).astype(np.uint16)
    dtype = DTYPES[type_name]
    return _floats(dtype, seed, count) if np.dtype(dtype).kind == "f" else _integers(dtype, seed, count)


def _corners(type_name: str) -> np.ndarray:
    if type_name == "pred":
        return np.array([False, True])
    if type_name.endswith("x2"):
        halves = _corners(type_name[:-2])
        return np.stack([halves, halves[::-1]], axis=-1).view(np.uint32)[:, 0]
    if type_name == "bf16":
        return (_corners("f32").view(np.uint32) >> 16).astype(np.uint16)
    dtype = DTYPES[type_name]
    if np.dtype(dtype).kind == "f":
        return np.array([0, -0.0, 1, -1, np.inf, -np.inf, np.nan], dtype)
    info = np.iinfo(dtype)
    return np.array([0, 1, 2, info.max // 2 if info.min == 0 else -1, info.min, info.max], dtype)


def check(opcode: str, result: str, types: Sequence[str], expected: Callable[..., int]) -> None:
    """``opcode`` yields the bits of ``expected`` (of Python's numbers) on operands of these types, bit for bit."""
    arrays = operands(*types)
    got = run(opcode, DTYPES[result], *arrays)
    bits = f"u{got.dtype.itemsize}"
    mask = (1 << 8 * got.dtype.itemsize) - 1
    tuples = list(zip(*(a.tolist() for a in arrays), strict=True))
    want = np.array([expected(*t) & mask for t in tuples], bits)
    wrong = np.flatnonzero(got.view(bits) != want)
    if wrong.size:
        i = wrong[0]
        found = f"{int(got.view(bits)[i]):#x}, not {int(want[i]):#x}"
        raise AssertionError(f"{opcode} of {tuples[i]} is {found}; {wrong.size} of {len(tuples)} differ")


def _integers(dtype: Any, seed: int, count: int) -> np.ndarray:
    """Half of them corner cases (zero, extremes, powers of two and their neighbours), half random of random magnitude."""
    info, bits = np.iinfo(dtype), 8 * np.dtype(dtype).itemsize
    random = np.random.default_rng((seed, bits))
    powers = [sign * 2**i + step for i in range(bits) for sign in (1, -1) for step in (-1, 0, 1)]
    corners = np.array([x for x in {*powers, 0, int(info.min), int(info.max)} if info.min <= x <= info.max], dtype)
    raw = random.integers(info.min, info.max, count, dtype, endpoint=True)
    raw >>= random.integers(0, bits, count).astype(dtype)
    return np.where(random.random(count) < 0.5, random.choice(corners, count), raw)


def _floats(dtype: Any, seed: int, count: int) -> np.ndarray:
    """A third corner cases (zeros, infinities, NaN, subnormals, extremes), a third random bits, a third of moderate size."""
    info = np.finfo(dtype)
    random = np.random.default_rng((seed, info.bits))
    corners = [0, 1, 2, 0.5, np.inf, np.nan, info.max, info.tiny, info.smallest_subnormal, info.eps, 1 + info.eps]
    corners += [info.tiny - info.smallest_subnormal, 3 * info.smallest_subnormal]
    signed = np.array([sign * x for x in corners for sign in (1, -1)], dtype)
    raw = random.integers(0, 256, count * info.bits // 8, np.uint8).view(dtype)
    moderate = random.normal(0, 4, count).astype(dtype)
    return np.choose(random.integers(0, 3, count), [random.choice(signed, count), raw, moderate])
