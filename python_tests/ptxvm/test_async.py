"""cp.async: bytes arrive at the wait that covers them, and nobody may look before."""

from __future__ import annotations

import numpy as np
import pytest

from lumos_engine.testing.emulation import KernelFault, extension

from .memory_kernel import counted, fails, kernel, module, run

# Each thread copies `size` bytes from a0 to the same place of shared memory, which lies at %r1.
PLACES = "mov.u32 %r1, shared; mad.lo.u32 %r1, %thread, {0}, %r1; mad.wide.u32 %d1, %thread, {0}, %a0; mad.wide.u32 %d2, %thread, {0}, %a1;"
BACK = "ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r1]; st.global.v4.u32 [%d2], {%r4, %r5, %r6, %r7};"
WAIT = "cp.async.commit_group; cp.async.wait_group 0;"


def random_bytes(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, count, np.uint8)


@pytest.mark.parametrize("opcode", ["cp.async.ca.shared.global", "cp.async.ca.shared::cta.global.L2::128B"])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_sizes(opcode, size):
    source, to = random_bytes(64 * size), np.zeros(64 * size, np.uint8)
    load, store = {
        4: ("ld.shared.u32 %r4, [%r1];", "st.global.u32 [%d2], %r4;"),
        8: ("ld.shared.u64 %d4, [%r1];", "st.global.u64 [%d2], %d4;"),
        16: ("ld.shared.v2.u64 {%d4, %d5}, [%r1];", "st.global.v2.u64 [%d2], {%d4, %d5};"),
    }[size]
    for wait in ("cp.async.wait_all;", WAIT):
        run(
            f"{PLACES.format(size)} {opcode} [%r1], [%d1], {size}; {wait} {load} {store}",
            source,
            to,
            block=64,
            shared=64 * size,
        )
        np.testing.assert_array_equal(to, source)


def test_bytes_that_are_not_copied_are_zeros():
    for bytes_from in range(17):
        source, to = random_bytes(512, bytes_from), np.ones(512, np.uint8)
        run(
            f"{PLACES.format(16)} mov.u32 %r2, {bytes_from}; setp.eq.u32 %q1, %lane, 5; @%q1 mov.u32 %r2, 16;"
            f"cp.async.cg.shared.global [%r1], [%d1], 16, %r2; {WAIT} {BACK}",
            source,
            to,
            shared=512,
        )
        expected = source.reshape(32, 16).copy()
        expected[np.arange(32) != 5, bytes_from:] = 0
        np.testing.assert_array_equal(to, expected.reshape(-1))


def test_copies_that_are_ignored():
    source, to = random_bytes(512), np.ones(512, np.uint8)

    def body(last: str, before: str = "", opcode: str = "cp.async.cg.shared.global") -> str:
        copy = f"{opcode} [%r1], [%d1], 16, {last};"
        return f"{PLACES.format(16)} setp.gt.u32 %q1, %lane, 15; {before} {copy} {WAIT} {BACK}"

    run(body("%q1"), source, to, shared=512)
    np.testing.assert_array_equal(to[:256], source[:256])
    assert not to[256:].any()
    # What is not read need not exist.
    half = source[:256].copy()
    run(body("%q1"), half, to, shared=512)
    run(body("%r2", "selp.u32 %r2, 0, 16, %q1;"), half, to, shared=512)
    fails("out of bounds", "read of 16 bytes at buffer 'argument 0'", body("16"), half, to, shared=512)
    # With a policy for the cache.
    run(body("%d9", "mov.u64 %d9, 0;", "cp.async.cg.shared.global.L2::cache_hint"), source, to, shared=512)
    np.testing.assert_array_equal(to, source)


GROUPS = "".join(
    f"cp.async.cg.shared.global [%r1+{512 * i}], [%d1+{512 * i}], 16; {'cp.async.commit_group;' if i < 3 else ''}"
    for i in range(4)
)


@pytest.mark.parametrize("wait", ["wait_group 2", "wait_group 1", "wait_group 0", "wait_all"])
def test_groups(wait):
    """Three groups and a copy in none."""
    covered = {"wait_group 2": 1, "wait_group 1": 2, "wait_group 0": 3, "wait_all": 4}[wait]
    source, to = random_bytes(2048), np.zeros(2048, np.uint8)
    for stage in range(4):
        look = BACK.replace("[%r1]", f"[%r1+{512 * stage}]").replace("[%d2]", f"[%d2+{512 * stage}]")
        body = f"{PLACES.format(16)} {GROUPS} cp.async.{wait}; {look} cp.async.wait_all;"
        if stage < covered:
            run(body, source, to, shared=2048)
            np.testing.assert_array_equal(to[512 * stage :][:512], source[512 * stage :][:512])
        else:
            fails("race", "cp.async that has not been waited for", body, source, to, shared=2048)


@pytest.mark.parametrize(
    "access",
    [
        "ld.shared.u32 %r4, [%r1+4];",
        "st.shared.u32 [%r1+4], %r1;",
        "cp.async.ca.shared.global [%r1+8], [%d1], 8;",
        "atom.shared.add.u32 %r4, [%r1], %r1;",
    ],
)
def test_bytes_on_their_way_are_taboo(access):
    source = random_bytes(512)
    body = f"{PLACES.format(16)} cp.async.cg.shared.global [%r1], [%d1], 16; {{0}} {access} cp.async.wait_all;"
    run(body.format(WAIT), source, source, shared=512)
    fails("race", "cp.async that has not been waited for", body.format(""), source, source, shared=512)
    fails(
        "race",
        "cp.async that has not been waited for",
        body.format("cp.async.commit_group; cp.async.wait_group 1;"),
        source,
        source,
        shared=512,
    )


def test_groups_are_of_each_lane():
    """Lanes 16... commit once more than the others, so the same wait covers more of theirs."""
    source, to = random_bytes(512), np.zeros(512, np.uint8)
    body = f"""
        {PLACES.format(16)}
        cp.async.cg.shared.global [%r1], [%d1], 16;
        cp.async.commit_group;
        setp.gt.u32 %q1, %lane, 15;
        @%q1 cp.async.commit_group;
        cp.async.wait_group 1;
        {{0}} ld.shared.u32 %r4, [%r1];
        cp.async.wait_all;
    """
    run(body.format("@%q1"), source, to, shared=512)
    fails("race", "not been waited for.*thread \\(0, 0, 0\\)", body.format("@!%q1"), source, to, shared=512)


def test_lanes_wait_for_themselves():
    source = random_bytes(512)
    copy = f"{PLACES.format(16)} cp.async.cg.shared.global [%r1], [%d1], 16; cp.async.commit_group;"
    body = f"{copy} setp.gt.u32 %q1, %lane, 15; @%q1 cp.async.wait_group 0; {{0}} ld.shared.u32 %r4, [%r1]; cp.async.wait_all;"
    run(body.format("@%q1"), source, source, shared=512)
    fails("race", r"not been waited for.*thread \(0, 0, 0\)", body.format(""), source, source, shared=512)


def test_unfinished():
    source = random_bytes(512)
    body = f"{PLACES.format(16)} cp.async.cg.shared.global [%r1], [%d1], 16; {{0}}"
    run(body.format(WAIT), source, source, shared=512)
    for rest in (
        "",
        "cp.async.commit_group;",
        "cp.async.commit_group; cp.async.wait_group 1;",
        "cp.async.wait_group 0;",
    ):
        with pytest.raises(KernelFault, match="without waiting for a cp"):
            run(body.format(rest), source, source, shared=512)


# Two warps: each copies its half, then looks at the other's.
OTHER = "xor.b32 %r2, %thread, 32; mov.u32 %r3, shared; mad.lo.u32 %r3, %r2, 16, %r3; ld.shared.v4.u32 {%r4, %r5, %r6, %r7}, [%r3]; st.global.v4.u32 [%d2], {%r4, %r5, %r6, %r7};"


@pytest.mark.parametrize("first", [0, 1])
def test_other_warps_need_a_barrier(first):
    source, to = random_bytes(1024), np.zeros(1024, np.uint8)
    copy = f"{PLACES.format(16)} cp.async.cg.shared.global [%r1], [%d1], 16; cp.async.commit_group;"
    run(f"{copy} cp.async.wait_group 0; bar.sync 0; {OTHER}", source, to, block=64, shared=1024)
    np.testing.assert_array_equal(to.reshape(2, 512), source.reshape(2, 512)[::-1])
    # The barrier must lie behind the wait.
    fails(
        "race|uninitialised",
        "cp.async|no barrier|nobody",
        f"{copy} bar.sync 0; cp.async.wait_group 0; {OTHER}",
        source,
        to,
        block=64,
        shared=1024,
        permute=True,
        seed=first,
    )
    fails(
        "race|uninitialised",
        "",
        f"{copy} cp.async.wait_group 0; {OTHER}",
        source,
        to,
        block=64,
        shared=1024,
        permute=True,
        seed=first,
    )


def test_one_warp_copies_for_another():
    """Warp 0 copies, warp 1 reads; or warp 0 reads what warp 1 copies over."""
    begin = "mov.u32 %r1, shared; mad.lo.u32 %r1, %lane, 16, %r1; mad.wide.u32 %d1, %lane, 16, %a0; setp.eq.u32 %q0, %warp, 0;"
    copy = f"cp.async.cg.shared.global [%r1], [%d1], 16; {WAIT}"
    read = "ld.shared.u32 %r4, [%r1];"
    body = f"{begin} @!%q0 bra NEXT; {copy} NEXT: {{0}} @!%q0 {read}"
    run(body.format("bar.sync 0;"), random_bytes(512), block=64, shared=512)
    fails("race", "by warp 1, after a write by warp 0", body.format(""), random_bytes(512), block=64, shared=512)
    body = f"{begin} st.shared.u32 [%r1], %warp; {read} {{0}} @%q0 bra END; {copy} END:".replace(
        "st.", "@%q0 st."
    ).replace("ld.", "@%q0 ld.")
    run(body.format("bar.sync 0;"), random_bytes(512), block=64, shared=512)
    fails("race", "by warp 1, after a (read|write) by warp 0", body.format(""), random_bytes(512), block=64, shared=512)
    # A copy repeats no stores.
    body = f"{begin} @%q0 st.shared.u32 [%r1], 0; {{0}} @%q0 bra END; {copy} END:"
    options = {"block": 64, "shared": 512, "allow_repeated_stores": True}
    run(body.format("bar.sync 0;"), random_bytes(512), **options)
    fails("race", "by warp 1, after a write by warp 0", body.format(""), random_bytes(512), **options)


RING = """
    {places}
    mov.u32 %r10, 0;
LOOP:
    cp.async.cg.shared.global [%r1], [%d1], 16;
    cp.async.commit_group;
    cp.async.wait_group 0;
    bar.sync 0;
    {other}
    {barrier}
    add.u32 %r10, %r10, 1;
    setp.lt.u32 %q1, %r10, 3;
    @%q1 bra LOOP;
"""


def test_a_stage_is_refilled_too_early():
    source, to = random_bytes(1024), np.zeros(1024, np.uint8)
    for seed in range(3):
        arguments = {"block": 64, "shared": 1024, "permute": True, "seed": seed}
        run(RING.format(places=PLACES.format(16), other=OTHER, barrier="bar.sync 0;"), source, to, **arguments)
        fails(
            "race",
            "no barrier|not been waited for",
            RING.format(places=PLACES.format(16), other=OTHER, barrier=""),
            source,
            to,
            **arguments,
        )


def test_each_synchronisation_is_needed():
    """Leaving out any of them is noticed."""
    body = RING.format(places=PLACES.format(16), other=OTHER, barrier="bar.sync 0;")
    made = module(kernel(body, 2, shared=1024))
    found = made.synchronisations("kernel")
    assert [s["opcode"] for s in found] == ["cp.async.commit_group", "cp.async.wait_group", "bar.sync", "bar.sync"]
    for synchronisation in found:
        fails(
            "race|uninitialised",
            "",
            body,
            random_bytes(1024),
            random_bytes(1024),
            block=64,
            shared=1024,
            skip_kernel="kernel",
            skip_instruction=synchronisation["index"],
        )
    assert extension().launches() == []


def test_other_checks():
    source = random_bytes(512)
    body = f"{PLACES.format(16)} cp.async.ca.shared.global [%r1+{{0}}], [%d1+{{1}}], {{2}}; {WAIT}"
    arrays = (source, source)
    run(body.format(0, 0, 16), *arrays, shared=512)
    fails("misaligned", "write of 16 bytes at address .* of shared", body.format(8, 0, 16), *arrays, shared=600)
    fails(
        "misaligned",
        "read of 16 bytes at address .* of global",
        body.format(0, 8, 16),
        random_bytes(1024),
        source,
        shared=512,
    )
    fails("out of bounds", "write of 16 bytes at byte 512 of shared", body.format(16, 0, 16), *arrays, shared=512)
    fails("out of bounds", "read of 16 bytes at buffer", body.format(0, 16, 16), *arrays, shared=512)
    fails("out of bounds", "copy of 16 bytes from 17", body.format(0, 0, "16, 17"), *arrays, shared=512)


def test_counters():
    launch = run(
        f"{PLACES.format(16)} cp.async.cg.shared.global [%r1], [%d1], 16; {WAIT}",
        random_bytes(512),
        random_bytes(512),
        shared=512,
    )
    assert counted(launch, ["async_copy"], "instructions") == 3
    assert counted(launch, ["async_copy"], "bytes") == 512
    assert counted(launch, ["async_copy"], "wavefronts") == counted(launch, ["async_copy"], "ideal_wavefronts") == 4
    assert 16 <= counted(launch, ["async_copy"], "sectors") <= 17


@pytest.mark.parametrize(
    "line",
    [
        "cp.async.shared.global [%r1], [%a0], 16;",
        "cp.async.bulk.shared::cluster.global [%r1], [%a0], 16, [%r2];",
        "cp.reduce.async [%r1], [%a0], 16;",
        "cp.async.mbarrier.arrive.b64 [%r1];",
        "cp.async.wait_some 3;",
    ],
)
def test_unknown(line):
    with pytest.raises(ValueError, match=r"PTX line .*unknown opcode 'cp"):
        module(kernel(line, 1))


@pytest.mark.parametrize(
    "line", ["cp.async.cg.shared.global [%r1], [%a0], 8;", "cp.async.ca.shared.global [%r1], [%a0], 12;"]
)
def test_sizes_that_do_not_exist(line):
    with pytest.raises(ValueError, match=r"PTX line .*cannot copy that many bytes"):
        module(kernel(line, 1))
