"""The functions of the CUDA runtime that compiled host code calls, called as it calls them; fat binaries made by hand."""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import struct
import subprocess
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from lumos_engine.testing import emulation

extension = emulation.extension()
runtime = ctypes.CDLL(extension.__file__)

SUCCESS, INVALID_VALUE, INVALID_DEVICE_FUNCTION, INVALID_DEVICE, LAUNCH_FAILURE = 0, 1, 98, 101, 719
MAX_DYNAMIC_SHARED_BYTES = 8  # cudaFuncAttribute
ELF, PTX = 2, 1  # kinds of entry

KERNEL = """
.version 8.0
.target sm_80
.address_size 64
.visible .entry fill(.param .u64 out, .param .u32 value)
{
  .reg .b32 %r<3>;
  .reg .b64 %rd<4>;
  .shared .align 4 .b8 kept[256];
  ld.param.u64 %rd1, [out];
  ld.param.u32 %r1, [value];
  mov.u32 %r2, %tid.x;
  mul.wide.u32 %rd2, %r2, 4;
  add.s64 %rd3, %rd1, %rd2;
  st.global.u32 [%rd3], %r1;
  ret;
}
"""


class Dim3(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint) for name in "xyz"]


class Wrapper(ctypes.Structure):
    _fields_ = [
        ("magic", ctypes.c_int),
        ("version", ctypes.c_int),
        ("container", ctypes.c_char_p),
        ("unused", ctypes.c_void_p),
    ]


def entry(kind: int, contents: bytes, compressed_bytes: int = 0) -> bytes:
    contents += bytes(-len(contents) % 8 + 8)
    return struct.pack("<HHIQI", kind, 0x101, 64, len(contents), compressed_bytes) + bytes(44) + contents


def fat_binary(*entries: bytes) -> Wrapper:
    contents = b"".join(entries)
    container = struct.pack("<IHHQ", 0xBA55ED50, 1, 16, len(contents)) + contents
    return Wrapper(0x466243B1, 1, ctypes.cast(ctypes.create_string_buffer(container), ctypes.c_char_p), None)


def internal(name: str) -> Callable[..., int]:
    """``__cuda<name>``, which a class would take for a name of its own."""
    return runtime[f"__cuda{name}"]


stubs = itertools.count(1 << 40)  # addresses that nobody has


class Host:
    """What a host object does while a process starts and ends."""

    def __init__(self, binary: Wrapper, kernel: str = "fill") -> None:
        self.binary = binary  # the runtime keeps its address
        register = internal("RegisterFatBinary")
        register.restype = ctypes.c_void_p
        self.handle = ctypes.c_void_p(register(ctypes.byref(binary)))
        self.stub = ctypes.c_void_p(next(stubs))
        self.name = kernel.encode()
        internal("RegisterFunction")(self.handle, self.stub, self.name, self.name, -1, *[None] * 5)
        internal("RegisterFatBinaryEnd")(self.handle)

    def launch(self, out: np.ndarray, value: int, block: int = 32, shared_bytes: int = 0) -> int:
        """``fill<<<1, block, shared_bytes>>>(out, value)``, as nvcc writes it."""
        kernel, stream = ctypes.c_void_p(), ctypes.c_void_p()
        if status := internal("GetKernel")(ctypes.byref(kernel), self.stub):
            return status
        internal("PushCallConfiguration")(Dim3(1, 1, 1), Dim3(block, 1, 1), ctypes.c_size_t(shared_bytes), None)
        grid, threads, shared = Dim3(), Dim3(), ctypes.c_size_t()
        internal("PopCallConfiguration")(*map(ctypes.byref, (grid, threads, shared, stream)))
        values = ctypes.c_uint64(out.ctypes.data), ctypes.c_uint32(value)
        arguments = (ctypes.c_void_p * 2)(*map(ctypes.addressof, values))
        return internal("LaunchKernel")(kernel, grid, threads, arguments, shared, stream)

    def allow_shared(self, num_bytes: int) -> int:
        return runtime.cudaFuncSetAttribute(self.stub, MAX_DYNAMIC_SHARED_BYTES, num_bytes)


@pytest.fixture(autouse=True)
def _fresh_runtime() -> Iterator[None]:
    yield
    extension.take_fault()
    extension.clear_buffers()
    runtime.cudaSetDevice(0)


@pytest.fixture
def out() -> np.ndarray:
    memory = np.zeros(32, np.uint32)
    extension.add_buffer(memory.ctypes.data, memory.nbytes, "out")
    return memory


@pytest.fixture
def host() -> Iterator[Host]:
    found = Host(fat_binary(entry(PTX, KERNEL.encode())))
    yield found
    internal("UnregisterFatBinary")(found.handle)  # again is no harm


def device_attribute(attribute: int) -> int:
    value = ctypes.c_int()
    assert runtime.cudaDeviceGetAttribute(ctypes.byref(value), attribute, 0) == SUCCESS
    return value.value


# ------------------------------------------------------------------------------------------------------- launches


def test_a_registered_kernel_runs(host: Host, out: np.ndarray) -> None:
    assert host.launch(out, 7) == SUCCESS and runtime.cudaGetLastError() == SUCCESS
    assert (out == 7).all()


def test_a_function_that_nobody_registered(host: Host, out: np.ndarray) -> None:
    internal("UnregisterFatBinary")(host.handle)
    assert host.launch(out, 7) == INVALID_DEVICE_FUNCTION
    assert runtime.cudaLaunchKernel(host.stub, Dim3(1, 1, 1), Dim3(1, 1, 1), None, ctypes.c_size_t(0), None) != SUCCESS


def test_a_fault_fails_this_launch_and_those_after_it_until_it_is_taken(host: Host, out: np.ndarray) -> None:
    assert host.launch(out, 7, block=64) == LAUNCH_FAILURE
    assert host.launch(out, 8) == LAUNCH_FAILURE and (out[:32] != 8).all()
    assert runtime.cudaPeekAtLastError() == LAUNCH_FAILURE
    assert runtime.cudaGetLastError() == LAUNCH_FAILURE and runtime.cudaGetLastError() == SUCCESS
    fault = extension.take_fault()
    assert "out of bounds" in fault and "kernel fill" in fault and "thread (32, 0, 0)" in fault
    assert extension.take_fault() == ""
    assert host.launch(out, 8) == SUCCESS and (out == 8).all()


def test_a_launch_that_no_gpu_takes(host: Host, out: np.ndarray) -> None:
    assert host.launch(out, 7, block=2000) == INVALID_VALUE
    assert "2000" in extension.take_fault()


# -------------------------------------------------------------------------------------------------- shared memory


def test_more_than_48_kib_of_shared_memory_must_be_asked_for(host: Host, out: np.ndarray) -> None:
    limit = 48 * 1024 - 256  # the kernel has 256 bytes of its own
    assert host.launch(out, 7, shared_bytes=limit) == SUCCESS
    assert host.launch(out, 7, shared_bytes=limit + 1) == INVALID_VALUE
    assert f"{limit + 1} bytes of dynamic shared memory" in extension.take_fault()
    assert host.allow_shared(limit + 1) == SUCCESS
    assert host.launch(out, 7, shared_bytes=limit + 1) == SUCCESS
    assert host.launch(out, 7, shared_bytes=limit + 2) == INVALID_VALUE


def test_what_is_asked_for_holds_for_one_device(host: Host, out: np.ndarray) -> None:
    assert host.allow_shared(60000) == SUCCESS
    assert runtime.cudaSetDevice(1) == SUCCESS
    assert host.launch(out, 7, shared_bytes=60000) == INVALID_VALUE
    assert "device 1" in extension.take_fault()


def test_no_more_can_be_asked_for_than_a_block_can_have(host: Host) -> None:
    most = device_attribute(97) - 256
    assert host.allow_shared(most) == SUCCESS
    assert host.allow_shared(most + 1) == INVALID_VALUE == runtime.cudaGetLastError()
    assert host.allow_shared(-1) == INVALID_VALUE


@pytest.mark.parametrize(("threads", "shared_bytes", "blocks"), [(32, 0, 32), (1024, 0, 2), (128, 40000, 4)])
def test_blocks_on_a_multiprocessor(host: Host, threads: int, shared_bytes: int, blocks: int) -> None:
    found = ctypes.c_int()
    ask = runtime.cudaOccupancyMaxActiveBlocksPerMultiprocessor
    assert ask(ctypes.byref(found), host.stub, threads, ctypes.c_size_t(shared_bytes)) == SUCCESS
    assert found.value == blocks


# --------------------------------------------------------------------------------------------------------- device


def test_there_are_two_devices_of_compute_capability_8_0() -> None:
    count, current = ctypes.c_int(), ctypes.c_int()
    assert runtime.cudaGetDeviceCount(ctypes.byref(count)) == SUCCESS and count.value == 2
    assert [runtime.cudaSetDevice(i) for i in (1, 2, -1)] == [SUCCESS, INVALID_DEVICE, INVALID_DEVICE]
    assert runtime.cudaGetDevice(ctypes.byref(current)) == SUCCESS and current.value == 1
    assert (device_attribute(75), device_attribute(76)) == (8, 0)
    assert runtime.cudaDeviceGetAttribute(ctypes.byref(current), 75, 2) == INVALID_DEVICE
    assert runtime.cudaDeviceGetAttribute(ctypes.byref(current), 9999, 0) == INVALID_VALUE


def test_errors_have_words() -> None:
    runtime.cudaGetErrorString.restype = ctypes.c_char_p
    words = [runtime.cudaGetErrorString(status) for status in (0, 1, 9, 98, 101, 719, 12345)]
    assert len(set(words)) == len(words) and all(words)


# ---------------------------------------------------------------------------------------------------- fat binaries


def test_ptx_is_found_behind_machine_code(out: np.ndarray) -> None:
    host = Host(fat_binary(entry(ELF, b"\x7fELF not for us"), entry(PTX, KERNEL.encode())))
    assert host.launch(out, 9) == SUCCESS and (out == 9).all()


@pytest.mark.parametrize(
    ("binary", "message"),
    [
        (fat_binary(entry(PTX, KERNEL.encode(), compressed_bytes=100)), "compressed; compile with nvcc --no-compress"),
        (fat_binary(entry(ELF, b"\x7fELF")), "no PTX"),
        (fat_binary(), "no PTX"),
        (fat_binary(entry(PTX, b".version 8.0\n.target sm_80\n.address_size 64\n")), "no kernel 'fill'"),
        (fat_binary(entry(PTX, KERNEL.replace("st.global", "st.nowhere").encode())), "PTX line 15"),
        (Wrapper(1, 1, b"", None), "magic number"),
    ],
)
def test_what_a_fat_binary_cannot_give_is_said_at_the_first_launch(
    binary: Wrapper, message: str, out: np.ndarray
) -> None:
    assert Host(binary).launch(out, 7) == INVALID_VALUE
    assert message in extension.take_fault()


SAMPLE = r"""
#include <cuda_bf16.h>
__constant__ float table[4] = {1, 2, 3, 4};
template <class T>
__global__ void reverse(const T* x, T* y, int n) {
  extern __shared__ float kept[];
  __shared__ float one[32];
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  kept[threadIdx.x] = i < n ? float(x[i]) : 0.f;
  if (threadIdx.x < 32) one[threadIdx.x] = 1;
  __syncthreads();
  if (i < n) y[i] = T(kept[blockDim.x - 1 - threadIdx.x] + table[i & 3] + one[0]);
}
extern "C" int reverse_float(const float* x, float* y, int n, int shared_bytes) {
  cudaFuncSetAttribute(reverse<float>, cudaFuncAttributeMaxDynamicSharedMemorySize, 65536);
  reverse<<<n / 128, 128, shared_bytes>>>(x, y, n);
  return cudaGetLastError();
}
extern "C" int reverse_bf16(const __nv_bfloat16* x, __nv_bfloat16* y, int n) {
  reverse<<<n / 128, 128, 512>>>(x, y, n);
  return cudaGetLastError();
}
"""


WHEELS = Path(sysconfig.get_path("platlib")) / "nvidia" / "cu13" / "bin"
NVCC = os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=WHEELS)


@pytest.mark.skipif(not NVCC, reason="no nvcc")
def test_what_nvcc_compiles_runs(tmp_path: Path) -> None:
    (tmp_path / "sample.cu").write_text(SAMPLE)
    target = ["-gencode", "arch=compute_80,code=compute_80", "-lineinfo", "--no-compress", "--cudart", "none"]
    options = ["-std=c++17", "-Xcompiler", "-fPIC", *target, "-c", "sample.cu", "-o", "sample.o"]
    subprocess.run([NVCC, *options], cwd=tmp_path, check=True)
    subprocess.run(["g++", "-shared", "sample.o", extension.__file__, "-o", "sample.so"], cwd=tmp_path, check=True)
    sample = ctypes.CDLL(str(tmp_path / "sample.so"))
    x, y = np.arange(256, dtype=np.float32), np.zeros(256, np.float32)
    for array in (x, y):
        extension.add_buffer(array.ctypes.data, array.nbytes, "array")

    def pointers(*arrays: np.ndarray) -> list[ctypes.c_void_p]:
        return [ctypes.c_void_p(array.ctypes.data) for array in arrays]

    expected = x.reshape(2, 128)[:, ::-1].ravel() + np.tile([2, 3, 4, 5], 64)
    for shared_bytes in (512, 65536):
        y[:] = 0
        assert sample.reverse_float(*pointers(x, y), 256, shared_bytes) == SUCCESS, extension.take_fault()
        assert (y == expected).all()
    assert sample.reverse_float(*pointers(x, y), 256, 508) == LAUNCH_FAILURE
    assert "sample.cu:9" in extension.take_fault()

    halves = np.arange(128, dtype=np.float32).view(np.uint32) >> 16  # exact in bfloat16
    given, found = halves.astype(np.uint16), np.zeros(128, np.uint16)
    for array in (given, found):
        extension.add_buffer(array.ctypes.data, array.nbytes, "array")
    assert sample.reverse_bf16(*pointers(given, found), 128) == SUCCESS, extension.take_fault()
    values = (found.astype(np.uint32) << 16).view(np.float32)
    assert (values == np.arange(128)[::-1] + np.tile([2, 3, 4, 5], 32)).all()
