"""Resident memory of this process, in MB, from /proc/self/status."""

from __future__ import annotations

from pathlib import Path

__all__ = ["resident_mb", "resident_peak_mb"]


def _status_mb(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) / 1024


def resident_mb() -> float:
    return _status_mb("VmRSS")


def resident_peak_mb() -> float:
    """Since the process began."""
    return _status_mb("VmHWM")
