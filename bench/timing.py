"""Paired, interleaved timing: every round runs each contestant once, so that what disturbs the machine disturbs all."""

from __future__ import annotations

import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from lumos_engine import _C

__all__ = ["interleaved", "machine", "repeated", "summary"]


def repeated(call: Callable[[], object], repeats: int, device: str) -> Callable[[], None]:
    """Enough calls that starting and awaiting them does not count."""

    def run() -> None:
        for _ in range(repeats):
            call()
        if device == "cuda":
            torch.cuda.synchronize()

    return run


def interleaved(
    contestants: Mapping[str, Callable[[], object]], rounds: int, warmup: int = 3
) -> dict[str, list[float]]:
    """Seconds of each contestant in each round; ``warmup`` rounds are not counted. Every round has an order of its own: what
    one leaves in the caches and in freed memory serves each of the others equally often."""
    names = list(contestants)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    order = random.Random(0)
    for round_ in range(-warmup, rounds):
        for name in order.sample(names, len(names)):
            begin = time.perf_counter()
            contestants[name]()
            elapsed = time.perf_counter() - begin
            if round_ >= 0:
                seconds[name].append(elapsed)
    return seconds


def summary(seconds: Mapping[str, list[float]], ours: str) -> dict[str, dict[str, float]]:
    """By name: the median in milliseconds, and the median over the rounds of its time divided by that of ``ours``."""
    return {
        name: {
            "median_ms": 1e3 * statistics.median(values),
            "times_ours": statistics.median(a / b for a, b in zip(values, seconds[ours], strict=True)),
        }
        for name, values in seconds.items()
    }


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "isa": _C.cpu_isa(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
