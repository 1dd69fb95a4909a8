"""Files of the golden formats with numbers of our own, for kinds of files that may not be at hand."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumos_engine import LumosConfig, LumosModel, Vocabulary
from lumos_engine.io.checkpoint import save_safetensors

from .files import SMALL, GoldenFile, manifest


def write_golden(folder: Path, name: str, arrays: dict[str, Tensor], meta: dict[str, Any]) -> GoldenFile:
    """Write the file and its entry in the manifest; a file of that name is replaced."""
    path = folder / name
    if path.suffix == ".safetensors":
        save_safetensors(path, arrays)
    else:
        np.savez(path, **{key: value.numpy() for key, value in arrays.items()})
    index = folder / "manifest.json"
    entries = manifest(folder) if index.is_file() else {"files": {}}
    described = {
        key: {"shape": list(x.shape), "dtype": str(x.dtype).removeprefix("torch.")} for key, x in arrays.items()
    }
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    entries["files"][name] = {"meta": meta, "arrays": described, "sha256": digest}
    index.write_text(json.dumps(entries))
    return GoldenFile(folder, name)


def write_model(folder: Path, letter: str, **changes: Any) -> GoldenFile:
    """Weights of a small random model in which every weight matters."""
    sizes = {"vocab_size": 320, "hidden_size": 128, "intermediate_size": 96, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    config = LumosConfig.from_dict({"mm_rope": True, **sizes, **heads, **changes})
    torch.manual_seed(ord(letter))
    weights = LumosModel(config).weights()
    for key, weight in weights.items():
        weight.normal_(std=0.1)
        if key.endswith("norm.weight"):
            weight.add_(1.0)
    tokens = ("image_start", "image_end", "sep", "video_start", "video_end", "mask")
    meta = {
        "config": config.to_dict(),
        "special_tokens": {**{f"{key}_token": getattr(SMALL, key) for key in tokens}, "new_line_token": SMALL.newline},
        "size_token_zero": SMALL.size_zero,
        "vis_tok_start": SMALL.visual_begin,
        "spatial_patch_px": SMALL.size_unit,
        "stride": list(SMALL.strides),
    }
    return write_golden(folder, f"model_{letter}_made.weights.safetensors", weights, meta)


def video_ids(
    text: int, frames: int, height: int, width: int, seed: int = 0, vocabulary: Vocabulary = SMALL
) -> list[int]:
    """``bos, text, sep``, a closed video of random codes, ``sep``; with ``text`` 0 it begins at video_start."""
    draw = torch.Generator().manual_seed(seed)
    ids = [vocabulary.bos, *torch.randint(1, 100, (text,), generator=draw).tolist(), vocabulary.sep] if text else []
    ids += vocabulary.video_header(1, 12)
    for _ in range(frames):
        ids += vocabulary.frame_header(height, width)
        for row in torch.randint(vocabulary.visual_size, (height, width), generator=draw):
            ids += [*vocabulary.visual(row).tolist(), vocabulary.newline]
        ids.append(vocabulary.image_end)
    return [*ids, vocabulary.video_end, vocabulary.sep]


def padded(rows: list[list[int]], fill: int = 0) -> Tensor:
    """int64 [rows, longest], filled up on the right."""
    longest = max(map(len, rows))
    return torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
