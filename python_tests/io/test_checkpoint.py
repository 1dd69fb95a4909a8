"""Safetensors files are checked before use, agree with the safetensors library, and are written atomically."""

from __future__ import annotations

import errno
import json
import os
import resource
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lumos_engine.io.checkpoint import CheckpointError, load_safetensors, read_header, save_safetensors

TENSORS = {
    "matrix": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "half": torch.randn(5, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16),
    "scalar": torch.tensor(7, dtype=torch.int64),
    "empty": torch.zeros(0, 3),
    "flags": torch.tensor([True, False, True]),
    "transposed": torch.arange(6, dtype=torch.float64).reshape(2, 3).t(),
}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype and torch.equal(left[name], right[name]) for name in left
    )


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def test_round_trip_and_the_library_reads_and_writes_the_same(tmp_path: Path) -> None:
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    save_safetensors(ours, TENSORS, {"step": "3"})
    assert same(load_safetensors(ours), TENSORS)
    assert read_header(ours).metadata == {"step": "3"}
    assert same(safetensors.torch.load_file(ours), TENSORS)
    safetensors.torch.save_file({name: tensor.contiguous() for name, tensor in TENSORS.items()}, theirs)
    assert same(load_safetensors(theirs), TENSORS)


def test_choice_of_names_and_dtype(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors(path, TENSORS)
    loaded = load_safetensors(path, names=["scalar", "matrix"], dtype=torch.bfloat16)
    assert list(loaded) == ["scalar", "matrix"]
    assert loaded["scalar"].dtype == torch.int64 and loaded["matrix"].dtype == torch.bfloat16
    with pytest.raises(CheckpointError, match=r"a\.safetensors: there is no tensor 'nothing'"):
        load_safetensors(path, names=["nothing"])


F4 = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        (b"not json", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        ([], b"", "not a JSON object"),
        (b'{"a":1,"a":2}', b"", "occurs twice"),
        ({"a": 3}, b"", "'a' lacks dtype"),
        ({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}, b"", "'a' lacks dtype"),
        ({"a": {**F4, "dtype": "F7"}}, bytes(16), "'F7'"),
        ({"a": {**F4, "dtype": ["F32"]}}, bytes(16), "known are"),
        ({"a": {**F4, "shape": [-4]}}, bytes(16), "non-negative"),
        ({"a": {**F4, "shape": [True, 4]}}, bytes(16), "non-negative"),
        ({"a": {**F4, "shape": [5]}}, bytes(16), "needs 20 bytes, not 16"),
        ({"a": {**F4, "data_offsets": [16, 0]}}, bytes(16), "needs 16 bytes, not -16"),
        ({"a": F4}, bytes(15), "cut short"),
        ({"a": F4}, bytes(17), "longer than its header"),
        ({"a": F4, "b": F4}, bytes(16), "overlaps"),
        ({"a": {**F4, "data_offsets": [4, 20]}}, bytes(20), "gap"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    ],
)
def test_lying_headers_are_refused(tmp_path: Path, header: object, data: bytes, message: str) -> None:
    path = raw_file(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(CheckpointError, match=message) as caught:
        load_safetensors(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"1234567", struct.pack("<Q", 2**63) + b"{}", struct.pack("<Q", 3) + b"{}"])
def test_files_without_a_whole_header_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bad\.safetensors: "):
        load_safetensors(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1, exclude_max=True))
def test_every_truncation_is_refused(tmp_path: Path, cut: float) -> None:
    whole = tmp_path / "whole.safetensors"
    save_safetensors(whole, TENSORS)
    data = whole.read_bytes()
    path = tmp_path / "cut.safetensors"
    path.write_bytes(data[: int(cut * len(data))])
    with pytest.raises(CheckpointError, match=r"cut\.safetensors"):
        load_safetensors(path)


def test_missing_file_is_a_file_not_found_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.safetensors"):
        load_safetensors(tmp_path / "absent.safetensors")


@contextmanager
def full_disk() -> Iterator[None]:
    """Writes beyond 64 bytes fail, as on a full disk: the limit that a process can set for itself, and for its standard output too
    where that is a file, so nothing else may happen inside."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_safetensors(path, {"old": torch.ones(2)})
    with pytest.raises(OSError, match=r"a\.safetensors") as caught, full_disk():
        save_safetensors(path, TENSORS)
    assert caught.value.errno in (errno.EFBIG, errno.ENOSPC)
    assert same(load_safetensors(path), {"old": torch.ones(2)})
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_unsupported_values_write_nothing(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"'z' has dtype torch\.complex64"):
        save_safetensors(tmp_path / "a", {"z": torch.zeros(1, dtype=torch.complex64)})
    with pytest.raises(TypeError, match="strings"):
        save_safetensors(tmp_path / "a", {}, {"step": 1})  # type: ignore[dict-item]
    assert os.listdir(tmp_path) == []
