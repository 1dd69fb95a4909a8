"""Files appear whole or not at all: write under a temporary name in the same folder, flush to disk, rename."""

from __future__ import annotations

import json
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

__all__ = ["remove_leftovers", "replace_file", "sync_folder", "write_bytes_atomic", "write_json_atomic"]

_LEFTOVER = re.compile(r"\..*\.[0-9a-f]{12}\.tmp(\.\w+)?")


@contextmanager
def replace_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path in the folder of ``path``; when the block ends well it becomes ``path``.

    The temporary file exists (empty) and keeps the suffix of ``path``, so that writers which choose a format by
    suffix work on it. When the block raises, the temporary file is removed and ``path`` is as it was.

    Raises:
        OSError: the file cannot be created, written (disk full) or renamed; ``filename`` is ``path``.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(6)}.tmp{target.suffix}")
    try:
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        try:
            yield temporary
            _sync(temporary, os.O_RDWR)
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                os.unlink(temporary)
            raise
    except OSError as error:
        # A failure of the write itself names no file (a write to an open descriptor) or the temporary one.
        if error.errno is None or error.filename not in (None, str(temporary), temporary):
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(target)) from error
    sync_folder(target.parent)


def write_bytes_atomic(path: str | os.PathLike[str], *parts: bytes | memoryview) -> None:
    """Write ``parts`` one after the other as the new content of ``path``. Raises OSError naming ``path``."""
    with replace_file(path) as temporary, open(temporary, "wb") as file:
        file.writelines(parts)


def write_json_atomic(path: str | os.PathLike[str], value: Any, *, indent: int | None = 2) -> None:
    """Write ``value`` as UTF-8 JSON ending in a newline.

    Raises:
        TypeError: ``value`` is not JSON (nothing is written).
        ValueError: ``value`` holds NaN or infinity, which JSON does not have (nothing is written).
        OSError: the file cannot be written.
    """
    text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    write_bytes_atomic(path, (text + "\n").encode())


def sync_folder(folder: Path) -> None:
    """Flush the names in ``folder`` to disk, where its file system can."""
    with suppress(OSError):  # some refuse to sync a folder; the files themselves are on disk by now
        _sync(folder, os.O_RDONLY)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files that killed processes left in ``folder`` and below. Nothing else may be writing there."""
    for path in folder.rglob(".*"):
        if _LEFTOVER.fullmatch(path.name) and path.is_file():
            with suppress(OSError):
                path.unlink()


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
