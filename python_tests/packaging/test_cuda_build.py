"""The build of the CUDA kernels, and the tools of bench/ for them."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lumos_engine._C as extension

ROOT = Path(__file__).parents[2]
_spec = importlib.util.spec_from_file_location("ptxas_resources", ROOT / "bench" / "ptxas_resources.py")
assert _spec and _spec.loader
resources = importlib.util.module_from_spec(_spec)
sys.modules[_spec.name] = resources  # its dataclass looks itself up
_spec.loader.exec_module(resources)

NVCC = resources.find_nvcc()
NEEDS_NVCC = pytest.mark.skipif(not NVCC, reason="no nvcc")


# ------------------------------------------------------------------------------------------------------ extension


def test_the_extension_carries_all_kernels_or_none() -> None:
    of_sources = sorted(source.stem for source in ROOT.glob("csrc/ops/*/*.cu"))
    assert extension.cuda_kernels() in ([], of_sources)


def test_the_extension_keeps_its_cuda_runtime_to_itself() -> None:
    library = ctypes.CDLL(extension.__file__)
    assert hasattr(library, "lumos_cpu_mm_rope")
    assert not hasattr(library, "cudaGetDevice") and not hasattr(library, "cudaLaunchKernel")


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("MAYBE", "LUMOS_CUDA is 'MAYBE'; it must be AUTO, ON or OFF"),
        ("ON", "no working nvcc was found|holds no CUDA kernels yet"),
    ],
)
def test_a_build_that_cannot_be_says_so(option: str, message: str, tmp_path: Path) -> None:
    cmake = pytest.importorskip("cmake")
    pybind11 = pytest.importorskip("pybind11")
    command = [
        f"{cmake.CMAKE_BIN_DIR}/cmake", "-S", str(ROOT), "-B", str(tmp_path), f"-DLUMOS_CUDA={option}",
        f"-DPython_EXECUTABLE={sys.executable}", f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
    ]  # fmt: skip
    without_nvcc = os.environ | {"CUDACXX": str(tmp_path / "nvcc")}
    done = subprocess.run(command, env=without_nvcc, capture_output=True, text=True)
    assert done.returncode and re.search(message, " ".join(done.stderr.split()))


# ------------------------------------------------------------------------------------------------- ptxas_resources


SAMPLE = """
struct Wide { int values[64]; };
__global__ void __launch_bounds__(128) bounded(float* x) {
  __shared__ float kept[256];
  kept[threadIdx.x] = x[threadIdx.x];
  __syncthreads();
  x[threadIdx.x] = kept[127 - threadIdx.x];
}
__global__ void free(Wide* x) {
  Wide copy = x[0];
  for (int i = 0; i < 64; ++i) copy.values[x[1].values[i] % 64] += i;
  x[2] = copy;
}
"""


@NEEDS_NVCC
def test_resources_of_a_sample(tmp_path: Path) -> None:
    source = tmp_path / "sample.cu"
    source.write_text(SAMPLE)
    rows = {row.kernel: row for row in resources.resources(NVCC, source)}
    bounded, free = rows["bounded(float*)"], rows["free(Wide*)"]
    assert (bounded.threads_per_block, bounded.static_shared_bytes) == (128, 1024)
    assert bounded.spilled_bytes == bounded.stack_bytes == 0 < bounded.registers < 32
    assert bounded.blocks_per_multiprocessor == 16
    assert (free.threads_per_block, free.static_shared_bytes) == (1024, 0)
    assert free.stack_bytes >= 256


@NEEDS_NVCC
def test_resources_as_launched(tmp_path: Path) -> None:
    (tmp_path / "sample.cu").write_text(SAMPLE)
    launches = [
        {"kernel": "_Z7boundedPf", "block": [32, 2, 1], "dynamic_shared_bytes": shared} for shared in (0, 0, 50000)
    ]
    (tmp_path / "launches.json").write_text(json.dumps(launches))
    command = [sys.executable, str(ROOT / "bench" / "ptxas_resources.py"), "sample.cu", "--launches", "launches.json"]
    done = subprocess.run([*command, "--json", "out.json"], cwd=tmp_path, check=True, capture_output=True, text=True)
    rows = json.loads((tmp_path / "out.json").read_text())["kernels"]
    found = [
        (row["threads_per_block"], row["dynamic_shared_bytes"], row["blocks_per_multiprocessor"])
        for row in rows
        if row["symbol"] == "_Z7boundedPf"
    ]
    assert found == [(64, 0, 32), (64, 50000, 3)]
    assert len(done.stdout.splitlines()) == len(rows) + 1 == 4


OCCUPANCY = """
#include <stdio.h>
#include <stdlib.h>
#include "cuda_occupancy.h"
int main(int, char** arguments) {  // compute capability times ten, threads and bytes of shared memory of a multiprocessor
  const size_t shared_bytes = atoi(arguments[3]);
  cudaOccDeviceProp gpu;
  gpu.computeMajor = atoi(arguments[1]) / 10;
  gpu.computeMinor = atoi(arguments[1]) % 10;
  gpu.maxThreadsPerBlock = 1024;
  gpu.maxThreadsPerMultiprocessor = atoi(arguments[2]);
  gpu.regsPerBlock = gpu.regsPerMultiprocessor = 65536;
  gpu.warpSize = 32;
  gpu.sharedMemPerBlock = 48 << 10;
  gpu.sharedMemPerMultiprocessor = shared_bytes;
  gpu.numSms = 108;
  gpu.sharedMemPerBlockOptin = shared_bytes - (1 << 10);
  gpu.reservedSharedMemPerBlock = 1 << 10;
  cudaOccFuncAttributes kernel;
  kernel.maxThreadsPerBlock = 1024;
  kernel.shmemLimitConfig = FUNC_SHMEM_LIMIT_OPTIN;
  kernel.maxDynamicSharedSizeBytes = shared_bytes - (1 << 10);
  cudaOccDeviceState state;
  int threads;
  size_t dynamic_bytes;
  while (scanf("%d %d %zu %zu", &kernel.numRegs, &threads, &kernel.sharedSizeBytes, &dynamic_bytes) == 4) {
    cudaOccResult result;
    if (cudaOccMaxActiveBlocksPerMultiprocessor(&result, &gpu, &kernel, &state, threads, dynamic_bytes)) return 1;
    printf("%d\\n", result.activeBlocksPerMultiprocessor);
  }
}
"""


@NEEDS_NVCC
def test_blocks_on_a_multiprocessor_are_those_of_the_toolkit(tmp_path: Path) -> None:
    (tmp_path / "occupancy.cpp").write_text(OCCUPANCY)
    subprocess.run([NVCC, "--cudart", "none", "occupancy.cpp", "-o", "occupancy"], cwd=tmp_path, check=True)
    draw = random.Random(0)
    for arch, limits in resources.MULTIPROCESSORS.items():
        dynamic_bytes = limits.shared_bytes - (49 << 10)
        cases = [
            (draw.randint(8, 255), draw.randint(1, 1024), draw.randint(0, 48 << 10), draw.randint(0, dynamic_bytes))
            for _ in range(1000)
        ] + [(draw.randint(8, 255), 32 * draw.randint(1, 32), 0, 0) for _ in range(1000)]
        text = "\n".join(" ".join(map(str, case)) for case in cases)
        command = [str(tmp_path / "occupancy"), *map(str, (arch, limits.threads, limits.shared_bytes))]
        done = subprocess.run(command, input=text, check=True, capture_output=True, text=True)
        ours = [
            resources.Resources(arch, "", "", "", registers, 0, 0, static, dynamic, threads).blocks_per_multiprocessor
            for registers, threads, static, dynamic in cases
        ]
        assert ours == list(map(int, done.stdout.split())), arch


def test_resources_are_known_of_every_gpu_of_the_wheel() -> None:
    cmake = (ROOT / "cmake" / "LumosCuda.cmake").read_text()
    (archs,) = re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES ([\w -]+)\)", cmake)
    assert [int(arch.removesuffix("-real")) for arch in archs.split()] == list(resources.MULTIPROCESSORS)


# ------------------------------------------------------------------------------------------------------- gpu_suite


def test_the_suite_for_a_gpu_names_what_there_is() -> None:
    script = ROOT / "bench" / "gpu_suite.sh"
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert os.access(script, os.X_OK)
    named = set(re.findall(r"(?<![\w/])(?:bench|cmake|python_tests)/[\w./]+|constraints-dev\.txt", script.read_text()))
    assert len(named) >= 6 and all((ROOT / name).exists() for name in named)
