"""Launchers of the CUDA kernels: where they launch, and what they ask of the runtime."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

import pytest

from lumos_engine.ops import _registry as registry
from lumos_engine.testing import emulation

from .registered import SAMPLES, raw_calls

pytest.importorskip("lumos_engine._C_ptxvm", reason="the machine is missing")

DEVICE, STREAM = 1, 0x5EED0
CSRC = Path(__file__).parents[2] / "csrc"

# None of them makes the host wait or allocates memory, and a stream that is being captured in a graph lets them pass.
RUNTIME = {
    *("cudaGetDevice", "cudaSetDevice", "cudaGetLastError", "cudaGetErrorString", "cudaFuncSetAttribute"),
    *("cudaStream_t", "cudaError_t", "cudaSuccess", "cudaErrorMemoryAllocation"),
    "cudaFuncAttributeMaxDynamicSharedMemorySize",
}


@pytest.mark.parametrize("backend", ["cuda"])
@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.cuda])
def test_all_kernels_go_to_the_tensors_device_and_the_callers_stream(
    name: str, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, current = ctypes.CDLL(emulation.extension().__file__), ctypes.c_int(-1)
    with emulation.ptxvm() as machine:
        monkeypatch.setattr(registry, "_place_of", lambda *_: (emulation.extension(), (DEVICE, STREAM, 0)))
        raw_calls(SAMPLES[name], 9)
        places = {(launch["device"], launch["stream"]) for launch in machine.launches}
    assert places == {(DEVICE, STREAM)}
    assert runtime.cudaGetDevice(ctypes.byref(current)) == 0 and current.value == 0, (
        "the current device is the caller's"
    )


def test_launchers_neither_wait_nor_allocate() -> None:
    sources = [path for folder in ("ops", "cuda", "bindings") for path in (CSRC / folder).rglob("*") if path.is_file()]
    used = {name for path in sources for name in re.findall(r"\bcu(?:da)?[A-Z]\w+", path.read_text())}
    assert used <= RUNTIME
