"""Files appear whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from lumos_engine.io.atomic import replace_file, write_bytes_atomic, write_json_atomic


def test_json_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    write_json_atomic(path, {"name": "é", "values": [1, 2.5, None]})
    assert json.loads(path.read_text(encoding="utf-8")) == {"name": "é", "values": [1, 2.5, None]}
    assert path.read_bytes().endswith(b"\n")
    assert os.listdir(tmp_path) == ["value.json"]


@pytest.mark.parametrize(("value", "error"), [(float("nan"), ValueError), ({1, 2}, TypeError)])
def test_unwritable_json_leaves_the_old_file(tmp_path: Path, value: object, error: type[Exception]) -> None:
    path = tmp_path / "value.json"
    write_json_atomic(path, 1)
    with pytest.raises(error):
        write_json_atomic(path, value)
    assert path.read_text() == "1\n"
    assert os.listdir(tmp_path) == ["value.json"]


def test_temporary_file_keeps_the_suffix_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="encoder"), replace_file(path) as temporary:
        assert temporary.parent == tmp_path and temporary.suffix == ".mp4" and temporary != path
        temporary.write_bytes(b"half")
        raise RuntimeError("encoder failed")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_disk_full_names_the_file_and_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "value.bin"
    write_bytes_atomic(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"value\.bin") as caught:
        write_bytes_atomic(path, b"new", b"er")
    assert caught.value.errno == errno.ENOSPC
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["value.bin"]


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"value\.json"):
        write_json_atomic(tmp_path / "absent" / "value.json", 1)


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_bytes_atomic(tmp_path / "atomic", b"x")
    assert (tmp_path / "atomic").stat().st_mode == plain.stat().st_mode
