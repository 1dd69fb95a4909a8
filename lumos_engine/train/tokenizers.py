"""The tokenizers of a run, and whether they fit its vocabulary and clips."""

from __future__ import annotations

from pathlib import Path

from ..pipeline_folder import TEXT_TOKENIZER, VISUAL_TOKENIZER, shipped_model_folder
from ..tokenizers import TextTokenizer, VisualTokenizer
from .config import DataOptions, TrainConfig

__all__ = ["check_tokenizers", "load_tokenizers"]


def load_tokenizers(data: DataOptions) -> tuple[VisualTokenizer, TextTokenizer]:
    """Those that the options name, else the shipped ones. Raises FileNotFoundError, ValueError."""
    visual = Path(data.visual_tokenizer) if data.visual_tokenizer else shipped_model_folder() / VISUAL_TOKENIZER
    text = Path(data.text_tokenizer) if data.text_tokenizer else shipped_model_folder() / TEXT_TOKENIZER
    return VisualTokenizer.from_pretrained(visual), TextTokenizer.from_file(text)


def check_tokenizers(config: TrainConfig, visual: VisualTokenizer, text: TextTokenizer) -> None:
    """Raises ValueError naming the option that does not fit."""
    vocabulary, data = config.vocabulary, config.data
    if tuple(visual.compression) != vocabulary.strides:
        raise ValueError(
            f"vocabulary.strides are {vocabulary.strides}, the visual tokenizer compresses by {tuple(visual.compression)}"
        )
    if visual.num_codes != vocabulary.visual_size:
        raise ValueError(
            f"vocabulary.visual_size is {vocabulary.visual_size}, the visual tokenizer has {visual.num_codes} codes"
        )
    if text.vocab_size > vocabulary.visual_begin:
        raise ValueError(
            f"vocabulary.visual_begin is {vocabulary.visual_begin}, the text tokenizer has {text.vocab_size} ids"
        )
    visual.latent_shape(data.num_frames, data.height, data.width)
