"""Weights on disk: safetensors files, checked before anything in them is believed, and written atomically.

The format is a little-endian u64 header length, a JSON header (name -> dtype, shape, [begin, end) in the data), and the
data. Tensors are read into fresh memory instead of being mapped: a file that is replaced or cut later cannot change or
kill a running process, and each tensor is aligned for the kernels.
"""

from __future__ import annotations

import json
import math
import os
import reprlib
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from .atomic import write_bytes_atomic

__all__ = ["CheckpointError", "SafetensorsHeader", "TensorEntry", "encode_safetensors", "load_safetensors",
           "read_header", "save_safetensors"]  # fmt: skip

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER_BYTES = 100_000_000
_MAX_DIMENSIONS = 64
_MAX_NAME_CHARACTERS = 512


class CheckpointError(ValueError):
    """A checkpoint cannot be used; the sentence names the file and what is wrong in it."""


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies: ``begin`` and ``end`` are byte offsets from the start of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


@dataclass(frozen=True)
class SafetensorsHeader:
    path: Path
    tensors: dict[str, TensorEntry]
    metadata: dict[str, str]


def read_header(path: str | os.PathLike[str]) -> SafetensorsHeader:
    """Read and check the header of a safetensors file; no tensor data are read.

    Raises:
        FileNotFoundError, OSError: the file cannot be opened.
        CheckpointError: the file is too short, or its header is not one, or does not describe exactly the file.
    """
    path = Path(path)
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointError(f"{path}: {size} bytes is too short for a safetensors file")
        (header_bytes,) = struct.unpack("<Q", prefix)
        if header_bytes > _MAX_HEADER_BYTES or 8 + header_bytes > size:
            raise CheckpointError(f"{path}: the header claims {header_bytes} bytes, the file has {size}")
        raw = file.read(header_bytes)
    try:
        header = json.loads(raw.decode(), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: the safetensors header is not valid JSON ({error})") from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: the safetensors header is not a JSON object")
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise CheckpointError(f"{path}: __metadata__ of the header is not an object of strings")
    if any(len(name) > _MAX_NAME_CHARACTERS for name in header):
        raise CheckpointError(f"{path}: a tensor's name has more than {_MAX_NAME_CHARACTERS} characters")
    data = 8 + header_bytes
    tensors = {name: _entry(path, name, value, data) for name, value in header.items()}
    _check_tiling(path, tensors, data, size)
    return SafetensorsHeader(path, tensors, metadata)


def load_safetensors(
    path: str | os.PathLike[str],
    *,
    names: Iterable[str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Load tensors (all, or those in ``names``) of a safetensors file; floating-point ones as ``dtype`` if given.

    Converts one tensor at a time, so that the peak is the result plus one tensor.

    Raises:
        CheckpointError: see :func:`read_header`; also when a name is absent or the file changes while being read.
    """
    header = read_header(path)
    wanted = list(header.tensors) if names is None else list(names)
    for name in wanted:
        if name not in header.tensors:
            raise CheckpointError(f"{header.path}: there is no tensor {name!r} in the file")
    loaded: dict[str, Tensor] = {}
    with open(header.path, "rb") as file:
        for name in sorted(wanted, key=lambda name: header.tensors[name].begin):
            tensor = _read(file, header.path, name, header.tensors[name])
            target = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
            loaded[name] = tensor.to(device=device, dtype=target)
    return {name: loaded[name] for name in wanted}


def save_safetensors(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write ``tensors`` as a safetensors file that appears whole or not at all.

    Raises:
        TypeError: a dtype that the format does not have, or metadata that are not strings (nothing is written).
        OSError: the file cannot be written (disk full); an older file of that name is as it was.
    """
    write_bytes_atomic(path, *encode_safetensors(tensors, metadata))


def encode_safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> list[memoryview]:
    """The pieces of a safetensors file in order, without copying tensors that are contiguous on the CPU."""
    header: dict[str, Any] = {}
    if metadata:
        if not all(isinstance(item, str) for pair in metadata.items() for item in pair):
            raise TypeError("metadata must map strings to strings")
        header["__metadata__"] = dict(metadata)
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            raise TypeError(f"tensor {name!r} has dtype {tensor.dtype}, which safetensors does not hold")
    pieces: list[memoryview] = []
    offset = 0
    # Widest elements first, so that every tensor begins at a multiple of its element size.
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        data = tensors[name].detach().cpu().contiguous()
        size = data.numel() * data.element_size()
        header[name] = {"dtype": _NAMES[data.dtype], "shape": list(data.shape), "data_offsets": [offset, offset + size]}
        pieces.append(_bytes(data))
        offset += size
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return [memoryview(struct.pack("<Q", len(text))), memoryview(text), *pieces]


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous CPU tensor."""
    return memoryview(tensor.reshape(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _entry(path: Path, name: str, value: Any, data: int) -> TensorEntry:
    try:
        dtype, shape, (begin, end) = value["dtype"], value["shape"], value["data_offsets"]
        numbers = [*shape[:_MAX_DIMENSIONS], begin, end]
    except (TypeError, KeyError, ValueError):
        raise CheckpointError(
            f"{path}: the header entry of tensor {name!r} lacks dtype, shape or data_offsets"
        ) from None
    if not isinstance(dtype, str) or dtype not in _DTYPES:
        raise CheckpointError(
            f"{path}: tensor {name!r} has dtype {reprlib.repr(dtype)}; known are {', '.join(_DTYPES)}"
        )
    if not all(type(number) is int and number >= 0 for number in numbers):
        raise CheckpointError(f"{path}: tensor {name!r} has a shape or offset that is not a non-negative integer")
    if len(shape) > _MAX_DIMENSIONS or math.prod(max(1, size) for size in shape) >= 2**63:
        raise CheckpointError(f"{path}: tensor {name!r} has a shape of too many dimensions or elements")
    expected = math.prod(shape) * _DTYPES[dtype].itemsize
    if end - begin != expected:
        raise CheckpointError(
            f"{path}: tensor {name!r} of {dtype} and shape {list(shape)} needs {expected} bytes, not {end - begin}"
        )
    return TensorEntry(_DTYPES[dtype], tuple(shape), data + begin, data + end)


def _check_tiling(path: Path, tensors: dict[str, TensorEntry], data: int, size: int) -> None:
    at = data
    for name, entry in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != at:
            kind = "overlaps another tensor" if entry.begin < at else "leaves a gap before it"
            raise CheckpointError(f"{path}: tensor {name!r} {kind} in the file")
        at = entry.end
    if at != size:
        state = "is cut short" if at > size else "is longer than its header says"
        raise CheckpointError(f"{path}: the file {state}, {size} bytes where the header describes {at}")


def _read(file: BinaryIO, path: Path, name: str, entry: TensorEntry) -> Tensor:
    raw = torch.empty(entry.end - entry.begin, dtype=torch.uint8)
    file.seek(entry.begin)
    view = _bytes(raw)
    done = 0
    while done < len(view):
        count = file.readinto(view[done:])  # type: ignore[attr-defined]
        if not count:
            raise CheckpointError(f"{path}: the file ended inside tensor {name!r} while it was being read")
        done += count
    return raw.view(entry.dtype).view(entry.shape)
