"""One decoder layer: QK-normed, rotated, block-causal attention and a SwiGLU MLP, on packed tokens [tokens, hidden]."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .. import ops
from .config import LumosConfig

if TYPE_CHECKING:
    from ..kv_cache import CacheStep, PagedKVCache
    from ..layout import SequenceLayout

__all__ = ["MLP", "Attention", "AttentionContext", "Block", "QKNorm", "RMSNorm"]


@dataclass(frozen=True)
class AttentionContext:
    """What all layers of one forward share: rotary input, and either a whole layout or one step on a cache."""

    positions: Tensor
    inv_freq: Tensor
    layout: SequenceLayout | None = None
    cached: tuple[PagedKVCache, CacheStep] | None = None
    parity: bool = False


class RMSNorm(nn.Module):
    """``x * rsqrt(mean(x^2) + eps) * weight`` over the last dimension, statistics in fp32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return ops.rms_norm(x, self.weight, eps=self.eps)


class Linear(nn.Linear):
    """Without a bias, on packed tokens; see :func:`lumos_engine.ops.linear`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(in_features, out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return ops.linear(x, self.weight)


class QKNorm(nn.Module):
    """Weight and bias [model_parallel_size, head_dim] of the per-head LayerNorm; applied together with the rotation."""

    def __init__(self, rows: int, head_dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(rows, head_dim))
        self.bias = nn.Parameter(torch.zeros(rows, head_dim))


class Attention(nn.Module):
    def __init__(self, config: LumosConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        kv_size = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, config.hidden_size)
        self.k_proj = Linear(config.hidden_size, kv_size)
        self.v_proj = Linear(config.hidden_size, kv_size)
        self.o_proj = Linear(config.hidden_size, config.hidden_size)
        self.q_norm = QKNorm(config.model_parallel_size, config.head_dim)
        self.k_norm = QKNorm(config.model_parallel_size, config.head_dim)

    def forward(self, x: Tensor, context: AttentionContext, rows: Tensor | None = None) -> Tensor:
        if context.cached is not None:
            cache, cache_step = context.cached
            out = cache.attend(self.layer, self.write_keys(x, context), cache_step)
        else:
            q, k, v = self._heads(x)
            q, k = ops.qk_norm_mm_rope(q, k, *self._norms(), context.positions, context.inv_freq, parity=context.parity)
            out, _ = ops.block_attention(q, k, v, context.layout)
        return self.o_proj(chosen(out.flatten(1), rows))

    def write_keys(self, x: Tensor, context: AttentionContext) -> Tensor:
        """Put keys and values of ``x`` into the cache of ``context``; return its queries [tokens, heads, head_dim]."""
        assert context.cached is not None
        cache, cache_step = context.cached
        norms, positions = self._norms(), context.positions
        return cache.write_normed(
            self.layer, *self._heads(x), norms, positions, context.inv_freq, cache_step, parity=context.parity
        )

    def _heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        return q, k, v

    def _norms(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.q_norm.weight, self.q_norm.bias, self.k_norm.weight, self.k_norm.bias


class MLP(nn.Module):
    def __init__(self, config: LumosConfig) -> None:
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return ops.swiglu_linear(self.gate_proj(x), self.up_proj(x), self.down_proj.weight)


class Block(nn.Module):
    """Pre-norm ``x + f(norm(x))``, or with ``swin_norm`` post-norm ``x + norm(f(x))``, for attention and then the MLP."""

    def __init__(self, config: LumosConfig, layer: int) -> None:
        super().__init__()
        self.swin_norm = config.swin_norm
        self.self_attn = Attention(config, layer)
        self.mlp = MLP(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: Tensor, context: AttentionContext, rows: Tensor | None = None) -> Tensor:
        """``rows`` int64 [n]: return these alone, all by default."""
        attended = self.self_attn(self._attention_input(x), context, rows)
        x = chosen(x, rows)
        if self.swin_norm:
            x = x + self.input_layernorm(attended)
            return x + self.post_attention_layernorm(self.mlp(matmul_input(x)))
        x = x + attended
        return x + self.mlp(matmul_input(self.post_attention_layernorm(x)))

    def write_keys(self, x: Tensor, context: AttentionContext) -> None:
        """The part of ``forward`` that later tokens see: keys and values, into the cache of ``context``."""
        self.self_attn.write_keys(self._attention_input(x), context)

    def _attention_input(self, x: Tensor) -> Tensor:
        return matmul_input(x if self.swin_norm else self.input_layernorm(x))


def chosen(x: Tensor, rows: Tensor | None) -> Tensor:
    return x if rows is None else x.index_select(0, rows)


def matmul_input(x: Tensor) -> Tensor:
    """Cast once what several projections read: autocast itself would cast the same activation for each of them."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x
