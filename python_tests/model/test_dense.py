"""The model equals the architecture written once more from its description: fp64, explicit mask, loops over heads."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lumos_engine import LumosConfig, LumosModel, SequenceLayout, Vocabulary
from lumos_engine.testing import tolerances

BASE = LumosConfig(vocab_size=320, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2)  # fmt: skip

RandomModel = Callable[[LumosConfig], LumosModel]
AXES = "tttthhwwhhwwhhww"


def frames_and_positions(tokens: list[int], vocabulary: Vocabulary) -> tuple[list[int], Tensor]:
    """Frame number of each token (-1 outside frames) and its position triple, by a walk over the ids."""
    frame, positions = [-1] * len(tokens), [[i] * 3 for i in range(len(tokens))]
    number, origin, at = -1, None, 0
    while at < len(tokens):
        if tokens[at] != vocabulary.image_start:
            at += 1
            continue
        number += 1
        height, width = ((tokens[at + i] - vocabulary.size_zero) * 4 for i in (1, 2))
        origin = at + 3 if origin is None else origin
        for row in range(height):
            for column in range(width + 1):
                cell = at + 3 + row * (width + 1) + column
                positions[cell] = [origin + 4 * number, origin + 8 * row, origin + 8 * column]
        length = height * (width + 1) + 4
        frame[at : at + length] = [number] * length
        at += length
    return frame, torch.tensor(positions)


def rotate(x: Tensor, positions: Tensor, theta: float) -> Tensor:
    """x [tokens, head_dim], positions [tokens, 3]."""
    half = x.shape[1] // 2
    out = torch.empty_like(x)
    for f in range(half):
        axis = "thw".index(AXES[f % 16])
        angle = positions[:, axis].double() * theta ** (-f / half)
        cos, sin = angle.cos(), angle.sin()
        out[:, f] = x[:, f] * cos - x[:, f + half] * sin
        out[:, f + half] = x[:, f + half] * cos + x[:, f] * sin
    return out


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def dense_logits(config: LumosConfig, weights: dict[str, Tensor], tokens: Tensor, vocabulary: Vocabulary) -> Tensor:
    """fp64 [tokens, vocabulary] of one sequence."""
    w = {name: weight.double() for name, weight in weights.items()}
    frame, positions = frames_and_positions(tokens.tolist(), vocabulary)
    n, d = len(tokens), config.head_dim
    visible = torch.tensor([[j <= i or (frame[i] >= 0 and frame[i] == frame[j]) for j in range(n)] for i in range(n)])
    heads, kv_heads, rows = config.num_attention_heads, config.num_key_value_heads, config.model_parallel_size

    def head(x: Tensor, layer: str, kind: str, j: int, count: int) -> Tensor:
        row = j // (count // rows)
        weight, bias = w[f"{layer}.self_attn.{kind}_norm.weight"][row], w[f"{layer}.self_attn.{kind}_norm.bias"][row]
        return rotate(F.layer_norm(x[:, j * d : (j + 1) * d], (d,), weight, bias), positions, config.rope_theta)

    def attention(x: Tensor, layer: str) -> Tensor:
        q, k, v = (x @ w[f"{layer}.self_attn.{kind}_proj.weight"].T for kind in "qkv")
        out = []
        for j in range(heads):
            group = j // (heads // kv_heads)
            scores = head(q, layer, "q", j, heads) @ head(k, layer, "k", group, kv_heads).T / math.sqrt(d)
            out.append(scores.masked_fill(~visible, -math.inf).softmax(-1) @ v[:, group * d : (group + 1) * d])
        return torch.cat(out, dim=1) @ w[f"{layer}.self_attn.o_proj.weight"].T

    def mlp(x: Tensor, layer: str) -> Tensor:
        gate, up = (x @ w[f"{layer}.mlp.{kind}_proj.weight"].T for kind in ("gate", "up"))
        return (gate * torch.sigmoid(gate) * up) @ w[f"{layer}.mlp.down_proj.weight"].T

    x = w["model.embed_tokens.weight"][tokens]
    for i in range(config.num_hidden_layers):
        layer = f"model.layers.{i}"
        for part, norm in ((attention, "input_layernorm"), (mlp, "post_attention_layernorm")):
            weight = w[f"{layer}.{norm}.weight"]
            if config.swin_norm:
                x = x + rms(part(x, layer), weight, config.rms_norm_eps)
            else:
                x = x + part(rms(x, weight, config.rms_norm_eps), layer)
    head_weight = w["model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"]
    return rms(x, w["model.norm.weight"], config.rms_norm_eps) @ head_weight.T


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"swin_norm": True},
        {"model_parallel_size": 2},
        {"swin_norm": True, "model_parallel_size": 2},
        {"num_attention_heads": 2, "num_key_value_heads": 1, "rope_theta": 500.0},
        {"num_attention_heads": 1, "num_key_value_heads": 1},
        {"tie_word_embeddings": True, "rms_norm_eps": 1e-2},
    ],
    ids=str,
)
def test_equals_the_dense_model(
    changes: dict[str, object], random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor
) -> None:
    model = random_model(dataclasses.replace(BASE, **changes))  # type: ignore[arg-type]
    with torch.no_grad():
        logits = model(video_tokens, SequenceLayout.from_tokens(video_tokens, vocabulary))
    expected = dense_logits(model.config, model.weights(), video_tokens, vocabulary)
    torch.testing.assert_close(
        logits.double(),
        expected,
        rtol=tolerances.MODEL["rtol"],
        atol=tolerances.MODEL["atol"] * float(expected.abs().max()),
    )
