"""Speed of the machine that executes the CUDA kernels without a GPU: warp instructions a second on one core.

    python bench/ptxvm.py [--rounds 5] [--json out.json]

Each kernel of the table runs with the checks of every access alone, with races and counters besides (what the tests use), and
with a permuted schedule.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from timing import machine

from lumos_engine import Frame, SequenceLayout, ops
from lumos_engine.testing import emulation, strategies

MODES = {
    "bounds": {"check_races": False, "count_traffic": False},
    "all checks": {},
    "permuted": {"seed": 1},
}


def calls() -> dict[str, Callable[[], object]]:
    """Operations that this build has CUDA kernels for, and a call of each."""
    bf16 = torch.bfloat16
    q, k, v = (strategies.randn((1024, 1, 128), bf16, seed) for seed in range(3))
    x, positions = strategies.randn((1792, 16, 128), bf16, 3), torch.arange(1792 * 3, dtype=torch.int32).view(-1, 3)
    pages = torch.zeros(2, 28, 64, 16, 128, dtype=bf16)
    layout = SequenceLayout.from_segments([[Frame(32, 32)]])
    found = {
        "mm_rope": lambda: ops.mm_rope(x, positions, backend="cuda"),
        "paged_write": lambda: ops.paged_write(x, x, pages[0], pages[1], torch.arange(1792), backend="cuda"),
        "block_attention": lambda: ops.block_attention(q, k, v, layout, backend="cuda"),
    }
    carried = emulation.extension().cuda_kernels()
    return {name: call for name, call in found.items() if name in carried}


def measure(call: Callable[[], object], rounds: int) -> dict[str, dict[str, float]]:
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    instructions = 0
    for _ in range(rounds):
        for mode, options in MODES.items():
            with emulation.ptxvm(**options) as found:
                call()
            launches = found.launches
            seconds[mode].append(sum(launch["seconds"] for launch in launches))
            instructions = sum(line["instructions"] for launch in launches for line in launch["lines"])
    return {
        mode: {
            "instructions": instructions,
            "seconds": statistics.median(values),
            "rate": instructions / statistics.median(values),
        }
        for mode, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = {name: measure(call, options.rounds) for name, call in calls().items()}
    print("million warp instructions a second, median of", options.rounds)
    print(f"{'':18}{'instructions':>14}" + "".join(f"{mode:>14}" for mode in MODES))
    for name, row in rows.items():
        count = int(row["bounds"]["instructions"])
        print(f"{name:18}{count:14,}" + "".join(f"{row[mode]['rate'] / 1e6:14.1f}" for mode in MODES))
    if options.json:
        options.json.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
