"""The most GFLOP/s that this processor does on so many threads, measured: machine_limit.cpp, compiled on the spot.

python bench/machine_limit.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
from functools import lru_cache
from pathlib import Path

import torch

__all__ = ["limits"]


@lru_cache
def limits(num_threads: int) -> dict[str, float]:
    """GFLOP/s by name: ``amx_bf16``, ``avx512_fp32``, ``avx2_fp32``; without those that the processor lacks. Empty where there
    is no x86-64 or no compiler."""
    if platform.machine() != "x86_64":
        return {}
    source = Path(__file__).with_suffix(".cpp")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "machine_limit"
        try:
            compiler = os.environ.get("CXX", "g++")
            subprocess.run([compiler, "-O2", "-std=c++17", "-pthread", str(source), "-o", str(program)], check=True)
            run = subprocess.run([str(program), str(num_threads)], check=True, capture_output=True, text=True)
        except (OSError, subprocess.CalledProcessError):
            return {}
    names = ("amx_bf16", "avx512_fp32", "avx2_fp32")
    return {name: value for name, value in zip(names, map(float, run.stdout.split()), strict=True) if value}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    print(json.dumps(limits(parser.parse_args().threads)))


if __name__ == "__main__":
    main()
