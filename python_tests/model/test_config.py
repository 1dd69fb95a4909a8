from __future__ import annotations

import json

import pytest

from lumos_engine import LumosConfig


def test_the_originals_config_is_read_and_written_back() -> None:
    values = {"model_type": "chameleon", "vocab_size": 129536, "hidden_size": 2048, "num_attention_heads": 32,
              "num_key_value_heads": 8, "num_hidden_layers": 16, "intermediate_size": 8192, "mm_rope": True, "dropout": 0.0,
              "vq_config": {"a": 1}, "vocabulary_map": {}, "rope_scaling": None, "mask_image_logits": False,
              "rope_theta": 10000, "torch_dtype": "bfloat16", "head_dim": None}  # fmt: skip
    config = LumosConfig.from_dict(values)
    assert (config.head_dim, config.rope_theta, config.swin_norm) == (64, 10000.0, False)
    assert LumosConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mm_rope": False}, "mm_rope must be True in the config, got False"),
        ({"mm_rope": None}, "mm_rope"),
        ({"hidden_act": "gelu"}, "hidden_act must be 'silu' in the config, got 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"rope_scaling": {"type": "linear"}}, "rope_scaling"),
        ({"head_dim": 64}, "head_dim must be hidden_size / num_attention_heads = 128, got 64"),
        ({"hidden_size": 100}, "hidden_size 100 is not a multiple"),
        ({"hidden_size": 32 * 48}, "multiple of 32, got 48"),
        ({"num_key_value_heads": 5}, "num_key_value_heads 5"),
        ({"model_parallel_size": 3}, "model_parallel_size 3 must divide"),
        ({"rms_norm_eps": 0}, "rms_norm_eps must be positive"),
        ({"rope_theta": float("inf")}, "rope_theta must be positive"),
        ({"num_hidden_layers": -1}, "num_hidden_layers must be positive, got -1"),
    ],
)
def test_incompatible_values_are_named(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LumosConfig.from_dict({"mm_rope": True, **changes})


@pytest.mark.parametrize(
    "changes", [{"vocab_size": "7"}, {"hidden_size": 4096.0}, {"swin_norm": 1}, {"hidden_size": True}]
)
def test_wrong_types_are_named(changes: dict[str, object]) -> None:
    with pytest.raises(TypeError, match=next(iter(changes))):
        LumosConfig.from_dict({"mm_rope": True, **changes})


def test_absent_mm_rope_means_the_originals_default_which_is_another_model() -> None:
    with pytest.raises(ValueError, match="mm_rope must be True in the config, got 'nothing'"):
        LumosConfig.from_dict({})
