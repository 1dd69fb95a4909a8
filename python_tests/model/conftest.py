"""The small vocabulary of the golden files, and sequences in the original's format made with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from lumos_engine import LumosConfig, LumosModel, Vocabulary


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return Vocabulary(
        bos=0, sep=100, image_start=101, image_end=102, newline=103, video_start=104, video_end=105, mask=106,
        size_zero=110, number_tokens=64, size_unit=32, visual_begin=192, visual_size=128, strides=(4, 8, 8),
    )  # fmt: skip


@pytest.fixture(scope="session")
def video_tokens(vocabulary: Vocabulary) -> Tensor:
    """Text, a video of 2 frames of 4 x 8 codes with some masked, and the tail: int64 [tokens]."""
    draw = torch.Generator().manual_seed(3)
    frames = []
    for _ in range(2):
        codes = torch.randint(192, 320, (4, 8), generator=draw)
        codes[torch.rand(4, 8, generator=draw) < 0.6] = vocabulary.mask
        rows = torch.cat((codes, torch.full((4, 1), vocabulary.newline)), dim=1)
        frames += [torch.tensor([101, 111, 112]), rows.flatten(), torch.tensor([102])]
    text = torch.cat((torch.tensor([0]), torch.randint(1, 100, (6,), generator=draw), torch.tensor([100])))
    return torch.cat((text, torch.tensor([104, 112, 122]), *frames, torch.tensor([105, 100])))


@pytest.fixture(scope="session")
def random_model() -> Callable[[LumosConfig], LumosModel]:
    """Makes models with weights that are large enough, and norms uneven enough, for every one of them to matter."""

    def make(config: LumosConfig) -> LumosModel:
        torch.manual_seed(0)
        model = LumosModel(config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(std=0.3)
                if name.endswith("norm.weight"):
                    parameter.add_(1.0)
        return model.eval()

    return make
