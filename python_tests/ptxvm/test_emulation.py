"""Kernels as Python launches them: arguments, buffers, faults, options, counters; operations on the machine."""

from __future__ import annotations

import importlib
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from lumos_engine import ops
from lumos_engine.ops import _registry as registry
from lumos_engine.testing import emulation, ptxvm, tolerances
from lumos_engine.testing.emulation import KernelFault, Module

extension = emulation.extension()
HAS_KERNELS = pytest.mark.skipif(not extension.cuda_kernels(), reason="built without nvcc or without CUDA kernels")

TYPES = {"u8": torch.uint8, "s16": torch.int16, "s32": torch.int32, "s64": torch.int64, "f32": torch.float32, "f64": torch.float64}  # fmt: skip


def text(body: str, parameters: str = "") -> str:
    return (
        ".version 8.0\n.target sm_80\n.address_size 64\n"
        f".visible .entry run({parameters})\n{{\n"
        ".reg .pred %p<9>; .reg .b16 %rs<9>; .reg .b32 %r<9>; .reg .b64 %rd<9>; .reg .f32 %f<9>; .reg .f64 %fd<9>;\n"
        f".shared .align 4 .b8 kept[64];\n{body}\nret;\n}}\n"
    )


STORE_INDEX = text(
    """
ld.param.u64 %rd1, [out];
mov.u32 %r1, %ctaid.x;
mov.u32 %r2, %ntid.x;
mov.u32 %r3, %tid.x;
mad.lo.u32 %r4, %r1, %r2, %r3;
mul.wide.u32 %rd2, %r4, 4;
add.s64 %rd3, %rd1, %rd2;
st.global.u32 [%rd3], %r4;
""",
    ".param .u64 out",
)


# ------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize(
    ("kind", "register", "value"),
    [("u8", "%rs1", 200), ("s16", "%rs1", -3), ("s32", "%r1", -(2**31)), ("s64", "%rd2", -5), ("f32", "%f1", 0.1), ("f64", "%fd1", 0.1)],
)  # fmt: skip
def test_numbers_get_the_size_of_their_parameter(kind: str, register: str, value: float) -> None:
    body = f"ld.param.u64 %rd1, [out];\nld.param.{kind} {register}, [value];\nst.global.{kind} [%rd1], {register};"
    out = torch.zeros(1, dtype=TYPES[kind])
    Module(text(body, f".param .u64 out, .param .{kind} value")).launch("run", 1, 1, out, value)
    assert out.item() == torch.tensor(value, dtype=TYPES[kind]).item()


def test_bytes_are_passed_as_they_are() -> None:
    body = "ld.param.u64 %rd1, [out];\nld.param.u32 %r1, [packed+4];\nst.global.u32 [%rd1], %r1;"
    out = torch.zeros(1, dtype=torch.int32)
    module = Module(text(body, ".param .u64 out, .param .align 4 .b8 packed[12]"))
    module.launch("run", 1, 1, out, bytes(range(12)))
    assert out.item() == 0x07060504


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "takes 1 arguments, not 0"),
        ((b"1234",), "argument 0 of kernel run has 4 bytes; its parameter has 8"),
    ],
)
def test_wrong_arguments_are_named(arguments: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Module(STORE_INDEX).launch("run", 1, 32, *arguments)


@pytest.mark.parametrize("value", [256, -129])
def test_a_number_that_its_parameter_cannot_hold(value: int) -> None:
    with pytest.raises(OverflowError):
        Module(text("", ".param .u8 value")).launch("run", 1, 1, value)


@pytest.mark.parametrize(
    ("given", "recorded"), [(6, (6, 1, 1)), ((6,), (6, 1, 1)), ((3, 2), (3, 2, 1)), ((1, 2, 3), (1, 2, 3))]
)
def test_extents_of_a_launch(given: int | tuple[int, ...], recorded: tuple[int, int, int]) -> None:
    extension.clear_launches()
    Module(text("")).launch("run", given, given, shared_bytes=16)
    (launch,) = extension.launches()
    assert launch["grid"] == launch["block"] == recorded
    assert launch["dynamic_shared_bytes"] == 16 and launch["static_shared_bytes"] == 64


@pytest.mark.parametrize("extents", [(1, 1, 1, 1), 0, (1, 0), (1, -1)])
def test_extents_that_no_launch_has(extents: int | tuple[int, ...]) -> None:
    with pytest.raises((ValueError, TypeError)):
        Module(text("")).launch("run", extents, 1)


# --------------------------------------------------------------------------------------------- errors and faults


def test_kernels_and_their_synchronisation_are_listed() -> None:
    module = Module(text("bar.sync 0;\nmembar.gl;"))
    assert module.kernels == ["run"]
    assert [found["opcode"] for found in module.synchronisations("run")] == ["bar.sync", "membar.gl"]
    with pytest.raises(ValueError, match="no kernel 'walk'"):
        module.synchronisations("walk")


def test_text_that_is_no_ptx() -> None:
    with pytest.raises(ValueError, match=r"PTX line 8: .*foo\.b32"):
        Module(text("foo.b32 %r1, %r2;"))


def test_only_the_bytes_of_the_arguments_may_be_touched() -> None:
    module, out = Module(STORE_INDEX), torch.full((64,), -1, dtype=torch.int32)
    module.launch("run", 2, 32, out)
    assert torch.equal(out, torch.arange(64, dtype=torch.int32))
    with pytest.raises(KernelFault, match=r"out of bounds.*kernel run.*block \(1, 0, 0\), thread \(28, 0, 0\)"):
        module.launch("run", 2, 32, out[:60])
    every_other = out[:63].as_strided((32,), (2,))  # reaches from the first byte to the end of the last element
    module.launch("run", 1, 63, every_other)
    with pytest.raises(KernelFault, match="out of bounds"):
        module.launch("run", 1, 64, every_other)


def test_a_buffer_ends_with_its_launch() -> None:
    module, out = Module(STORE_INDEX), torch.zeros(32, dtype=torch.int32)
    module.launch("run", 1, 32, out)
    with pytest.raises(KernelFault, match="out of bounds"):
        module.launch("run", 1, 32, out.data_ptr())


def test_a_fault_is_a_runtime_error_and_the_machine_goes_on() -> None:
    module, out = Module(STORE_INDEX), torch.zeros(32, dtype=torch.int32)
    assert issubclass(KernelFault, RuntimeError)
    with pytest.raises(KernelFault):
        module.launch("run", 1, 64, out)
    module.launch("run", 1, 32, out)
    assert torch.equal(out, torch.arange(32, dtype=torch.int32))


def test_without_the_extension_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str, package: str | None = None) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(RuntimeError, match=r"No module named 'lumos_engine._C_ptxvm'.*make test"):
        Module(STORE_INDEX)


# -------------------------------------------------------------------------------------------- options and counters


def test_options_hold_until_they_are_set_again() -> None:
    module = Module(text("again:\nbra again;"))
    extension.set_options(max_instructions=100)
    with pytest.raises(KernelFault):
        module.launch("run", 1, 1)
    extension.set_options()
    with pytest.raises(TypeError):
        extension.set_options(speed=11)


def test_a_race_is_found_unless_nobody_looks() -> None:
    module = Module(text("mov.u32 %r1, kept;\nst.shared.u32 [%r1], %r1;"))
    with pytest.raises(KernelFault, match="race"):
        module.launch("run", 1, 64)
    extension.set_options(check_races=False)
    try:
        module.launch("run", 1, 64)
    finally:
        extension.set_options()


def test_a_barrier_can_be_left_out() -> None:
    module = Module(
        text(
            """
mov.u32 %r1, kept;
mov.u32 %r2, %tid.x;
setp.eq.u32 %p1, %r2, 0;
@%p1 st.shared.u32 [%r1], %r1;
bar.sync 0;
ld.shared.u32 %r3, [%r1];
"""
        )
    )
    module.launch("run", 1, 64)
    (barrier,) = module.synchronisations("run")
    extension.set_options(skip_kernel="run", skip_instruction=barrier["index"])
    try:
        with pytest.raises(KernelFault, match="race"):
            module.launch("run", 1, 64)
    finally:
        extension.set_options()


def test_counters_of_a_launch() -> None:
    extension.clear_launches()
    Module(STORE_INDEX).launch("run", 2, 40, torch.zeros(80, dtype=torch.int32))
    (launch,) = extension.launches()
    assert launch["kernel"] == "run" and launch["seconds"] > 0
    stores = [line for line in launch["lines"] if line["class"] == "global_store"]
    assert sum(line["instructions"] for line in stores) == 4  # two warps in each of two blocks
    assert sum(line["lanes"] for line in stores) == 80
    assert sum(line["bytes"] for line in stores) == 320
    assert sum(line["sectors"] for line in stores) >= 10
    extension.clear_launches()
    assert extension.launches() == []


def test_other_threads_run_during_a_launch() -> None:
    spin = "mov.u32 %r1, 0;\nagain:\nadd.u32 %r1, %r1, 1;\nsetp.lt.u32 %p1, %r1, 3000000;\n@%p1 bra again;"
    module, began = Module(text(spin)), threading.Event()
    counted = []

    def launch() -> None:
        began.set()
        module.launch("run", 1, 1)
        counted.append(None)

    thread = threading.Thread(target=launch)
    thread.start()
    began.wait()
    turns = 0
    while not counted:
        turns += 1
    thread.join()
    assert turns > 1000


# ------------------------------------------------------------------------------------------------------ operations


def rotation() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(40, 3, 64, generator=generator)
    return x, torch.randint(0, 1000, (40, 3), dtype=torch.int32, generator=generator)


@HAS_KERNELS
@pytest.mark.parametrize("seed", [None, 5])
def test_an_operation_runs_on_the_machine(seed: int | None) -> None:
    x, positions = rotation()
    expected = ops.mm_rope(x, positions)
    with ptxvm(seed) as machine:
        found = ops.mm_rope(x, positions, backend="cuda")
    torch.testing.assert_close(found, expected, **tolerances.CLOSED_FORM)
    (launch,) = machine.launches
    assert "mm_rope" in launch["kernel"] and any("mm_rope" in line["file"] for line in launch["lines"])
    with pytest.raises((RuntimeError, ValueError), match="mm_rope: "):
        ops.mm_rope(x, positions, backend="cuda")


@HAS_KERNELS
def test_a_fault_in_an_operation_has_its_whole_text() -> None:
    x, _ = rotation()
    pages, slots = [torch.zeros(1, 40, 3, 64) for _ in range(2)], torch.arange(40)
    slots[39] = 0  # which the caller must not do: tokens of two blocks write there
    with ptxvm():
        with pytest.raises(KernelFault, match=r"race.*kernel \S*paged_write\S*, .*thread \(\d+, \d+, \d+\)"):
            ops.paged_write(x, x, *pages, slots)
        slots[39] = 39
        ops.paged_write(x, x, *pages, slots)
    assert torch.equal(pages[0][0], x)
    slots[39] = 0
    with ptxvm(check_races=False):
        ops.paged_write(x, x, *pages, slots)


@HAS_KERNELS
def test_the_tensors_of_an_operation_are_buffers_as_long_as_it_runs() -> None:
    x, positions = rotation()
    with ptxvm():
        rotated = ops.mm_rope(x, positions)
        for tensor in (x, positions, rotated):
            with pytest.raises(KernelFault, match="out of bounds"):
                Module(STORE_INDEX).launch("run", 1, 1, tensor.data_ptr())


@HAS_KERNELS
def test_what_the_runtime_refuses_is_a_runtime_error() -> None:
    x, positions = rotation()
    views = [registry.view(tensor) for tensor in (x, positions, ops.inverse_frequencies(64), torch.zeros_like(x))]
    with pytest.raises(RuntimeError, match="invalid device ordinal"):
        extension.mm_rope(*views, False, False, (7, 0, 1))


PRELOADED = """
import ctypes
ctypes.CDLL({library!r}, ctypes.RTLD_GLOBAL)
import torch
from lumos_engine import ops
from lumos_engine.testing import ptxvm
with ptxvm():
    ops.mm_rope(torch.ones(1, 1, 32), torch.ones(1, 3, dtype=torch.int32))
"""


@HAS_KERNELS
def test_another_runtime_in_the_process_is_not_called(tmp_path: Path) -> None:
    """torch brings one along, where it is built for CUDA."""
    names = ("__cudaRegisterFatBinary", "__cudaGetKernel", "__cudaPushCallConfiguration", "__cudaLaunchKernel", "cudaGetDevice")  # fmt: skip
    functions = "\n".join(f"void {name}(void) {{ abort(); }}" for name in names)
    (tmp_path / "other.c").write_text(f"#include <stdlib.h>\n{functions}\n")
    library = str(tmp_path / "other.so")
    subprocess.run(["gcc", "-shared", "-fPIC", "other.c", "-o", library], cwd=tmp_path, check=True)
    subprocess.run([sys.executable, "-c", PRELOADED.format(library=library)], check=True)
