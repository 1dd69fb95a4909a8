"""Checkpoints of a run: folders that appear whole or not at all, and a LATEST pointer.

``checkpoints/step-00001000/`` holds ``model.safetensors``, ``ema.safetensors`` (with averaging), ``optimizer.safetensors``, ``rng.safetensors``
and ``state.json``. It is written under a temporary name, flushed and renamed; then LATEST is replaced; then old ones go.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..io.atomic import write_bytes_atomic, write_json_atomic
from ..io.checkpoint import CheckpointError, load_safetensors, save_safetensors

__all__ = ["Checkpoint", "CheckpointFolder"]

_STATE, _LATEST, _PREFIX, _TEMPORARY = "state.json", "LATEST", "step-", ".writing-"


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by file (without suffix) and name. state: JSON."""

    path: Path
    tensors: dict[str, dict[str, Tensor]]
    state: dict[str, Any]


class CheckpointFolder:
    """The checkpoints of one run; ``keep`` of them stay."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder, self._keep = folder, keep

    def save(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> Path:
        """Write a checkpoint and return its folder.

        Raises:
            OSError: it cannot be written (disk full); earlier checkpoints and LATEST are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"{_PREFIX}{step:08d}"
        temporary = self.folder / f"{_TEMPORARY}{final.name}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            for name, values in tensors.items():
                save_safetensors(temporary / f"{name}.safetensors", values)
            write_json_atomic(temporary / _STATE, {**state, "step": step, "files": sorted(tensors)})
            if (
                final.exists()
            ):  # the same step again, after a resume: the run is deterministic, but its options may differ
                final.rename(temporary / "replaced")
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        shutil.rmtree(final / "replaced", ignore_errors=True)
        write_bytes_atomic(self.folder / _LATEST, f"{final.name}\n".encode())
        self._prune(final)
        return final

    def exists(self) -> bool:
        return (self.folder / _LATEST).is_file()

    def load_latest(self) -> Checkpoint:
        """Raises FileNotFoundError where there is none, CheckpointError where it is damaged."""
        pointer = self.folder / _LATEST
        if not pointer.is_file():
            raise FileNotFoundError(f"{self.folder} holds no checkpoint to resume from")
        name = pointer.read_text(encoding="utf-8", errors="replace").strip()
        path = self.folder / name
        if Path(name).name != name or not name.startswith(_PREFIX) or not (path / _STATE).is_file():
            raise CheckpointError(f"{pointer} names {name!r}, which is no checkpoint in {self.folder}")
        try:
            state = json.loads((path / _STATE).read_bytes())
            files = list(state["files"])
            if type(state["step"]) is not int or not all(isinstance(f, str) and Path(f).name == f for f in files):
                raise ValueError("step or files are wrong")
        except (ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path / _STATE} is damaged: {error}") from None
        return Checkpoint(path, {f: load_safetensors(path / f"{f}.safetensors") for f in files}, state)

    def _prune(self, newest: Path) -> None:
        """Remove temporary folders of killed runs, and whole checkpoints beyond the latest ones."""
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        whole = sorted(path for path in self.folder.glob(f"{_PREFIX}*") if path != newest)
        for path in whole[: max(0, len(whole) - self._keep + 1)]:
            with suppress(OSError):
                shutil.rmtree(path)
