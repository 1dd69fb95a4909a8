"""Factored embedding of visual codes: a table plus one learned vector per digit of the tokenizer's scalar quantiser.

Codes whose digits agree look alike, so what is learned for one helps the others; the table starts at its usual
random values and the digit vectors at zero, so that the model starts as it would without them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..layout import Vocabulary
from ..model import LumosModel
from ..tokenizers.fsq import FiniteScalarQuantizer

__all__ = ["CodeFactors", "add_code_factors", "head_weight"]


class CodeFactors(nn.Module):
    """Parametrization of a weight [vocabulary, width]; rows of visual codes receive the vectors of their digits."""

    _rows: Tensor

    def __init__(self, levels: Sequence[int], visual_begin: int, width: int) -> None:
        super().__init__()
        quantizer = FiniteScalarQuantizer(levels)
        offsets = torch.tensor([sum(levels[:i]) for i in range(len(levels))])
        self.register_buffer(
            "_rows", quantizer.to_digits(torch.arange(quantizer.num_codes)) + offsets, persistent=False
        )
        self.begin, self.end = visual_begin, visual_begin + quantizer.num_codes
        self.digits = nn.Parameter(torch.zeros(sum(levels), width))

    def forward(self, table: Tensor) -> Tensor:
        vectors = nn.functional.embedding_bag(self._rows, self.digits, mode="sum")
        return torch.cat([table[: self.begin], table[self.begin : self.end] + vectors, table[self.end :]])


def add_code_factors(model: LumosModel, levels: Sequence[int], vocabulary: Vocabulary) -> None:
    """Factor the embedding, and the head where it is a matrix of its own. ValueError where the levels do not make the visual ids."""
    product = FiniteScalarQuantizer(levels).num_codes
    if product != vocabulary.visual_size:
        raise ValueError(
            f"the visual tokenizer has {product} codes, vocabulary.visual_size is {vocabulary.visual_size}"
        )
    heads = [] if model.config.tie_word_embeddings else [model.lm_head]
    for module in (model.model.embed_tokens, *heads):
        factors = CodeFactors(levels, vocabulary.visual_begin, model.config.hidden_size)
        parametrize.register_parametrization(module, "weight", factors)


def head_weight(model: LumosModel) -> Tensor:
    """Weight of the head [vocabulary, hidden]; a tied one is the embedding's, with its factors."""
    return (model.model.embed_tokens if model.config.tie_word_embeddings else model.lm_head).weight
