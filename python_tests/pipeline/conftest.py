"""A pipeline with random weights, small enough that a clip takes milliseconds."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from lumos_engine.layout import Vocabulary
from lumos_engine.model import LumosConfig, LumosModel
from lumos_engine.pipeline import LumosPipeline
from lumos_engine.tokenizers import TextTokenizer, VisualTokenizer, VisualTokenizerConfig, train_bpe
from lumos_engine.tokenizers.autoencoder import VisualAutoencoder
from lumos_engine.tokenizers.text import prompt_corpus, special_token_names

VISUAL_BEGIN, VISUAL_SIZE = 512, 24
VOCABULARY = Vocabulary(
    bos=0,
    image_start=1,
    image_end=2,
    sep=3,
    newline=4,
    video_start=5,
    video_end=6,
    mask=7,
    size_zero=8,
    number_tokens=32,
    visual_begin=VISUAL_BEGIN,
    visual_size=VISUAL_SIZE,
    size_unit=32,
    strides=(4, 8, 8),
)
DEFAULTS = {
    "num_frames": 9,
    "height": 32,
    "width": 32,
    "fps": 4,
    "steps": 3,
    "guidance_scale": 2.0,
    "temperature": 1.0,
    "sampling_temperature": 0.8,
    "history": "keep",
    "history_mask_ratio": 0.5,
}
CAPTIONS = ("a 7 moving right", "a 3 standing still", "a 1 moving up left slowly")


def random_model(seed: int = 0) -> LumosModel:
    """Two layers with weights large enough that prompts and history change what is generated."""
    torch.manual_seed(seed)
    model = LumosModel(
        LumosConfig(
            vocab_size=VISUAL_BEGIN + VISUAL_SIZE,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.3,
        )
    )
    return model.eval()


@dataclass(frozen=True)
class Parts:
    text: TextTokenizer
    visual: VisualTokenizer


@pytest.fixture(scope="session")
def parts() -> Parts:
    torch.manual_seed(1)
    visual = VisualAutoencoder(
        VisualTokenizerConfig(
            levels=(4, 3, 2),
            compression=(4, 8, 8),
            channels=3,
            encoder_widths=(16,),
            encoder_blocks=(1,),
            code_width=8,
            decoder_widths=(16,),
            decoder_blocks=(1,),
        )
    )
    text = train_bpe(prompt_corpus(CAPTIONS), special_token_names(32), VISUAL_BEGIN)
    return Parts(text, VisualTokenizer(visual))


@pytest.fixture(scope="session")
def model() -> LumosModel:
    return random_model()


@pytest.fixture(scope="session")
def pipeline(parts: Parts, model: LumosModel) -> LumosPipeline:
    return LumosPipeline(model, VOCABULARY, parts.text, parts.visual, DEFAULTS)


@pytest.fixture(scope="session")
def folder(parts: Parts, model: LumosModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for :meth:`LumosPipeline.from_pretrained`."""
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    parts.text.save(path / "text_tokenizer.json")
    parts.visual.save_pretrained(path / "visual_tokenizer")
    (path / "pipeline.json").write_text(json.dumps({"vocabulary": VOCABULARY.to_dict(), "defaults": DEFAULTS}))
    return path
