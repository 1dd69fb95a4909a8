"""What the CUDA kernels ask of memory, counted by the machine that emulates them."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from lumos_engine import ops
from lumos_engine.testing import emulation, strategies

pytest.importorskip("lumos_engine._C_ptxvm", reason="the machine is missing: see docs/testing.md")

LAUNCH_BYTES = 1.10  # of the bytes that must be moved
SECTOR_BYTES = 1.05  # of the bytes that were asked for

SHAPES = [(256, 16, 128), (300, 12, 64), (1000, 1, 128), (100, 32, 96), (40, 2, 256)]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)
every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])


def total(launch: dict[str, Any], counter: str, kind: str) -> int:
    return sum(line[counter] for line in launch["lines"] if line["class"].startswith(kind))


def assert_lean(launch: dict[str, Any], needed_bytes: int) -> None:
    moved = total(launch, "bytes", "global")
    assert needed_bytes <= moved <= LAUNCH_BYTES * needed_bytes
    assert 32 * total(launch, "sectors", "global") <= SECTOR_BYTES * moved
    assert total(launch, "wavefronts", "shared") == total(launch, "ideal_wavefronts", "shared")
    assert total(launch, "instructions", "local") == 0


@pytest.mark.parametrize("backend", ["cuda"])
@every_shape
@every_dtype
def test_mm_rope(shape: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    x, positions = strategies.randn(shape, dtype, 0), torch.ones(shape[0], 3, dtype=torch.int32)
    with emulation.ptxvm() as machine:
        ops.mm_rope(x, positions)
        (launch,) = machine.launches
    assert_lean(launch, 2 * x.nbytes + positions.nbytes + 4 * shape[2] // 2)


@pytest.mark.parametrize("backend", ["cuda"])
@every_shape
@every_dtype
def test_paged_write(shape: tuple[int, int, int], dtype: torch.dtype, backend: str) -> None:
    k = strategies.randn(shape, dtype, 0)
    k_pages, v_pages = torch.zeros(2, 64, 16, *shape[1:], dtype=dtype)
    slots = torch.randperm(1024, generator=torch.Generator().manual_seed(0))[: shape[0]]
    with emulation.ptxvm() as machine:
        ops.paged_write(k, k, k_pages, v_pages, slots)
        (launch,) = machine.launches
    assert_lean(launch, 4 * k.nbytes + slots.nbytes)


@pytest.mark.parametrize("backend", ["cuda"])
def test_nothing_is_launched_for_nothing(backend: str) -> None:
    empty = torch.zeros(0, 2, 32)
    with emulation.ptxvm() as machine:
        ops.mm_rope(empty, torch.zeros(0, 3, dtype=torch.int32))
        ops.mm_rope(torch.zeros(2, 0, 32), torch.zeros(2, 3, dtype=torch.int32))
        pages = torch.zeros(2, 1, 4, 2, 32)
        ops.paged_write(empty, empty, *pages, torch.zeros(0, dtype=torch.int64))
        assert machine.launches == []
