"""What ptxas gives each CUDA kernel, and how many blocks of it fit on a multiprocessor of compute capability 8.0.

    python bench/ptxas_resources.py --json resources.json
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
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

CSRC = Path(__file__).resolve().parent.parent / "csrc"
DEFAULT_THREADS = 1024

# Compute capability 8.0.
REGISTERS, REGISTERS_GRANULE_PER_WARP, SUBPARTITIONS = 65536, 256, 4
SHARED_BYTES, SHARED_GRANULE_BYTES, RESERVED_SHARED_BYTES = 164 * 1024, 128, 1024
THREADS, BLOCKS, WARP = 2048, 32, 32

ENTRY = re.compile(r"Compiling entry function '(\w+)'")
FRAME = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
BOUNDS = re.compile(r"\.entry (\w+)\(.*?\)((?:\s*\.\w+ [\d, ]+)*)", re.DOTALL)
MAX_THREADS = re.compile(r"\.maxntid ([\d, ]+)")


@dataclass(frozen=True)
class Resources:
    """One kernel, one way to launch it. Spills are stores and loads together."""

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
        warps = -(-self.threads_per_block // WARP)
        registers_per_warp = -(-self.registers * WARP // REGISTERS_GRANULE_PER_WARP) * REGISTERS_GRANULE_PER_WARP
        warps_that_fit = REGISTERS // SUBPARTITIONS // registers_per_warp * SUBPARTITIONS
        shared = self.static_shared_bytes + self.dynamic_shared_bytes + RESERVED_SHARED_BYTES
        shared = -(-shared // SHARED_GRANULE_BYTES) * SHARED_GRANULE_BYTES
        return min(BLOCKS, THREADS // (warps * WARP), warps_that_fit // warps, SHARED_BYTES // shared)


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


def resources(nvcc: str, source: Path) -> list[Resources]:
    """Of every kernel in a source file."""
    with tempfile.TemporaryDirectory() as folder:
        ptx = Path(folder) / "kernels.ptx"
        options = ["-std=c++17", f"-I{CSRC}", f"-I{CSRC / 'include'}", "-arch=compute_80"]
        subprocess.run([nvcc, *options, "-ptx", str(source), "-o", str(ptx)], check=True)
        assembler = [
            nvcc,
            "-arch=sm_80",
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
    parser.add_argument("--launches", type=Path, help="launches that the machine recorded")
    parser.add_argument("--json", type=Path, help="write the table here as well")
    arguments = parser.parse_args()
    nvcc = find_nvcc()
    if not nvcc:
        raise SystemExit("ptxas_resources: no nvcc; docs/building_cuda.md says where to get one")
    sources = arguments.sources or sorted(CSRC.glob("ops/**/*.cu"))
    rows = [row for source in sources for row in resources(nvcc, source)]
    if arguments.launches:
        rows = as_launched(rows, json.loads(arguments.launches.read_text()))
    print(
        f"{'registers':>9} {'spilled':>7} {'stack':>5} {'static':>6} {'dynamic':>7} {'threads':>7} {'blocks':>6}  kernel"
    )
    for row in rows:
        print(
            f"{row.registers:9} {row.spilled_bytes:7} {row.stack_bytes:5} {row.static_shared_bytes:6} "
            f"{row.dynamic_shared_bytes:7} {row.threads_per_block:7} {row.blocks_per_multiprocessor:6}  {row.kernel}"
        )
    if arguments.json:
        table = [asdict(row) | {"blocks_per_multiprocessor": row.blocks_per_multiprocessor} for row in rows]
        arguments.json.write_text(json.dumps({"compute_capability": "8.0", "kernels": table}, indent=2) + "\n")


if __name__ == "__main__":
    main()
