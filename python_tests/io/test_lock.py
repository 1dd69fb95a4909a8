"""One process at a time in an output folder; a killed one leaves neither lock nor litter."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lumos_engine.io.lock import FolderInUse, owned_folder

HOLD = (
    "import pathlib, sys, time\n"
    "from lumos_engine.io.atomic import replace_file\n"
    "from lumos_engine.io.lock import owned_folder\n"
    "folder = pathlib.Path(sys.argv[1])\n"
    "with owned_folder(folder), replace_file(folder / 'model.safetensors') as temporary:\n"
    "    print('held', flush=True)\n"
    "    time.sleep(600)\n"
)


def test_a_second_process_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        message = rf"run is in use by another process \(pid {process.pid}\)"
        with pytest.raises(FolderInUse, match=message) as caught, owned_folder(folder):
            pass
        assert "\n" not in str(caught.value)
        assert len(list(folder.iterdir())) == 2  # the owner's temporary file was left alone
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    (folder / ".notes.tmp").touch()
    with owned_folder(folder):
        assert sorted(os.listdir(folder)) == [".lock", ".notes.tmp"]
        assert (folder / ".lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_ends_with_the_block(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(RuntimeError, match="inside"), owned_folder(tmp_path):
            with pytest.raises(FolderInUse), owned_folder(tmp_path):
                pass
            raise RuntimeError("inside")


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file/run"), owned_folder(tmp_path / "file" / "run"):
        pass
