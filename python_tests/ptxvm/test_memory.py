"""Loads and stores in every space, what they check, and what they count."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lumos_engine.testing.emulation import Module

from .memory_kernel import aligned, counted, fails, kernel, module, run, tensor

seeds = st.integers(0, 2**32 - 1)
few = settings(max_examples=3)

REGISTERS = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}
ACCESSES = [
    (f"{kind}{8 * size}", size, count)
    for kind, sizes in (("b", (1, 2, 4, 8)), ("u", (1, 2, 4, 8)), ("s", (1, 2, 4, 8)), ("f", (4, 8)))
    for size in sizes
    for count in (1, 2, 4)
]


def values(size: int, count: int) -> str:
    names = ", ".join(f"{REGISTERS[size]}{i}" for i in range(count))
    return names if count == 1 else f"{{{names}}}"


def vector(count: int) -> str:
    return "" if count == 1 else f".v{count}"


def through(space: str, type_: str, size: int, count: int, order: str) -> str:
    """Takes element ``order`` of ``a0`` through ``space`` to ``a1``; in a space shared by all it lies at ``tid``."""
    lane_bytes = size * count
    spelling = "" if space.startswith("generic") else f".{space}"
    base = {
        "global": "mov.b64 %d10, %a2;",
        "shared": "mov.u64 %d10, shared;",
        "local": "mov.u64 %d10, local;",
        "generic global": "mov.b64 %d10, %a2;",
        "generic shared": "mov.u64 %d10, shared; cvta.shared.u64 %d10, %d10;",
        "generic local": "mov.u64 %d10, local; cvta.local.u64 %d10, %d10;",
    }[space]
    place = f"mad.wide.u32 %d10, %thread, {lane_bytes}, %d10;" if "local" not in space else ""
    return f"""
        {order}
        mad.wide.u32 %d11, %r20, {lane_bytes}, %a0;
        mad.wide.u32 %d12, %thread, {lane_bytes}, %a1;
        {base} {place}
        ld.global{vector(count)}.{type_} {values(size, count)}, [%d11];
        st{spelling}{vector(count)}.{type_} [%d10], {values(size, count)};
        ld{spelling}{vector(count)}.{type_} {values(size, count)}, [%d10];
        st.global{vector(count)}.{type_} [%d12], {values(size, count)};
    """


@few
@given(seeds)
@pytest.mark.parametrize("space", ["global", "shared", "local", "generic global", "generic shared", "generic local"])
def test_bytes_come_back(space, seed):
    order = "ld.global.u32 %r20, [%d10];"
    names, kernels = {}, []
    for type_, size, count in ACCESSES:
        name = names[type_, count] = f"k_{type_}_{count}"
        indices = f"mad.wide.u32 %d10, %thread, 4, %a3; {order}"
        kernels.append(kernel(through(space, type_, size, count, indices), 4, shared=64 * 32, local=32, name=name))
    made = module(*kernels)
    random = np.random.default_rng(seed)
    for type_, size, count in ACCESSES:
        given_ = aligned((64, size * count))
        given_[:] = random.integers(0, 256, given_.shape)
        for order_ in (np.arange(64), random.permutation(64), np.full(64, 7)):
            taken, room = aligned(given_.shape), aligned(given_.shape)
            arrays = (given_, taken, room, order_.astype(np.uint32))
            made.launch(names[type_, count], 1, 64, *map(tensor, arrays))
            np.testing.assert_array_equal(taken, given_[order_])


@pytest.mark.parametrize("space", ["global", "shared"])
def test_scattered_stores_of_some_lanes(space):
    random = np.random.default_rng(5)
    for part in (0xFFFFFFFF, 0x0F0F1234, 1 << 31):
        places = random.permutation(32).astype(np.uint32)
        to = np.full(32, 7, np.uint32)
        run(
            f"""
            shl.b32 %r1, %lane, 2;
            mov.u32 %r4, 7;
            mov.u32 %r2, shared;
            add.u32 %r3, %r2, %r1;
            st.shared.u32 [%r3], %r4;
            mad.wide.u32 %d1, %lane, 4, %a0;
            ld.global.u32 %r5, [%d1];
            mad.wide.u32 %d2, %r5, 4, %a1;
            mad.lo.u32 %r6, %r5, 4, %r2;
            mov.u32 %r7, 1;
            shl.b32 %r7, %r7, %lane;
            and.b32 %r7, %r7, {part};
            setp.ne.u32 %q1, %r7, 0;
            @%q1 st.{space}.u32 [{"%d2" if space == "global" else "%r6"}], %lane;
            {"ld.shared.u32 %r8, [%r3]; mad.wide.u32 %d3, %lane, 4, %a1; st.global.u32 [%d3], %r8;" if space == "shared" else ""}
            """,
            places,
            to,
            shared=128,
        )
        expected = np.full(32, 7, np.uint32)
        active = [lane for lane in range(32) if part >> lane & 1]
        expected[places[active]] = active
        np.testing.assert_array_equal(to, expected)


@given(seeds)
@few
def test_loads_extend_and_stores_truncate(seed):
    random = np.random.default_rng(seed)
    bytes_ = random.integers(0, 256, 32 * 8, np.uint8)
    for kind in "us":
        for size in (1, 2, 4):
            wide, narrow = np.zeros(32, np.int64), np.zeros(32, np.int32)
            short, back = np.zeros(32, np.int16), np.zeros(32 * 8, np.uint8)
            half = f"ld.global.{kind}{8 * size} %h1, [%d1]; st.global.b16 [%d4], %h1;" if size < 4 else ""
            run(
                f"""
                mad.wide.u32 %d1, %lane, {size}, %a0;
                mad.wide.u32 %d2, %lane, 8, %a1;
                mad.wide.u32 %d3, %lane, 4, %a2;
                mad.wide.u32 %d4, %lane, 2, %a3;
                mad.wide.u32 %d5, %lane, {size}, %a4;
                ld.global.{kind}{8 * size} %d6, [%d1];
                ld.global.{kind}{8 * size} %r6, [%d1];
                {half}
                st.global.b64 [%d2], %d6;
                st.global.b32 [%d3], %r6;
                not.b64 %d6, %d6;
                st.global.{kind}{8 * size} [%d5], %d6;
                """,
                bytes_,
                wide,
                narrow,
                short,
                back,
            )
            dtype = np.dtype(f"{'u' if kind == 'u' else 'i'}{size}")
            expected = bytes_[: 32 * size].view(dtype)
            np.testing.assert_array_equal(wide, expected.astype(np.int64))
            np.testing.assert_array_equal(narrow, expected.astype(np.int64).astype(np.int32))
            if size < 4:
                np.testing.assert_array_equal(short, expected.astype(np.int16))
            np.testing.assert_array_equal(back[: 32 * size].view(dtype), ~expected)


def test_constants_parameters_and_hints():
    to = np.zeros(64, np.uint32)
    run(
        """
        mad.wide.u32 %d1, %thread, 4, %a0;
        mul.wide.u32 %d2, %thread, 4;
        mov.u64 %d3, table;
        add.u64 %d3, %d3, %d2;
        ld.const.u32 %r1, [%d3];
        ld.const.v2.u32 {%r2, _}, [table+8];
        add.u32 %r1, %r1, %r2;
        createpolicy.fractional.L2::evict_last.b64 %d5, 0f3F800000;
        st.global.L1::no_allocate.L2::cache_hint.u32 [%d1], %r1, %d5;
        ld.volatile.global.u32 %r1, [%d1];
        ld.global.nc.L1::evict_last.L2::128B.u32 %r1, [%d1];
        ld.relaxed.gpu.global.u32 %r1, [%d1];
        st.global.cs.u32 [%d1], %r1;
        prefetch.global.L2 [%d1];
        mov.b64 %d6, p0;
        ld.param.u64 %d7, [%d6];
        mov.u32 %r3, 77;
        st.global.u32 [%d7+128], %r3;
        """,
        to,
        variables=".const .align 8 .u32 table[32] = {" + ", ".join(str(i * i) for i in range(32)) + "};",
    )
    np.testing.assert_array_equal(to[:33], [*(i * i + 4 for i in range(32)), 77])


LANE_ADDRESS = "mad.wide.u32 %d1, %lane, {0}, %a0;"


@pytest.mark.parametrize("step", [-16, 0, 16])
@pytest.mark.parametrize(
    "access", ["ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%d1]", "st.global.v4.u32 [%d1], {%r5, %r5, %r5, %r5}"]
)
def test_global_bounds(access, step):
    for scattered in (False, True):
        lane = "xor.b32 %r6, %lane, 3;" if scattered else "mov.u32 %r6, %lane;"
        body = f"mov.u32 %r5, 1; {lane} mad.wide.u32 %d1, %r6, 16, %a0; add.s64 %d1, %d1, {step}; {access};"
        if not step:
            run(body, np.zeros(128, np.uint32))
            continue
        verb = "read" if access.startswith("ld") else "write"
        place = r"\+ 512" if step > 0 else "- 16"
        error = fails(
            "out of bounds",
            rf"{verb} of 16 bytes at buffer 'argument 0' {place}, which has 512 bytes",
            body,
            np.zeros(4096, np.uint32)[2048:2176],  # no other buffer is near
        )
        expected = {False: {16: 31, -16: 0}, True: {16: 28, -16: 3}}[scattered][step]
        assert f"thread ({expected}, 0, 0)" in str(error)


def test_other_bounds():
    zeros = np.zeros(32, np.uint32)
    fails("out of bounds", "no buffer", "mov.u64 %d1, 0; ld.global.u32 %r1, [%d1];")
    fails("out of bounds", "no buffer", "mov.u64 %d1, 0; ld.u32 %r1, [%d1];")
    fails(
        "out of bounds",
        "read-only",
        "mov.u32 %r1, 1; mov.u64 %d1, table; st.global.u32 [%d1], %r1;",
        variables=".const .u32 table[2];",
    )
    fails(
        "out of bounds",
        "constant|'table'",
        "mov.u64 %d1, table; ld.const.u32 %r1, [%d1+8];",
        variables=".const .u32 table[2];",
    )
    fails("out of bounds", "parameters", "ld.param.u64 %d1, [p0+8];", zeros)
    for space, size in (("shared", 64), ("local", 64)):
        for place, verb in ((64, "read"), (64, "write"), (-4, "read"), (-4, "write")):
            access = f"ld.{space}.u32 %r1, [%r2+{place}];" if verb == "read" else f"st.{space}.u32 [%r2+{place}], %r3;"
            good = f"st.{space}.u32 [%r2+60], %r3; ld.{space}.u32 %r1, [%r2+60];"
            begin = f"mov.u32 %r3, 1; mov.u32 %r2, {space};"
            fails(
                "out of bounds",
                f"{verb} of 4 bytes at byte {place} of {space} memory, which has 64 bytes",
                begin + access,
                **{space: size},
            )
            run(begin + good, **{space: size})


@pytest.mark.parametrize("space", ["shared", "local"])
def test_an_access_that_begins_within_bounds(space):
    wide = f"mov.u64 %d1, {space}; mov.u64 %d2, 1; st.{space}.v4.u64 [%d1+{{0}}], {{{{%d2, %d2, %d2, %d2}}}};"
    fails(
        "out of bounds", "write of 32 bytes at byte 32 of .* memory, which has 48 bytes", wide.format(32), **{space: 48}
    )
    run(wide.format(0), **{space: 48})


def test_alignment():
    for size, register in ((2, "%h1"), (4, "%r1"), (8, "%d5")):
        for space, base in (
            ("global", "mov.b64 %d1, %a0;"),
            ("shared", "mov.u64 %d1, shared;"),
            ("local", "mov.u64 %d1, local;"),
        ):
            store = f"mov.u64 %d5, 1; mov.u32 %r1, 1; mov.u16 %h1, 1; st.{space}.b{8 * size}"
            body = f"{base} {store} [%d1+{{}}], {register};"
            memory = np.zeros(8, np.uint64)
            run(body.format(size), memory, shared=64, local=64)
            fails(
                "misaligned",
                f"write of {size} bytes at address .* of {space} memory",
                body.format(size // 2),
                memory,
                shared=64,
                local=64,
            )
    vector_load = "ld.global.v4.f32 {%r1, %r2, %r3, %r4}, [%d1];"
    memory = np.zeros(256, np.float64)
    run(f"mad.wide.u32 %d1, %lane, 16, %a0; {vector_load}", memory)
    fails("misaligned", "read of 16 bytes", f"mad.wide.u32 %d1, %lane, 8, %a0; {vector_load}", memory)


def test_uninitialised():
    begin = "mov.u64 %d1, {0}; mov.u32 %r1, 1; mov.u16 %h1, 1;"
    for space in ("shared", "local"):
        at = begin.format(space)
        run(f"{at} st.{space}.u32 [%d1+4], %r1; ld.{space}.u32 %r2, [%d1+4];", shared=64, local=64)
        fails(
            "uninitialised",
            f"{space} memory at byte 8",
            f"{at} st.{space}.u32 [%d1+4], %r1; ld.{space}.u32 %r2, [%d1+8];",
            shared=64,
            local=64,
        )
        # Half of what is read.
        fails(
            "uninitialised",
            f"{space} memory",
            f"{at} st.{space}.u16 [%d1+4], %h1; ld.{space}.u32 %r2, [%d1+4];",
            shared=64,
            local=64,
        )
        run(
            f"{at} st.{space}.u16 [%d1+4], %h1; st.{space}.u16 [%d1+6], %h1; ld.{space}.u32 %r2, [%d1+4];",
            shared=64,
            local=64,
        )
    # Shared memory of a block is new, and each thread has its own local memory.
    lane_0 = "setp.eq.u32 %q1, %lane, 0; setp.eq.u32 %q2, %block, 0;"
    body = f"{begin.format('shared')} {lane_0} @%q2 st.shared.u32 [%d1], %r1; ld.shared.u32 %r2, [%d1];"
    run(body, shared=64)
    fails("uninitialised", r"block \(1, 0, 0\)", body, grid=2, shared=64)
    fails(
        "uninitialised",
        r"thread \(1, 0, 0\)",
        f"{begin.format('local')} {lane_0} @%q1 st.local.u32 [%d1], %r1; ld.local.u32 %r2, [%d1];",
        local=64,
    )


def test_lanes_that_disagree():
    memory = np.zeros(32, np.uint32)
    for space, at in (("global", "mov.b64 %d1, %a0;"), ("shared", "mov.u64 %d1, shared;")):
        for width in ("mov.b64 %d2, %d1;", "and.b32 %r2, %lane, 16; mad.wide.u32 %d2, %r2, 1, %d1;"):
            run(f"{at} {width} mov.u32 %r1, 5; st.{space}.u32 [%d2], %r1;", memory, shared=64)
            run(f"{at} {width} setp.eq.u32 %q1, %lane, 3; @%q1 st.{space}.u32 [%d2], %lane;", memory, shared=64)
            fails("race", "another lane", f"{at} {width} st.{space}.u32 [%d2], %lane;", memory, shared=64)


def test_lanes_that_agree_to_disagree():
    """Strong stores to the same bytes are no race; one of them stays."""
    memory = np.zeros(1, np.uint32)
    for store in ("st.volatile.global.u32", "st.relaxed.gpu.global.u32", "st.relaxed.cta.global.u32"):
        run(f"add.u32 %r1, %lane, 5; {store} [%a0], %r1;", memory)
        assert 5 <= memory[0] < 37


def sectors(addresses: np.ndarray) -> int:
    return len(np.unique(addresses // 32))


def wavefronts(addresses: np.ndarray, size: int) -> int:
    words, group = np.maximum(size, 4), 128 // max(size, 4)
    total = 0
    for lanes in np.split(addresses // words, 32 // group):
        unique = np.unique(lanes)
        total += np.bincount((unique % group).astype(np.int64)).max()
    return int(total)


@settings(max_examples=5)
@given(seeds)
def test_counters(seed):
    random = np.random.default_rng(seed)
    for size, registers in ((2, "%h1"), (4, "%r1"), (8, "{%r1, %r2}"), (16, "{%r1, %r2, %r3, %r4}")):
        suffix = {2: "u16", 4: "u32", 8: "v2.u32", 16: "v4.u32"}[size]
        stride = int(random.choice([1, 2, 3, 8, 33]))
        for order in (np.arange(32), np.full(32, 3), np.arange(32) * stride % 64, random.integers(0, 64, 32)):
            indices = order.astype(np.uint32)
            memory = aligned(64 * 16)
            launch = run(
                f"""
                mad.wide.u32 %d1, %lane, 4, %a1;
                ld.global.u32 %r10, [%d1];
                mov.u32 %r1, 0; mov.u32 %r2, 0; mov.u32 %r3, 0; mov.u32 %r4, 0; mov.u16 %h1, 0;
                mad.wide.u32 %d1, %r10, {size}, %a0;
                st.global.{suffix} [%d1], {registers};
                mov.u32 %r11, shared;
                mad.lo.u32 %r11, %r10, {size}, %r11;
                st.shared.{suffix} [%r11], {registers};
                """,
                memory,
                indices,
                shared=1024,
            )
            places = order * size
            assert counted(launch, ["global_store"], "bytes") == 32 * size
            assert counted(launch, ["global_store"], "sectors") == sectors(places)
            assert counted(launch, ["shared_store"], "bytes") == 32 * size
            assert counted(launch, ["shared_store"], "wavefronts") == wavefronts(places, size)
            assert counted(launch, ["shared_store"], "ideal_wavefronts") == max(1, size // 4)


@pytest.mark.parametrize(
    ("line", "opcode"),
    [
        ("ld.global.b128 %d1, [%a0];", "ld.global.b128"),
        ("ld.global.wonderful.u32 %r1, [%a0];", "ld.global.wonderful.u32"),
        ("st.async.u32 [%a0], %r1;", "st.async.u32"),
        ("ld.global.u32.u32 %r1, [%a0];", "ld.global.u32.u32"),
        ("prefetch.tensormap [%a0];", "prefetch.tensormap"),
    ],
)
def test_unknown(line, opcode):
    with pytest.raises(ValueError, match=f"PTX line .*unknown opcode '{opcode}'"):
        module(kernel(line, 1))
    assert isinstance(module(kernel("ld.global.u32 %r1, [%a0];", 1)), Module)


def test_registers_must_be_wide_enough():
    for line in (
        "ld.global.u64 %r1, [%a0];",
        "ld.global.u32 %h1, [%a0];",
        "ld.global.v2.u32 %r1, [%a0];",
        "ld.global.u32 {%r1, %r2}, [%a0];",
    ):
        with pytest.raises(ValueError, match="PTX line"):
            module(kernel(line, 1))
