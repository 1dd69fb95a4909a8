"""What ptxas gives each CUDA kernel, and how many blocks of it fit on a multiprocessor.

    python bench/ptxas_resources.py --json resources.json
    python bench/ptxas_resources.py --arch all                   # every compute capability of the wheel; without it 8.0
    python bench/ptxas_resources.py --launches launches.json     # block and dynamic shared memory as launched

``--launches`` takes what ``lumos_engine.testing.ptxvm`` recorded (``json.dump(machine.launches, file)``). Without it the threads of a block
are those of ``__launch_bounds__`` (1024 where a kernel has none) and dynamic shared memory counts as 0. Needs nvcc and c++filt, no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
DEFAULT_THREADS = 1024

# Of every multiprocessor since compute capability 8.0.
REGISTERS, REGISTERS_GRANULE_PER_WARP, SUBPARTITIONS = 65536, 256, 4
SHARED_GRANULE_BYTES, RESERVED_SHARED_BYTES, WARP = 128, 1024, 32


@dataclass(frozen=True)
class Multiprocessor:
    threads: int
    blocks: int
    shared_bytes: int


# By compute capability, times ten: those of cmake/LumosCuda.cmake. Limits: CUDA C++ Programming Guide, "Compute Capabilities".
MULTIPROCESSORS = {
    80: Multiprocessor(2048, 32, 164 * 1024),
    86: Multiprocessor(1536, 16, 100 * 1024),
    89: Multiprocessor(1536, 24, 100 * 1024),
    90: Multiprocessor(2048, 32, 228 * 1024),
    100: Multiprocessor(2048, 32, 228 * 1024),
    120: Multiprocessor(1536, 24, 100 * 1024),
}

ENTRY = re.compile(r"Compiling entry function '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
BOUNDS = re.compile(r"\.entry (\w+)\(.*?\)((?:\s*\.\w+ [\d, ]+)*)", re.DOTALL)
MAX_THREADS = re.compile(r"\.maxntid ([\d, ]+)")


@dataclass(frozen=True)
class Resources:
    """One kernel, one way to launch it. Spills are stores and loads together."""

    arch: int
    source: str
    symbol: str
    kernel: str
    registers: int
    spilled_bytes: int
    stack_bytes: int
    static_shared_bytes: int
    dynamic_shared_bytes: int
    threads_per_block: int

    @property
    def blocks_per_multiprocessor(self) -> int:
        most = MULTIPROCESSORS[self.arch]
        warps = -(-self.threads_per_block // WARP)
        registers_per_warp = -(-self.registers * WARP // REGISTERS_GRANULE_PER_WARP) * REGISTERS_GRANULE_PER_WARP
        warps_that_fit = REGISTERS // SUBPARTITIONS // registers_per_warp * SUBPARTITIONS
        shared = self.static_shared_bytes + self.dynamic_shared_bytes + RESERVED_SHARED_BYTES
        shared = -(-shared // SHARED_GRANULE_BYTES) * SHARED_GRANULE_BYTES
        return min(most.blocks, most.threads // (warps * WARP), warps_that_fit // warps, most.shared_bytes // shared)


def find_nvcc() -> str | None:
    """CUDACXX, the one on PATH, or that of the wheels beside this Python."""
    wheels = Path(sysconfig.get_path("platlib")) / "nvidia" / "cu13" / "bin"
    return os.environ.get("CUDACXX") or shutil.which("nvcc") or shutil.which("nvcc", path=wheels)


def bounds(ptx: str) -> dict[str, int]:
    """Threads that each kernel was compiled for."""
    found = {}
    for symbol, directives in BOUNDS.findall(ptx):
        match = MAX_THREADS.search(directives)
        found[symbol] = prod(map(int, match[1].split(","))) if match else DEFAULT_THREADS
    return found


def resources(nvcc: str, source: Path, arch: int = 80) -> list[Resources]:
    """Of every kernel in a source file, compiled for compute capability ``arch`` / 10."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        options = ["-std=c++17", f"-I{CSRC}", f"-I{CSRC / 'include'}", f"-arch=compute_{arch}"]
        subprocess.run([nvcc, *options, "-ptx", str(source), "-o", str(ptx)], check=True)
        assembler = [
            nvcc,
            f"-arch=sm_{arch}",
            "-cubin",
            "-Xptxas",
            "-v",
            str(ptx),
            "-o",
            str(Path(folder) / "kernels.cubin"),
        ]
        report = subprocess.run(assembler, check=True, capture_output=True, text=True).stderr
        threads = bounds(ptx.read_text())
    symbols = ENTRY.findall(report)
    demangler = subprocess.run(["c++filt"], input="\n".join(symbols), check=True, capture_output=True, text=True)
    rows = []
    parts = ENTRY.split(report)[2::2]  # what follows each name
    for symbol, name, part in zip(symbols, demangler.stdout.splitlines(), parts, strict=True):
        frame, used = FRAME.search(part), USED.search(part)
        if not frame or not used:
            raise SystemExit(f"ptxas_resources: ptxas says of {symbol} what this script cannot read:\n{part}")
        stack, stores, loads = map(int, frame.groups())
        rows.append(
            Resources(
                arch=arch,
                source=source.name,
                symbol=symbol,
                kernel=name,
                registers=int(used[1]),
                spilled_bytes=stores + loads,
                stack_bytes=stack,
                static_shared_bytes=int(used[2] or 0),
                dynamic_shared_bytes=0,
                threads_per_block=threads[symbol],
            )
        )
    return rows


def as_launched(rows: list[Resources], launches: list[dict]) -> list[Resources]:
    """One row for each way in which a kernel was launched; kernels that were not keep theirs."""
    ways: dict[str, set[tuple[int, int]]] = {}
    for launch in launches:
        ways.setdefault(launch["kernel"], set()).add((prod(launch["block"]), launch["dynamic_shared_bytes"]))
    return [
        replace(row, threads_per_block=threads, dynamic_shared_bytes=shared)
        for row in rows
        for threads, shared in sorted(ways.get(row.symbol, {(row.threads_per_block, row.dynamic_shared_bytes)}))
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sources", nargs="*", type=Path, help="default: every kernel of the operations")
    parser.add_argument(
        "--arch",
        nargs="+",
        default=["80"],
        choices=[*map(str, MULTIPROCESSORS), "all"],
        help="compute capability, times ten",
    )
    parser.add_argument("--launches", type=Path, help="launches that the machine recorded")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if not nvcc:
        raise SystemExit("ptxas_resources: no nvcc; docs/building_cuda.md says where to get one")
    sources = arguments.sources or sorted(CSRC.glob("ops/**/*.cu"))
    archs = list(MULTIPROCESSORS) if "all" in arguments.arch else list(map(int, arguments.arch))
    work = [(arch, source) for arch in archs for source in sources]
    with ThreadPoolExecutor(os.cpu_count()) as compilers:
        found = compilers.map(lambda each: resources(nvcc, each[1], each[0]), work)
        rows = [row for of_source in found for row in of_source]
    if arguments.launches:
        rows = as_launched(rows, json.loads(arguments.launches.read_text()))
    columns = ("registers", "spilled", "stack", "static", "dynamic", "threads", "blocks")
    print("arch", *(f"{name:>{max(len(name), 5)}}" for name in columns), " kernel")
    for row in rows:
        print(
            f"{row.arch:4} {row.registers:9} {row.spilled_bytes:7} {row.stack_bytes:5} {row.static_shared_bytes:6} "
            f"{row.dynamic_shared_bytes:7} {row.threads_per_block:7} {row.blocks_per_multiprocessor:6}  {row.kernel}"
        )
    if arguments.json:
        table = [asdict(row) | {"blocks_per_multiprocessor": row.blocks_per_multiprocessor} for row in rows]
        arguments.json.write_text(json.dumps({"kernels": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
