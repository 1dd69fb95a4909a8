"""Atomic operations against Python integers and numpy, lane after lane."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from .memory_kernel import counted, fails, kernel, module, run, tensor

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=3)

LANES, PLACES = 32, 8


def bfloat(x: np.ndarray) -> np.ndarray:
    """Bits of bf16 values, and back for an array of such bits."""
    x = np.asarray(x)
    if x.dtype == np.uint16:
        return (x.astype(np.uint32) << 16).view(np.float32)
    return (
        torch.from_numpy(np.atleast_1d(x).astype(np.float32))
        .to(torch.bfloat16)
        .view(torch.int16)
        .numpy()
        .view(np.uint16)
    )


def integer(dtype: Any, function: Callable[[int, int, int], int]) -> Callable[[Any, Any, Any], Any]:
    mask = (1 << 8 * np.dtype(dtype).itemsize) - 1
    return lambda old, b, c: np.array(function(int(old), int(b), int(c)) & mask, f"u{np.dtype(dtype).itemsize}").view(
        dtype
    )


def added(old: Any, b: Any, c: Any) -> Any:
    return old + b


OPERATIONS: dict[str, tuple[Any, Callable[[Any, Any, Any], Any]]] = {}
for bits in (32, 64):
    signed, unsigned = np.dtype(f"i{bits // 8}"), np.dtype(f"u{bits // 8}")
    OPERATIONS |= {
        f"add.u{bits}": (unsigned, integer(unsigned, lambda old, b, c: old + b)),
        f"add.s{bits}": (signed, integer(signed, lambda old, b, c: old + b)),
        f"min.u{bits}": (unsigned, integer(unsigned, lambda old, b, c: min(old, b))),
        f"min.s{bits}": (signed, integer(signed, lambda old, b, c: min(old, b))),
        f"max.u{bits}": (unsigned, integer(unsigned, lambda old, b, c: max(old, b))),
        f"max.s{bits}": (signed, integer(signed, lambda old, b, c: max(old, b))),
        f"and.b{bits}": (unsigned, integer(unsigned, lambda old, b, c: old & b)),
        f"or.b{bits}": (unsigned, integer(unsigned, lambda old, b, c: old | b)),
        f"xor.b{bits}": (unsigned, integer(unsigned, lambda old, b, c: old ^ b)),
        f"exch.b{bits}": (unsigned, integer(unsigned, lambda old, b, c: b)),
        f"cas.b{bits}": (unsigned, integer(unsigned, lambda old, b, c: c if old == b else old)),
    }
OPERATIONS |= {
    "inc.u32": (np.uint32, integer(np.uint32, lambda old, b, c: 0 if old >= b else old + 1)),
    "dec.u32": (np.uint32, integer(np.uint32, lambda old, b, c: b if old == 0 or old > b else old - 1)),
    "cas.b16": (np.uint16, integer(np.uint16, lambda old, b, c: c if old == b else old)),
    "add.f32": (np.float32, added),
    "add.f64": (np.float64, added),
    "add.noftz.f16": (np.float16, added),
    "add.noftz.bf16": (np.uint16, lambda old, b, c: bfloat(bfloat(old) + bfloat(b))[0]),
}


def operands(operation: str, dtype: Any, random: np.random.Generator, count: int) -> np.ndarray:
    dtype = np.dtype(dtype)
    if "add.f" in operation or "noftz" in operation:
        special = np.array([0, -0.0, np.inf, -np.inf, 1e-30, 1])
        numbers = np.where(random.random(count) < 0.2, random.choice(special, count), random.normal(0, 4, count))
        return bfloat(numbers) if dtype == np.uint16 else numbers.astype(dtype)
    if operation.startswith(("inc", "dec", "cas")):  # often equal
        return random.integers(0, 5, count).astype(dtype)
    return random.integers(0, 256, count * dtype.itemsize, np.uint8).view(dtype)


def atomic_kernel(operation: str, size: int, space: str, returns: bool, name: str) -> str:
    register = {2: "%h", 4: "%r", 8: "%d"}[size]
    value = f"{register}1, {register}2" if operation.startswith("cas") else f"{register}1"
    spelling = "" if space == "generic" else f".{space}"
    call = (
        f"atom{spelling}.{operation} {register}3, [%d5], {value};"
        if returns
        else f"red{spelling}.{operation} [%d5], {value};"
    )
    bits = f"b{8 * size}"
    is_shared = space == "shared"
    copy = f"setp.lt.u32 %q1, %thread, {PLACES}; mad.wide.u32 %d6, %thread, {size}, %a0; mov.u64 %d7, shared; mad.wide.u32 %d7, %thread, {size}, %d7;"
    return kernel(
        f"""
        {copy if is_shared else ""}
        {f"@%q1 ld.global.{bits} {register}4, [%d6]; @%q1 st.shared.{bits} [%d7], {register}4; bar.sync 0;" if is_shared else ""}
        mad.wide.u32 %d1, %thread, 4, %a1;
        ld.global.u32 %r10, [%d1];
        mad.wide.u32 %d2, %thread, {size}, %a2; ld.global.{bits} {register}1, [%d2];
        mad.wide.u32 %d3, %thread, {size}, %a3; ld.global.{bits} {register}2, [%d3];
        mov.{"u64 %d5, shared" if is_shared else "b64 %d5, %a0"};
        mad.wide.u32 %d5, %r10, {size}, %d5;
        {call}
        mad.wide.u32 %d4, %thread, {size}, %a4; {f"st.global.{bits} [%d4], {register}3;" if returns else ""}
        {f"bar.sync 0; @%q1 ld.shared.{bits} {register}4, [%d7]; @%q1 st.global.{bits} [%d6], {register}4;" if is_shared else ""}
        """,
        5,
        shared=8 * PLACES,
        name=name,
    )


@few
@given(seeds)
@pytest.mark.parametrize("space", ["global", "shared", "generic"])
def test_operations(space, seed):
    cases = [(operation, returns) for operation in OPERATIONS for returns in (True, False)]
    cases = [(o, r) for o, r in cases if r or not o.startswith(("exch", "cas"))]
    names = {case: f"k{i}" for i, case in enumerate(cases)}
    made = module(*(atomic_kernel(o, np.dtype(OPERATIONS[o][0]).itemsize, space, r, names[o, r]) for o, r in cases))
    random = np.random.default_rng(seed)
    for operation, returns in cases:
        dtype, function = OPERATIONS[operation]
        for places in (random.integers(0, PLACES, LANES), np.full(LANES, 5)):
            memory = operands(operation, dtype, random, PLACES)
            b, c = operands(operation, dtype, random, LANES), operands(operation, dtype, random, LANES)
            expected, before = memory.copy(), np.zeros(LANES, dtype)
            with np.errstate(all="ignore"):
                for lane, place in enumerate(places):
                    before[lane] = expected[place]
                    expected[place] = function(expected[place], b[lane], c[lane])
            old = np.zeros(LANES, dtype)
            made.launch(
                names[operation, returns], 1, LANES, *map(tensor, (memory, places.astype(np.uint32), b, c, old))
            )
            for found, wanted in [(memory, expected), (old, before)] if returns else [(memory, expected)]:
                if operation.endswith("bf16"):
                    found, wanted = bfloat(found), bfloat(wanted)
                np.testing.assert_array_equal(found, wanted, err_msg=operation)


@few
@given(seeds)
@pytest.mark.parametrize("name", ["f16", "bf16"])
def test_packed(name, seed):
    random = np.random.default_rng(seed)
    add = OPERATIONS[f"add.noftz.{name}"][1]
    memory, b = (
        operands(f"add.noftz.{name}", np.float16 if name == "f16" else np.uint16, random, 2 * n)
        for n in (PLACES, LANES)
    )
    places = random.integers(0, PLACES, LANES)
    expected = memory.copy()
    with np.errstate(all="ignore"):
        for lane, place in enumerate(places):
            for half in range(2):
                expected[2 * place + half] = add(expected[2 * place + half], b[2 * lane + half], 0)
    made = module(atomic_kernel(f"add.noftz.{name}x2", 4, "global", False, "k"))
    made.launch("k", 1, LANES, *map(tensor, (memory, places.astype(np.uint32), b, b, b.copy())))
    widened = (bfloat(memory), bfloat(expected)) if name == "bf16" else (memory, expected)
    np.testing.assert_array_equal(*widened)


def test_subnormals_are_zeros_in_global_memory_only():
    tiny = np.float32(1e-40)
    memory = np.array([tiny, -tiny], np.float32)
    body = """
        mov.b32 %r1, 0f000116C2;
        setp.ne.u32 %q1, %lane, 0;
        @%q1 ret;
        {0}
    """
    bits = int(tiny.view(np.uint32))
    run(
        body.format(
            f"mov.u32 %r1, {bits}; red.global.add.f32 [%a0], %r1; mov.u32 %r1, 0x80000000; red.global.add.f32 [%a0+4], %r1;"
        ),
        memory,
    )
    np.testing.assert_array_equal(memory.view(np.uint32), [0, 1 << 31])
    run(
        body.format(
            f"mov.u32 %r1, {bits}; mov.u32 %r2, shared; st.shared.u32 [%r2], %r1; red.shared.add.f32 [%r2], %r1;"
            "ld.shared.u32 %r3, [%r2]; st.global.u32 [%a0], %r3;"
        ),
        memory,
        shared=16,
    )
    assert memory[0] == np.float32(tiny + tiny) != 0


def test_what_is_checked():
    memory = np.zeros(8, np.uint64)
    body = "mov.u32 %r1, 1; mov.u64 %d1, 1; {0}"
    run(body.format("mov.u32 %r2, shared; st.shared.u32 [%r2], %r1; atom.shared.add.u32 %r3, [%r2], %r1;"), shared=64)
    fails(
        "uninitialised",
        "shared memory at byte 0",
        body.format("mov.u32 %r2, shared; atom.shared.add.u32 %r3, [%r2], %r1;"),
        shared=64,
    )
    fails(
        "out of bounds",
        "atomic access of 4 bytes at byte 64",
        body.format("mov.u32 %r2, shared; atom.shared.add.u32 %r3, [%r2+64], %r1;"),
        shared=64,
    )
    fails(
        "out of bounds",
        "atomic access of 8 bytes at buffer 'argument 0' . 64",
        body.format("red.global.add.u64 [%a0+64], %d1;"),
        memory,
    )
    fails("misaligned", "atomic access of 8 bytes", body.format("red.global.add.u64 [%a0+4], %d1;"), memory)
    run(body.format("red.global.add.u64 [%a0+56], %d1;"), memory)
    assert memory[7] == 32


def test_counters():
    launch = run(
        "mad.wide.u32 %d1, %lane, 64, %a0; mov.u32 %r1, 1; red.global.add.u32 [%d1], %r1; mov.u32 %r2, shared;"
        "st.shared.u32 [%r2], %r1; red.shared.add.u32 [%r2], %r1;",
        np.zeros(512, np.uint32),
        shared=4,
    )
    assert counted(launch, ["atomic"], "instructions") == 2
    assert counted(launch, ["atomic"], "bytes") == 2 * 4 * 32
    assert counted(launch, ["atomic"], "sectors") == 32
    assert counted(launch, ["atomic"], "wavefronts") == 1


@pytest.mark.parametrize(
    "line",
    [
        "atom.global.add.f16 %h1, [%a0], %h2, %h3;",
        "atom.global.min.f32 %r1, [%a0], %r2;",
        "red.global.cas.b32 [%a0], %r1, %r2;",
        "red.async.relaxed.cluster.global.add.u32 [%a0], %r1;",
        "atom.global.frobnicate.u32 %r1, [%a0], %r2;",
        "fence.proxy.async;",
        "membar.everywhere;",
    ],
)
def test_unknown(line):
    with pytest.raises(ValueError, match=f"PTX line .*unknown opcode '{line.split()[0].rstrip(';')}'"):
        module(kernel(line, 1))
