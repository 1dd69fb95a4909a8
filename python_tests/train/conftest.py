"""Small tokenizers, random clips and a configuration that trains in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lumos_engine.layout import Vocabulary
from lumos_engine.tokenizers import TextTokenizer, VisualTokenizer
from lumos_engine.tokenizers.autoencoder import VisualAutoencoder, VisualTokenizerConfig
from lumos_engine.tokenizers.text import prompt_corpus, special_token_names, train_bpe
from lumos_engine.train.config import TrainConfig
from lumos_engine.train.sources import CodedClip
from lumos_engine.train.trainer import Trainer

VOCABULARY = Vocabulary(
    bos=0, image_start=1, image_end=2, sep=3, newline=4, video_start=5, video_end=6, mask=7, size_zero=8, number_tokens=32,
    size_unit=8, visual_begin=320, visual_size=12, strides=(4, 4, 4),
)  # fmt: skip


class RandomClips:
    """Clips of 2 latent frames of 2x4 codes, every third an image; codes follow the caption, so that there is something to learn."""

    def clip(self, position: int) -> CodedClip:
        digit = position % 4
        frames = 1 if position % 3 == 0 else 2
        codes = (torch.arange(frames * 8).view(frames, 2, 4) + digit) % 12
        return CodedClip(codes, f"a {digit} standing still", 1 + 4 * (frames - 1), 1 if frames == 1 else 6)


@pytest.fixture(scope="session")
def tokenizers() -> tuple[VisualTokenizer, TextTokenizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = VisualTokenizerConfig(
            levels=(4, 3),
            encoder_widths=(8,),
            encoder_blocks=(1,),
            code_width=8,
            decoder_widths=(8,),
            decoder_blocks=(1,),
        )
        visual = VisualTokenizer(VisualAutoencoder(config))
    captions = [f"a {digit} standing still" for digit in range(4)]
    return visual, train_bpe(prompt_corpus(captions * 4), special_token_names(32), 320)


def tiny_values(out: Path, **overrides: Any) -> dict[str, Any]:
    """A configuration as a file would hold it; ``overrides`` are ``section__option=value``."""
    values: dict[str, Any] = {
        "model": {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
                  "num_key_value_heads": 2, "max_position_embeddings": 256},
        "data": {"height": 8, "width": 16, "num_frames": 5, "validation_clips": 4},
        "optimizer": {"warmup_steps": 2},
        "train": {"out": str(out), "steps": 4, "batch_size": 4, "round_tokens": 1, "precision": "fp32", "log_steps": 1,
                  "validate_steps": 0, "checkpoint_minutes": 0},
        "vocabulary": VOCABULARY.to_dict(),
    }  # fmt: skip
    for name, value in overrides.items():
        section, _, option = name.partition("__")
        values.setdefault(section, {})[option] = value
    return values


MakeTrainer = Callable[..., Trainer]


@pytest.fixture
def make_trainer(tmp_path: Path, tokenizers: tuple[VisualTokenizer, TextTokenizer]) -> MakeTrainer:
    """``make_trainer(resume=False, out="run", section__option=value)``."""

    def make(*, resume: bool = False, out: str = "run", **overrides: Any) -> Trainer:
        config = TrainConfig.from_dict(tiny_values(tmp_path / out, **overrides))
        return Trainer(config, resume=resume, sources=(RandomClips(), RandomClips()), tokenizers=tokenizers)

    return make
