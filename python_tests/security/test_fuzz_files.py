"""Weights and records of any content: read right or refused, before memory is taken for what a header claims."""

from __future__ import annotations

import json
import pickle  # only to write what our own reader is given; nothing here unpickles
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lumos_engine.data.records import read_recorded_clip
from lumos_engine.io.checkpoint import CheckpointError, encode_safetensors, load_safetensors
from lumos_engine.io.records import RecordError, read_record_file

from .helpers import attempt, damaged, json_values, numbers

files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
WEIGHTS = b"".join(
    encode_safetensors({"a": torch.arange(6.0).view(2, 3), "b": torch.ones(3, dtype=torch.bool)}, {"k": "v"})
)
VALUE = {"token": list(range(300)), "label": [-100] * 300, "id": 7}
RECORD = pickle.dumps(VALUE)


def whole(path: Path) -> None:
    """What is accepted takes the bytes that the file has, no more."""
    tensors = attempt(lambda: load_safetensors(path), (CheckpointError,), path=path)
    if tensors is not None:
        assert sum(tensor.numel() * tensor.element_size() for tensor in tensors.values()) <= path.stat().st_size


@files
@given(damaged(WEIGHTS) | st.binary(max_size=64))
def test_any_weights(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    whole(path)


entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8", "BOOL", "F8", ""]) | json_values,
        "shape": st.lists(st.integers(0, 4) | numbers, max_size=5) | json_values,
        "data_offsets": st.lists(st.integers(0, 24) | numbers, min_size=2, max_size=2) | json_values,
    }
)


@files
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "__metadata__"]) | st.text(max_size=5), entries | json_values, max_size=3
    )
)
@example({"a": {"dtype": "U8", "shape": [0, 2**70], "data_offsets": [0, 0]}})
@example({"a": {"dtype": "U8", "shape": [0, 2**40, 2**40], "data_offsets": [0, 0]}})
@example({"a": {"dtype": "F32", "shape": [2**32, 2**32], "data_offsets": [0, 0]}})
@example({"a": {"dtype": "U8", "shape": [2**63] * 100_000, "data_offsets": [0, 24]}})
@example({"a": {"dtype": "U8", "shape": [1] * 65, "data_offsets": [0, 1]}})
@example({"a": {"dtype": "U8", "shape": [24], "data_offsets": [-24, 0]}})
@example({"a": {"dtype": "U8", "shape": [2**50], "data_offsets": [0, 2**50]}})
@example({"a": {"dtype": "x" * 100_000, "shape": [1], "data_offsets": [0, 1]}})
@example({"a": {"dtype": "U8", "shape": {"1": 2}, "data_offsets": [0, 1]}})
@example({"a": {"dtype": "U8", "shape": "12", "data_offsets": [0, 1]}})
@example({"a" * 100_000: 1})
@example({"a\n": 1})
def test_any_header(tmp_path: Path, header: dict[str, Any]) -> None:
    path = tmp_path / "model.safetensors"
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(24))
    whole(path)


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 100_000_000, 100_000_001, 0, 1])
def test_any_header_length(tmp_path: Path, length: int) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    whole(path)


@files
@given(st.one_of([damaged(pickle.dumps(VALUE, protocol)) for protocol in range(6)]) | st.binary(max_size=64))
@example(b"c__builtin__\neval\n(S'1'\ntR.")
@example(b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93\x8c\x01x\x85R.")
@example(b"]" * 20_000 + b".")
@example(b"](" + b"K\x00" * 100_000 + b"e.")
@example(b"\x8a\xff" + b"\xff" * 255 + b".")
@example(b"X\x00\x00\x00\x80.")
@example(b"X\x03\x00\x00\x00\xed\xa0\x80.")
@example(b"r\xff\xff\xff\xff")
def test_any_record(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "record.pkl"
    path.write_bytes(content)
    value = attempt(lambda: read_record_file(path), (RecordError,), path=path)
    assert value is None or type(value) in (list, dict, int, str)
    attempt(lambda: read_recorded_clip(path), (RecordError,), path=path)
