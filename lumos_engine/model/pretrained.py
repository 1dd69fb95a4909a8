"""The folder of a model: ``config.json`` beside ``model.safetensors``, or shards and their index."""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from ..io.atomic import replace_file
from ..io.checkpoint import (
    CheckpointError,
    SafetensorsHeader,
    encode_safetensors,
    load_safetensors,
    read_header,
)
from ..io.json_file import read_json_object
from .config import LumosConfig
from .model import meta_model

__all__ = ["load_pretrained", "save_pretrained"]

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_IGNORED = "model.vqmodel."  # the original's VQ-VAE, which no computation uses


def load_pretrained(
    folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> tuple[LumosConfig, dict[str, Tensor]]:
    """Read config and weights of ``folder``. Names and shapes are checked before any weight is read.

    ``dtype=None`` keeps the stored dtype, the widest one if there are several. Weights ``model.vqmodel.*`` are ignored.

    Raises:
        FileNotFoundError: no config.json, weights or shard.
        CheckpointError: a file is damaged; the config is not of this architecture; a tensor is missing, unknown, not
            floating-point or of another shape than the config says.
    """
    folder = Path(folder)
    config = _read_config(folder / _CONFIG)
    headers, origin = _read_headers(folder)
    entries = {name: header.tensors[name] for header in headers for name in header.tensors}
    where = {name: header.path for header in headers for name in header.tensors}
    if config.num_hidden_layers > len(entries):  # before so many layers are made to be compared
        raise CheckpointError(
            f"{origin}: holds {len(entries)} tensors, too few for the {config.num_hidden_layers} layers of {_CONFIG}"
        )
    expected = {name: tuple(value.shape) for name, value in meta_model(config).state_dict().items()}
    tied = config.tie_word_embeddings
    if tied and "lm_head.weight" not in entries:
        del expected["lm_head.weight"]
    for name, shape in expected.items():
        if name not in entries:
            raise CheckpointError(f"{origin}: tensor {name!r} of shape {list(shape)} is missing")
    for name, entry in entries.items():
        if name.startswith(_IGNORED):
            continue
        if name not in expected:
            raise CheckpointError(
                f"{where[name]}: tensor {name!r} of shape {list(entry.shape)} has no place in the model of {_CONFIG}"
            )
        if entry.shape != expected[name]:
            raise CheckpointError(
                f"{where[name]}: tensor {name!r} has shape {list(entry.shape)}, {_CONFIG} asks for {list(expected[name])}"
            )
        if not entry.dtype.is_floating_point:
            raise CheckpointError(f"{where[name]}: tensor {name!r} has dtype {entry.dtype}, weights are floating-point")
    dtype = dtype or functools.reduce(torch.promote_types, [entries[name].dtype for name in expected])
    weights: dict[str, Tensor] = {}
    for header in headers:
        names = [name for name in header.tensors if name in expected]
        weights.update(load_safetensors(header.path, names=names, dtype=dtype, device=device))
    head = weights.pop("lm_head.weight") if tied and "lm_head.weight" in weights else None
    if head is not None and not torch.equal(head, weights["model.embed_tokens.weight"]):
        raise CheckpointError(
            f"{origin}: lm_head.weight differs from model.embed_tokens.weight, {_CONFIG} says that they are tied"
        )
    return config, weights


def save_pretrained(
    folder: str | os.PathLike[str],
    config: LumosConfig,
    weights: Mapping[str, Tensor],
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
) -> None:
    """Write config and weights, as one file or, above ``max_shard_bytes``, as shards with an index.

    All files are written under temporary names before the first takes its final one, so that a full disk leaves an older
    model in ``folder`` as it was. The folder is made if it does not exist.

    Raises:
        ValueError: ``max_shard_bytes`` is not positive. OSError: a file cannot be written.
    """
    if max_shard_bytes <= 0:
        raise ValueError(f"max_shard_bytes must be positive, got {max_shard_bytes}")
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    shards = _split(weights, dtype, max_shard_bytes)
    files = [_WEIGHTS] if len(shards) == 1 else [
        f"model-{number:05d}-of-{len(shards):05d}.safetensors" for number in range(1, len(shards) + 1)
    ]  # fmt: skip
    texts = {_CONFIG: config.to_dict()}
    if len(shards) > 1:
        size = sum(_size(weights[name], dtype) for name in weights)
        weight_map = {name: file for file, names in zip(files, shards, strict=True) for name in names}
        texts[_INDEX] = {"metadata": {"total_size": size}, "weight_map": weight_map}
    with ExitStack() as stack:
        for file, names in zip(files, shards, strict=True):
            temporary = stack.enter_context(replace_file(folder / file))
            tensors = {name: weights[name].detach().to(dtype or weights[name].dtype) for name in names}
            with open(temporary, "wb") as output:
                output.writelines(encode_safetensors(tensors, {"format": "pt"}))
        for file, value in texts.items():
            temporary = stack.enter_context(replace_file(folder / file))
            temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
    # Weights of the other form would be ambiguous beside the new ones.
    (folder / (_INDEX if len(shards) == 1 else _WEIGHTS)).unlink(missing_ok=True)


def _size(tensor: Tensor, dtype: torch.dtype | None) -> int:
    return tensor.numel() * (dtype or tensor.dtype).itemsize


def _split(weights: Mapping[str, Tensor], dtype: torch.dtype | None, limit: int) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    filled = 0
    for name, tensor in weights.items():
        size = _size(tensor, dtype)
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _read_config(path: Path) -> LumosConfig:
    values = read_json_object(path)
    try:
        return LumosConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {error}") from None


def _read_headers(folder: Path) -> tuple[list[SafetensorsHeader], Path]:
    """Headers of all weight files, and the file to name when a tensor is in none of them."""
    if (folder / _WEIGHTS).is_file() or not (folder / _INDEX).is_file():
        return [read_header(folder / _WEIGHTS)], folder / _WEIGHTS
    index = folder / _INDEX
    weight_map = read_json_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index}: weight_map is not an object that maps tensors to files")
    for name, file in weight_map.items():
        if not isinstance(file, str) or Path(file).name != file:
            raise CheckpointError(f"{index}: tensor {name!r} is said to be in {file!r}, which is not a file name")
    headers = [read_header(folder / file) for file in sorted(set(weight_map.values()))]
    for header in headers:
        for name in header.tensors:
            if weight_map.get(name) != header.path.name:
                raise CheckpointError(f"{header.path}: holds tensor {name!r}, which the index does not place there")
    found = {name for header in headers for name in header.tensors}
    for name, file in weight_map.items():
        if name not in found:
            raise CheckpointError(f"{folder / file}: tensor {name!r} is not in it, though the index places it there")
    return headers, index
