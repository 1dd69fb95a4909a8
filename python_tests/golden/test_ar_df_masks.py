"""Masks of training that the original's sampler drew from seeds."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import Tensor

from lumos_engine import SequenceLayout
from lumos_engine.layout import Frame
from lumos_engine.train.ar_df import IGNORED
from lumos_engine.tubes import TubePattern

from .files import GoldenFile

FILES = r"ardf_masks.*\.npz"
MODES = {"tube": "tube", "random": "random", "DiffForcing": "diffusion_forcing", "tubeDecay": "tube_decay"}


def draw(
    mode: str, seed: int, sizes: list[tuple[int, int]], min_ratio: float, *, whole_process: bool
) -> list[TubePattern]:
    """Patterns of a batch, whose rows have ``sizes`` (frames, content tokens), in the original's order of draws.

    whole_process: draw from torch's global generator.
    """
    if whole_process:
        torch.manual_seed(seed)
        generator = None
    else:
        generator = torch.Generator().manual_seed(seed)
    if len(sizes) == 1:
        return [TubePattern.sample(*sizes[0], mode, min_ratio, generator=generator)]
    ratios, patterns = torch.rand(len(sizes), generator=generator), []
    for ratio, (frames, content) in zip(ratios, sizes, strict=True):
        u = torch.rand(frames, generator=generator) if mode == "diffusion_forcing" else ratio[None]
        num = content if mode in ("tube", "tube_decay") else frames * content
        ranks = torch.rand(num, generator=generator)
        patterns.append(TubePattern.from_uniforms(u, ranks, frames, content, mode, min_ratio))
    return patterns


def sizes_of(layout: SequenceLayout) -> list[tuple[int, int]]:
    frames = [[segment for segment in row if isinstance(segment, Frame)] for row in layout.sequences]
    return [(len(row), row[0].content_tokens) for row in frames]


def masked_names(arrays: dict[str, Tensor]) -> list[str]:
    return [name.removesuffix(".ids") for name in arrays if name.endswith(".ids")]


@pytest.mark.parametrize("whole_process", [False, True], ids=["generator", "global"])
def test_masks(golden: GoldenFile, whole_process: bool) -> None:
    """Tokens, labels and ratios of every mode, seed and layout."""
    arrays, vocabulary = golden.arrays(), golden.vocabulary
    names = masked_names(arrays)
    assert names
    for name in names:
        mode, seed, video = re.fullmatch(r"(\w+)\.s(\d+)\.(.+)", name).groups()
        clean, labels = arrays[f"{video}.clean_ids"], arrays[f"{video}.clean_labels"]
        layout = SequenceLayout.from_tokens(clean.reshape(-1), vocabulary, [clean.shape[1]] * len(clean))
        sizes = sizes_of(layout)
        assert golden.meta["il"][video] == sizes[0][1]
        patterns = draw(
            MODES[mode], 1000 + int(seed), sizes, golden.meta["min_masking_rate"], whole_process=whole_process
        )
        ratios = np.concatenate([pattern.ratio for pattern in patterns]).astype(np.float32)
        np.testing.assert_array_equal(ratios, arrays[f"{name}.mask_prob"].flatten(), err_msg=name)
        for row, pattern in enumerate(patterns):
            ids = pattern.apply(clean[row], layout, row, vocabulary.mask)
            assert torch.equal(ids, arrays[f"{name}.ids"][row]), name
            content = layout.content.view(clean.shape)[row]
            expected = torch.where(content & ~pattern.token_mask(layout, row), IGNORED, labels[row])
            assert torch.equal(expected, arrays[f"{name}.labels"][row]), name


def test_uniforms(golden: GoldenFile) -> None:
    """The recorded draws are those of the seed, and make the recorded tubes."""
    arrays, vocabulary = golden.arrays(), golden.vocabulary
    for name in [name for name in arrays if name.endswith(".u")]:
        seed = int(re.fullmatch(r"tube_rng_trace\.seed(\d+)\.u", name).group(1))
        for key in [key for key in arrays if key.startswith(f"tube_rng_trace.seed{seed}.rand_il")]:
            content, u, ranks = int(key.rpartition("il")[2]), arrays[name], arrays[key]
            generator = torch.Generator().manual_seed(seed)
            assert torch.equal(torch.rand(1, generator=generator), u.flatten())
            assert torch.equal(torch.rand(content, generator=generator), ranks.flatten())
            videos = [video for video, il in golden.meta["il"].items() if il == content]
            assert videos
            for video in videos:
                layout = SequenceLayout.from_tokens(arrays[f"{video}.clean_ids"][0], vocabulary)
                pattern = TubePattern.from_uniforms(u, ranks, *sizes_of(layout)[0])
                ids = pattern.apply(arrays[f"{video}.clean_ids"][0], layout, 0, vocabulary.mask)
                assert torch.equal(ids, arrays[f"tube.s{seed - 1000}.{video}.ids"][0])
