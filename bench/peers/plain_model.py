"""The same transformer in plain torch, under the same parameter names: the peer of whole steps.

What costs nothing to do well is done well: one rotation table a forward, RMSNorm and LayerNorm by torch's kernels, the head on
chosen rows and columns only. Attention is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lumos_engine.model import LumosConfig

__all__ = ["PlainModel", "rotation_table"]

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q, k, v), each [tokens, heads, head_dim] -> like q."""


def rotation_table(positions: Tensor, head_dim: int, theta: float, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosine and sine [tokens, 1, head_dim] of MM-RoPE."""
    axes = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2, 1, 1, 2, 2, 1, 1, 2, 2]).repeat(head_dim // 32)
    inv_freq = theta ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angle = (positions.float()[:, axes] * inv_freq).repeat(1, 2)[:, None]
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    first, second = x.chunk(2, -1)
    return x * table[0] + torch.cat((-second, first), -1) * table[1]


class HeadNorm(nn.Module):
    def __init__(self, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1, head_dim))
        self.bias = nn.Parameter(torch.zeros(1, head_dim))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weight[0], self.bias[0], 1e-5)


class PlainAttention(nn.Module):
    def __init__(self, config: LumosConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, kv_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.q_norm, self.k_norm = HeadNorm(config.head_dim), HeadNorm(config.head_dim)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(self.q_norm(q).to(v.dtype), table), rotate(self.k_norm(k).to(v.dtype), table)
        return self.o_proj(attend(self.layer, q, k, v).flatten(1))


class PlainMLP(nn.Module):
    def __init__(self, config: LumosConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class PlainBlock(nn.Module):
    def __init__(self, config: LumosConfig, layer: int) -> None:
        super().__init__()
        self.self_attn, self.mlp = PlainAttention(config, layer), PlainMLP(config)
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, table: tuple[Tensor, Tensor], attend: Attend) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), table, attend)
        return x + self.mlp(self.post_attention_layernorm(x))


class PlainModel(nn.Module):
    """``model.load_state_dict(lumos_model.weights())`` gives it the same weights."""

    def __init__(self, config: LumosConfig) -> None:
        super().__init__()
        self.config = config
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.model.layers = nn.ModuleList(PlainBlock(config, layer) for layer in range(config.num_hidden_layers))
        self.model.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def forward(self, tokens: Tensor, positions: Tensor, attend: Attend, dtype: torch.dtype) -> Tensor:
        """Output of the final norm [tokens, hidden_size]; queries and keys are rotated in ``dtype``."""
        x = self.model.embed_tokens(tokens)
        table = rotation_table(positions, self.config.head_dim, self.config.rope_theta, dtype)
        for block in self.model.layers:
            x = block(x, table, attend)
        return self.model.norm(x)
