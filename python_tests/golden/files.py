"""Files of numbers that the original code produced, found by name, and what the manifest says of each."""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lumos_engine import LumosConfig, LumosModel, SequenceLayout, Vocabulary
from lumos_engine.io.checkpoint import load_safetensors

SMALL = Vocabulary(
    bos=0, sep=100, image_start=101, image_end=102, newline=103, video_start=104, video_end=105, mask=106,
    size_zero=110, size_unit=32, visual_begin=192, visual_size=128, strides=(4, 8, 8),
)  # fmt: skip
"""The remapped ids of all files that the manifest does not mark ``vocab=real``."""


@dataclass(frozen=True)
class GoldenFile:
    """One file and its entry in the manifest beside it."""

    folder: Path
    name: str

    def __str__(self) -> str:
        return self.name

    @property
    def entry(self) -> dict[str, Any]:
        return manifest(self.folder)["files"][self.name]

    @property
    def meta(self) -> dict[str, Any]:
        return self.entry["meta"]

    def arrays(self) -> dict[str, Tensor]:
        path = self.folder / self.name
        if path.suffix == ".safetensors":
            return load_safetensors(path)
        with np.load(path, allow_pickle=False) as file:
            return {name: torch.from_numpy(file[name]) for name in file.files}

    @property
    def vocabulary(self) -> Vocabulary:
        """Of the ids in this file. Weights list their own; other files have the small or the real one."""
        if self.meta.get("vocab") == "real" or self.name.startswith("datapipe_"):
            return Vocabulary()
        if "special_tokens" not in self.meta:
            return SMALL
        ids = {name.removesuffix("_token"): token for name, token in self.meta["special_tokens"].items()}
        ids["newline"] = ids.pop("new_line")
        begin = self.meta["vis_tok_start"]
        return Vocabulary(
            **ids, bos=0, size_zero=self.meta["size_token_zero"], size_unit=self.meta["spatial_patch_px"],
            visual_begin=begin, visual_size=self.meta["config"]["vocab_size"] - begin, strides=self.meta["stride"],
        )  # fmt: skip

    def weights(self, model: str) -> GoldenFile:
        """The weights file of ``model``: its full name without the prefix "model_", or its letter."""
        found = [
            *self.folder.glob(f"model_{model}.weights.safetensors"),
            *self.folder.glob(f"model_{model}_*.weights.*"),
        ]
        assert len(found) == 1, f"{self} needs the weights of model {model}; the folder holds {len(found)} such files"
        return GoldenFile(self.folder, found[0].name)

    def model(self) -> LumosModel:
        """The model of this weights file, configured as the manifest says."""
        return LumosModel.from_weights(LumosConfig.from_dict(self.meta["config"]), self.arrays())


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def folder_at_hand() -> Path | None:
    """The folder that ``LUMOS_GOLDEN_DIR`` names, or None."""
    folder = os.environ.get("LUMOS_GOLDEN_DIR")
    return Path(folder) if folder else None


def golden_files(folder: Path, pattern: str) -> list[GoldenFile]:
    """Files of ``folder`` whose whole name matches the regular expression."""
    return [GoldenFile(folder, path.name) for path in sorted(folder.iterdir()) if re.fullmatch(pattern, path.name)]


def layouts(ids: Tensor, vocabulary: Vocabulary) -> dict[str, SequenceLayout]:
    """Layouts of a right-padded batch [batch, tokens] that the original's numbers may belong to; padding counts as text.

    "per_sample": each row by itself. "shared": for batches only, the mask that the original makes of them by mistake,
    the union of the masks of all rows.
    """
    batch, length = ids.shape
    layout = SequenceLayout.from_tokens(ids.reshape(-1), vocabulary, [length] * batch)
    if batch == 1:
        return {"per_sample": layout}
    # A query sees everything up to the end of the latest frame, of any row, that it lies in.
    ends = torch.where(layout.frame_id >= 0, layout.intervals[:, 4], layout.index + 1).view(batch, length).amax(0)
    intervals = torch.zeros(batch * length, 5, dtype=torch.int32)
    intervals[:, 2] = ends.repeat(batch)
    shared = SequenceLayout.from_intervals(
        [length] * batch, intervals, layout.positions, segments=layout.sequences, strides=layout.strides
    )
    return {"per_sample": layout, "shared": shared}
