"""Visual tokenizer (frames to ids and back), text tokenizer and prompt format."""

from __future__ import annotations

from .autoencoder import VisualTokenizerConfig
from .prompt import PROMPT_TEMPLATE, build_prompt, clip_duration, prompt_tokens
from .text import TextTokenizer, train_bpe
from .visual import DecoderStream, VisualTokenizer

__all__ = [
    "PROMPT_TEMPLATE",
    "DecoderStream",
    "TextTokenizer",
    "VisualTokenizer",
    "VisualTokenizerConfig",
    "build_prompt",
    "clip_duration",
    "prompt_tokens",
    "train_bpe",
]
