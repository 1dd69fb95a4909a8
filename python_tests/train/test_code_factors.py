"""Factored embeddings of visual codes."""

from __future__ import annotations

import pytest
import torch

from lumos_engine import LumosConfig, LumosModel
from lumos_engine.tokenizers.fsq import FiniteScalarQuantizer
from lumos_engine.train.code_factors import add_code_factors, head_weight

from .conftest import VOCABULARY


def model(tied: bool) -> LumosModel:
    torch.manual_seed(0)
    config = LumosConfig(vocab_size=VOCABULARY.visual_end, hidden_size=32, intermediate_size=32, num_hidden_layers=1,
                         num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=tied)  # fmt: skip
    return LumosModel(config)


@pytest.mark.parametrize("tied", [False, True])
def test_rows_are_table_plus_digits(tied: bool) -> None:
    factored, plain = model(tied), model(tied)
    add_code_factors(factored, (4, 3), VOCABULARY)
    assert torch.equal(factored.model.embed_tokens.weight, plain.model.embed_tokens.weight)  # digits start at zero
    assert torch.equal(head_weight(factored), plain.lm_head.weight)
    digits = factored.model.embed_tokens.parametrizations.weight[0].digits
    with torch.no_grad():
        digits.copy_(torch.randn_like(digits))
    weight, table = factored.model.embed_tokens.weight, plain.model.embed_tokens.weight
    for code in range(12):
        a, b = FiniteScalarQuantizer((4, 3)).to_digits(torch.tensor(code)).tolist()
        row = VOCABULARY.visual_begin + code
        torch.testing.assert_close(weight[row], table[row] + digits[a] + digits[4 + b])
    assert torch.equal(weight[: VOCABULARY.visual_begin], table[: VOCABULARY.visual_begin])
    assert torch.equal(factored.weights()["model.embed_tokens.weight"], weight)
    assert ("lm_head.weight" in factored.weights()) is not tied


def test_levels_must_make_the_visual_ids() -> None:
    with pytest.raises(ValueError, match=r"the visual tokenizer has 16 codes, vocabulary\.visual_size is 12"):
        add_code_factors(model(True), (4, 4), VOCABULARY)
