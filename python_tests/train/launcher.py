"""A process that has imported everything and forks a child for each ``lumos`` command that it reads, as ``python -m`` starts one but
without the seconds that imports take. Run as a script by :class:`Launcher`.

A command may carry ``kill_at``: the child kills itself with SIGKILL right before its so-many-th change of the file system below ``folder``;
``kill_after``: it is killed after so many seconds; ``limit_bytes``: no file may grow beyond that, as on a full disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any


class Launcher:
    """Starts commands one after the other; a context manager."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self._read()

    def __enter__(self) -> Launcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def run(self, arguments: list[str], errors: Path, **options: Any) -> int:
        """Exit code of ``lumos ARGUMENTS``, minus the signal's number if one ended it; what it prints goes to the file ``errors``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"arguments": arguments, "errors": str(errors), **options}) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())


def _kill_at(number: int, folder: str) -> None:
    changes = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal changes
        changing = event in ("os.rename", "os.mkdir", "os.remove", "os.rmdir") or (
            event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR)
        )
        if changing and str(arguments[0]).startswith(folder):
            changes += 1
            if changes == number:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def _child(request: dict[str, Any]) -> None:
    from lumos_engine.cli.main import main

    os.dup2(os.open(request["errors"], os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o666), 2)
    os.dup2(2, 1)
    if "kill_at" in request:
        _kill_at(request["kill_at"], request["folder"])
    if "limit_bytes" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["limit_bytes"],) * 2)
    code = 1
    try:
        code = main(request["arguments"])
    finally:
        sys.stdout.flush()
        os._exit(code)


def _serve() -> None:
    import lumos_engine.cli.main
    import lumos_engine.cli.train
    import lumos_engine.train.curve
    import lumos_engine.train.trainer  # noqa: F401 - what a child needs is imported once, here

    with contextlib.suppress(BrokenPipeError):
        print(0, flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            child = os.fork()
            if not child:
                _child(request)
            if "kill_after" in request:
                time.sleep(request["kill_after"])
                os.kill(child, signal.SIGKILL)  # without effect on one that has ended and is not waited for yet
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    _serve()
