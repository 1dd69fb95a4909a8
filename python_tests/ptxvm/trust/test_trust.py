"""Kernels of Triton, CUTLASS and CUB run in the machine: nobody of this project wrote them, and on GPUs they are right.

Each one runs in order and under random schedules with every check on, answers the same bits every time, and is as close to
fp64 as its types allow. The last results are in docs/ptxvm_trust.md; ``pytest --slow -rP`` prints them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch

from lumos_engine.testing.deletions import undetected_deletions
from lumos_engine.testing.emulation import KernelFault, Module, ptxvm

from . import cases, compilers

pytestmark = pytest.mark.slow

SCHEDULES = [None, 1, 2, 3]
KERNEL_NAMES = {"gemm_device": r"_Z11gemm_device\w+"} | dict.fromkeys(
    ("matmul_bf16", "matmul_fp16", "matmul_tf32"), "matmul"
)
# Triton has several warps store the same values where a layout repeats them.
REPEATED_STORES = ["histogram", "reductions"]
DELETED = [
    "matmul_bf16",
    "attention",
    "gemm_bf16_tn",
    "gemm_fp16_nn_split_k",
    "gemm_device",
    "attention_bf16_64",
    "radix_sort",
]

TRITON: dict[str, Callable[[], cases.Call]] = {
    "vector_add": cases.vector_add,
    "softmax": cases.softmax,
    "layer_norm": cases.layer_norm,
    "matmul_bf16": partial(cases.triton_matmul, torch.bfloat16, 4e-3),
    "matmul_fp16": partial(cases.triton_matmul, torch.float16, 5e-4),
    "matmul_tf32": partial(cases.triton_matmul, torch.float32, 1e-3),
    "attention": cases.triton_attention,
    "histogram": cases.histogram,
    "running_sum": cases.running_sum,
    "reductions": cases.reductions,
    "dropout": cases.dropout,
    "functions": cases.functions,
}
GEMM = {
    "gemm_bf16_tn": partial(cases.cutlass_gemm, torch.bfloat16, True, 4e-3),
    "gemm_bf16_nn": partial(cases.cutlass_gemm, torch.bfloat16, False, 4e-3, full_tiles=True),
    "gemm_fp16_tn": partial(cases.cutlass_gemm, torch.float16, True, 5e-4),
    "gemm_fp16_nn_split_k": partial(cases.cutlass_gemm, torch.float16, False, 1e-3, full_tiles=True, slices=3),
    "gemm_tf32_tn": partial(cases.cutlass_gemm, torch.float32, True, 1e-3),
    "gemm_device": cases.cute_gemm,
}
ATTENTION = {
    "attention_bf16_64": partial(cases.cutlass_attention, torch.bfloat16, 180, 64, True, 4e-3),
    "attention_fp16_128": partial(cases.cutlass_attention, torch.float16, 192, 128, False, 5e-4),
}
CUB = {"radix_sort": cases.radix_sort, "scans": cases.scans, "count_bytes": cases.count_bytes}


@pytest.fixture(scope="module")
def triton_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compilers.triton_ptx(tmp_path_factory.mktemp("triton"))


@pytest.fixture(scope="module")
def gemm_ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compilers.cutlass_ptx("cutlass_gemm.cu", tmp_path_factory.mktemp("cutlass"))


@pytest.fixture(scope="module")
def attention_ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compilers.cutlass_ptx("cutlass_attention.cu", tmp_path_factory.mktemp("cutlass"))


@pytest.fixture(scope="module")
def cub_ptx(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compilers.nvcc_ptx("cub_blocks.cu", tmp_path_factory.mktemp("cub"))


@dataclass
class Subject:
    ptx: str
    kernel: str
    make: Callable[[], cases.Call]
    shared_bytes: int

    def __post_init__(self) -> None:
        self.module = Module(self.ptx)

    @property
    def opcodes(self) -> set[str]:
        body = self.ptx.split(f".entry {self.kernel}(")[1].split(".entry ")[0]
        return set(re.findall(r"^\s*(?:@!?%?\w+\s+)?([a-z]\w*(?:(?:\.|::)\w+)+|ret|bra)\s", body, re.MULTILINE))

    def run(self) -> cases.Call:
        """Launches in the machine as it is set up. Raises AssertionError if an answer is not what fp64 says."""
        torch.manual_seed(0)
        call = self.make()
        shared_bytes = call.shared_bytes or self.shared_bytes
        self.module.launch(self.kernel, call.grid, call.block, *call.arguments, shared_bytes=shared_bytes)
        assert max(call.errors().values()) <= call.bound, f"difference from fp64, by argument: {call.errors()}"
        return call


@pytest.fixture
def subject(name: str, request: pytest.FixtureRequest) -> Subject:
    if name in TRITON:
        folder = request.getfixturevalue("triton_folder")
        ptx, make, shared_bytes = (
            (folder / f"{name}.ptx").read_text(),
            TRITON[name],
            (folder / f"{name}.shared").read_text(),
        )
    else:
        ptx = request.getfixturevalue(
            "gemm_ptx" if name in GEMM else "attention_ptx" if name in ATTENTION else "cub_ptx"
        )
        make, size = (GEMM | ATTENTION | CUB)[name], re.search(rf"{name}_shared_bytes = (\d+);", ptx)
        shared_bytes = size[1] if size else "0"
    [kernel] = re.findall(rf"\.entry ({KERNEL_NAMES.get(name, name)})\(", ptx)
    return Subject(drained(ptx) if name == "gemm_device" else ptx, kernel, make, int(shared_bytes))


def drained(ptx: str) -> str:
    """With a wait before each end: CuTe's tutorial kernel ends while copies that nobody needs are on their way."""
    return ptx.replace("\tret;", "\tcp.async.wait_all;\n\tret;")


def test_copies_that_nobody_waits_for(gemm_ptx: str) -> None:
    module, call = Module(gemm_ptx), cases.cute_gemm()
    [kernel] = [each for each in module.kernels if "gemm_device" in each]
    with ptxvm(), pytest.raises(KernelFault, match="unfinished copy"):
        module.launch(kernel, call.grid, call.block, *call.arguments, shared_bytes=call.shared_bytes)


def test_rows_that_nobody_wrote(gemm_ptx: str) -> None:
    call = cases.cutlass_gemm(torch.bfloat16, False, 4e-3)
    with ptxvm(), pytest.raises(KernelFault, match="uninitialised: read of shared memory"):
        Module(gemm_ptx).launch("gemm_bf16_nn", call.grid, call.block, *call.arguments, shared_bytes=49152)


@pytest.mark.parametrize("name", REPEATED_STORES)
def test_stores_that_warps_repeat(name: str, subject: Subject) -> None:
    with ptxvm(), pytest.raises(KernelFault, match="race: write of shared memory"):
        subject.run()


@pytest.mark.parametrize("name", TRITON | GEMM | ATTENTION | CUB)
def test_close_to_fp64_with_the_same_bits_in_any_order(name: str, subject: Subject) -> None:
    answers = []
    for seed in SCHEDULES:
        blocks = 1 if seed is None else 32
        with ptxvm(seed, resident_blocks=blocks, allow_repeated_stores=name in REPEATED_STORES) as machine:
            call = subject.run()
            launch = machine.launches[-1]
        answers.append([call.arguments[i] for i in call.expected])
        if seed is None:
            instructions = sum(line["instructions"] for line in launch["lines"])
            error = max(call.errors().values())
            print(f"| {name} | {len(subject.opcodes)} | {instructions:,} | {launch['seconds']:.4f} | {error:.1e} | 0 |")
    for other in answers[1:]:
        for x, y in zip(answers[0], other, strict=True):
            assert torch.equal(x.view(torch.uint8), y.view(torch.uint8)), "another schedule gave other bits"


@pytest.mark.parametrize("name", DELETED)
def test_deletions(name: str, subject: Subject) -> None:
    options = dict(resident_blocks=32, max_instructions=100_000)
    everything = subject.module.synchronisations(subject.kernel)
    found = undetected_deletions(subject.run, subject.kernel, everything, **options)
    print(f"{name}: {len(found)} of {len(everything)}")
    for each in found:
        print(f"  {each['opcode']} {each['file'].rsplit('/', 1)[-1]}:{each['line']} (instruction {each['index']})")
