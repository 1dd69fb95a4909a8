"""Checkpoints of a run: folders that appear whole or not at all.

``checkpoints/step-00001000/`` holds ``model.safetensors``, ``ema.safetensors`` (with averaging), ``optimizer.safetensors``,
``rng.safetensors``, ``state.json`` and ``SHA256SUMS`` of them all (``sha256sum -c`` reads it). It is written under a temporary name, flushed
and renamed; then LATEST, for people and scripts, names it; then old ones go. Reading trusts the sums alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from ..io.atomic import sync_folder, write_bytes_atomic
from ..io.checkpoint import CheckpointError, encode_safetensors, load_safetensors

__all__ = ["Checkpoint", "CheckpointFolder"]

_LOG = logging.getLogger("lumos_engine.train")
_STATE, _SUMS, _LATEST, _TEMPORARY = "state.json", "SHA256SUMS", "LATEST", ".writing-"
_SUFFIX = ".safetensors"
_NAME = re.compile(r"step-(\d{8,})")
_MAX_TEXT_BYTES = 100_000_000


@dataclass(frozen=True)
class Checkpoint:
    """tensors: by file (without suffix) and name. state: JSON, with ``step``."""

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
            OSError: it cannot be written (disk full); earlier checkpoints are as they were.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        final = self.folder / f"step-{step:08d}"
        temporary = self.folder / f"{_TEMPORARY}{final.name}-{secrets.token_hex(4)}"
        temporary.mkdir()
        try:
            sums = [
                _write(temporary / f"{name}{_SUFFIX}", *encode_safetensors(values)) for name, values in tensors.items()
            ]
            sums.append(_write(temporary / _STATE, json.dumps({**state, "step": step}, indent=2).encode()))
            _write(temporary / _SUMS, "".join(sums).encode())
            if final.exists():  # damaged, else the run would have gone on from it or a later one
                final.rename(temporary.with_name(f"{temporary.name}-replaced"))
            os.replace(temporary, final)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(self.folder)
        write_bytes_atomic(self.folder / _LATEST, f"{final.name}\n".encode())
        self._prune(step)
        return final

    def exists(self) -> bool:
        """Whether there is a checkpoint, whole or not."""
        return bool(self._steps())

    def load_latest(self) -> Checkpoint:
        """The newest whole checkpoint; newer ones that are not are named in the log (logger ``lumos_engine.train``) with the reason.

        Raises:
            FileNotFoundError: there is none. CheckpointError: there are some, and none is whole.
        """
        reasons = []
        for _, path in sorted(self._steps().items(), reverse=True):
            try:
                found = _load(path)
            except (CheckpointError, OSError) as error:
                reasons.append(str(error))
                continue
            for reason in reasons:
                _LOG.warning("skipped a damaged checkpoint: %s; going back to %s", reason, path.name)
            return found
        if reasons:
            raise CheckpointError(f"{self.folder} holds no whole checkpoint: {'; '.join(reasons)}")
        raise FileNotFoundError(f"{self.folder} holds no checkpoint to resume from")

    def _steps(self) -> dict[int, Path]:
        """Checkpoints by step."""
        paths = self.folder.iterdir() if self.folder.is_dir() else ()
        return {int(match[1]): path for path in paths if (match := _NAME.fullmatch(path.name))}

    def _prune(self, newest: int) -> None:
        """Remove what killed processes left, and checkpoints before the ``keep`` that end with ``newest``.

        Those after it are damaged ones that a resume went back from: they stay until the run writes them again.
        """
        for leftover in self.folder.glob(f"{_TEMPORARY}*"):
            shutil.rmtree(leftover, ignore_errors=True)
        old = sorted((step, path) for step, path in self._steps().items() if step <= newest)
        for _, path in old[: -self._keep]:
            with suppress(OSError):
                shutil.rmtree(path)


def _write(path: Path, *parts: bytes | memoryview) -> str:
    """Write ``parts`` and return their line of SHA256SUMS, which tells what was meant to be written, not what the disk took."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    write_bytes_atomic(path, *parts)
    return f"{digest.hexdigest()}  {path.name}\n"


def _load(path: Path) -> Checkpoint:
    """Raises CheckpointError or OSError where ``path`` is not exactly what was written."""
    files = {file.name for file in path.iterdir()} - {_SUMS}
    *lines, rest = _text(path / _SUMS).split("\n")
    if rest:
        raise CheckpointError(f"{path / _SUMS} is cut short")
    sums = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    if sums.keys() != files or _STATE not in files:
        odd = sorted(sums.keys() ^ files) or [_STATE]
        raise CheckpointError(f"{path}: {odd[0]!r} is not both in the folder and in {_SUMS}")
    for name, digest in sums.items():
        with open(path / name, "rb") as file:
            found = hashlib.sha256()
            while block := file.read(1 << 20):
                found.update(block)
        if found.hexdigest() != digest:
            raise CheckpointError(f"{path / name} is damaged: its SHA-256 differs from the one in {_SUMS}")
    try:
        state = json.loads(_text(path / _STATE))
        if path.name != f"step-{state['step']:08d}":
            raise ValueError(f"it is of step {state['step']}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{path / _STATE} is damaged: {error}") from None
    names = sorted(name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX))
    return Checkpoint(path, {name: load_safetensors(path / f"{name}{_SUFFIX}") for name in names}, state)


def _text(path: Path) -> str:
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise CheckpointError(f"{path} is larger than {_MAX_TEXT_BYTES} bytes")
    try:
        return path.read_bytes().decode()
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text") from None
