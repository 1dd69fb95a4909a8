"""What the machine sees in the CUDA kernels of unmask_step and tube_mask: bytes, bank conflicts, barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lumos_engine import Frame, SequenceLayout, Text, ops
from lumos_engine.testing import emulation, strategies

pytest.importorskip("lumos_engine._C_ptxvm", reason="the machine is missing")

SECTORS = 1.05  # bytes of the sectors, of those asked for
on_cuda = pytest.mark.parametrize("backend", ["cuda"])  # skipped where there are no kernels


def sample_codes(classes: int = 12000, dtype: torch.dtype = torch.bfloat16, rows: int = 2, **options: Any) -> int:
    """Runs the operation and returns how many bytes it must read or write, here and in the functions below."""
    logits, known = strategies.randn((2, rows, classes), dtype, 0), torch.zeros(1, rows, dtype=torch.bool)
    uniforms = torch.linspace(0.1, 1 - 2**-24, rows)[None]
    ops.sample_codes(logits[:1], logits[1:], known, **({"uniforms": uniforms} | options))
    return logits.nbytes


def remask(rows: int = 1024) -> int:
    confidence, gumbel = torch.rand(2, rows), torch.randn(2, rows)
    known = torch.rand(2, rows) < 0.3
    masked = ops.remask(confidence, known, num_masked=rows // 2, temperature=1.0, gumbel=gumbel)
    return sum(x.nbytes for x in (confidence, gumbel, known, masked))


def tube_mask(height: int = 24) -> int:
    layout = SequenceLayout.from_segments([[Text(5), *[Frame(height, 24, True, 3, 1)] * 2]])
    tokens, ranks = torch.arange(layout.num_tokens), torch.rand(height * 25)
    masked, mask = ops.tube_mask(tokens, layout, torch.tensor([0.5]), ranks, -1)
    return sum(x.nbytes for x in (tokens, ranks, masked, mask))


def total(launch: dict[str, Any], counter: str, kind: str) -> int:
    return sum(line[counter] for line in launch["lines"] if line["class"].startswith(kind))


def launches(call: Callable[..., int], *arguments: Any, **options: Any) -> tuple[list[dict[str, Any]], int]:
    """And the bytes that the call must move."""
    with emulation.ptxvm() as machine:
        needed_bytes = call(*arguments, **options)
        return machine.launches, needed_bytes


@on_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("classes", [64000, 4096])
@pytest.mark.parametrize("way", ["uniforms", "greedy", "given"])
def test_a_row_is_read_once_and_a_small_part_of_it_again(
    way: str, classes: int, dtype: torch.dtype, backend: str
) -> None:
    options = {
        "uniforms": {},
        "greedy": {"sampling_temperature": 0.0},
        "given": {"sampled_ids": torch.tensor([[3, 1]])},
    }
    (launch,), needed_bytes = launches(sample_codes, classes, dtype, **options[way])
    asked_bytes = total(launch, "bytes", "global")
    # An eighth again, then an eighth of that; a few rows of one vector more.
    assert needed_bytes <= asked_bytes <= (1.05 if way == "given" else 1.25) * needed_bytes
    assert 32 * total(launch, "sectors", "global") <= SECTORS * asked_bytes


@on_cuda
@pytest.mark.parametrize("rows", [256, 1024, 1792])
def test_remask_moves_what_it_must(rows: int, backend: str) -> None:
    (launch,), needed_bytes = launches(remask, rows)
    assert total(launch, "bytes", "global") == needed_bytes
    assert 32 * total(launch, "sectors", "global") <= SECTORS * needed_bytes


@on_cuda
def test_rows_that_remask_does_not_hold_move_in_whole_sectors(backend: str) -> None:
    """Those beyond 8192, which it reads for each bit."""
    (launch,), _ = launches(remask, 8192 + 32)
    assert 32 * total(launch, "sectors", "global") <= SECTORS * total(launch, "bytes", "global")


@on_cuda
def test_tokens_move_in_whole_sectors(backend: str) -> None:
    """The ranks do not: to invert them is to scatter."""
    (order, mask), needed_bytes = launches(tube_mask)
    assert 32 * total(mask, "sectors", "global") <= 1.5 * needed_bytes
    scattered_bytes = 32 * 24 * 25
    assert 32 * total(order, "sectors", "global") <= SECTORS * (total(order, "bytes", "global") + scattered_bytes)


CALLS: list[Callable[..., int]] = [sample_codes, remask, tube_mask]
every_call = pytest.mark.parametrize("call", CALLS, ids=lambda f: f.__name__)


@on_cuda
@every_call
def test_no_bank_conflicts_and_nothing_in_local_memory(call: Callable[..., int], backend: str) -> None:
    for launch in launches(call)[0]:
        assert total(launch, "instructions", "local") == 0
        assert total(launch, "wavefronts", "shared") == total(launch, "ideal_wavefronts", "shared")


@on_cuda
@every_call
@pytest.mark.parametrize("schedule", [None, 1])
def test_no_barrier_can_be_left_out(schedule: int | None, call: Callable[..., int], backend: str) -> None:
    with emulation.ptxvm(schedule) as machine:
        call()
        found = [(launch["kernel"], index) for launch in machine.launches for index, _ in launch["synchronisations"]]
    assert found
    for kernel, index in found:
        with (
            pytest.raises(emulation.KernelFault, match=r"race|uninitialised"),
            emulation.ptxvm(schedule, skip_instruction=index, skip_kernel=kernel),
        ):
            call()


@on_cuda
def test_nothing_is_launched_for_nothing(backend: str) -> None:
    with emulation.ptxvm() as machine:
        sample_codes(rows=0)
        remask(0)
        assert machine.launches == []
