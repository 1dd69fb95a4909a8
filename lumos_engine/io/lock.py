"""One process at a time in an output folder."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .atomic import remove_leftovers

__all__ = ["FolderInUse", "owned_folder"]

_NAME = ".lock"
_UNSUPPORTED = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class FolderInUse(OSError):
    """Another process writes into the folder; the message names it."""


@contextmanager
def owned_folder(folder: Path) -> Iterator[None]:
    """Make ``folder`` if need be and keep other processes that ask for it out of it within the block.

    The kernel drops the lock with the process, however that ends; the file ``.lock`` stays and means nothing by itself. Temporary files
    of killed processes are removed. On a file system without locks nobody is kept out.

    Raises:
        FolderInUse: another process owns it. OSError: it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder / _NAME, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip() or "unknown"
            raise FolderInUse(
                f"{folder} is in use by another process (pid {owner}); wait for it or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in _UNSUPPORTED:
                raise
        else:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
            remove_leftovers(folder)
        yield
    finally:
        os.close(descriptor)
