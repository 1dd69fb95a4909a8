"""The decoder-only transformer of Lumos-1 (arXiv 2507.08801) over packed sequences."""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .. import ops
from ..layout import LayoutStep
from .config import LumosConfig
from .layers import AttentionContext, Block, RMSNorm

if TYPE_CHECKING:
    from ..kv_cache import CacheStep, PagedKVCache
    from ..layout import SequenceLayout

__all__ = ["Decoder", "LumosModel"]


class Decoder(nn.Module):
    """Embedding, layers and final norm: what the original calls ``model`` in its parameter names."""

    def __init__(self, config: LumosConfig) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class LumosModel(nn.Module):
    """Tokens to logits. All inputs are packed: ``tokens`` int64 [tokens], no batch dimension, no padding.

    Attributes:
        gradient_checkpointing: recompute each layer in the backward pass instead of storing its activations.
        parity: round cos and sin of the rotation to the activation dtype, as the original does (matters in bf16 only).
    """

    def __init__(self, config: LumosConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.parity = False
        self.model = Decoder(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.tie_weights()
        self.reset_parameters()
        # Not a buffer: `model.to(bfloat16)` must leave the frequencies in fp32.
        with torch.device("cpu"):
            self._inv_freq = ops.inverse_frequencies(config.head_dim, config.rope_theta)

    def tie_weights(self) -> None:
        """Make head and embedding one parameter where the config says so."""
        if self.config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Matrices and embedding from normal(0, initializer_range); norms to weight 1 and bias 0."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif "norm" in name:
                parameter.fill_(1.0)
            else:
                parameter.normal_(std=self.config.initializer_range)

    def forward(self, tokens: Tensor, layout: SequenceLayout) -> Tensor:
        """Logits fp32 [tokens, vocab_size] of whole sequences under ``layout``."""
        return self.logits(self.hidden_states(tokens, layout))

    def hidden_states(
        self,
        tokens: Tensor,
        layout: SequenceLayout | LayoutStep,
        *,
        rows: Tensor | None = None,
        cache: PagedKVCache | None = None,
        cache_step: CacheStep | None = None,
    ) -> Tensor:
        """Output of the final norm, [tokens, hidden_size], in the order of ``tokens``, which is the original one of a layout
        made by ``with_tube``; or with ``rows`` int64 [n] only that of these tokens, [n, hidden_size], for which alone the last
        layer goes on behind its attention.

        With a cache, ``layout`` is the step that ``cache_step = cache.begin(step)`` was made from: keys and values of its
        tokens are written into the cache's open pages, and its queries attend to the cache.

        Raises:
            TypeError: tokens or rows that are not int64.
            ValueError: tokens that do not fit the layout or the vocabulary; a cache without its step or the reverse; rows
                that are not a vector or, unless on a GPU, lie outside the tokens.
        """
        if rows is not None:
            _check_rows(rows, layout.num_tokens)
        whole = None if isinstance(layout, LayoutStep) else layout
        x, context = self._embed(tokens, layout, cache, cache_step)
        recompute = self.gradient_checkpointing and torch.is_grad_enabled()
        wanted = [None] * (len(self.model.layers) - 1) + [rows]
        if rows is not None and whole is not None and whole.inverse_permutation is not None:
            wanted[-1] = whole.inverse_permutation[rows]
        for block, its_rows in zip(self.model.layers, wanted, strict=True):
            run = partial(checkpoint, block, use_reentrant=False) if recompute else block
            x = run(x, context, its_rows)
        x = self.model.norm(x)
        return x if whole is None or rows is not None else whole.restore(x)

    def fill_cache(self, tokens: Tensor, step: LayoutStep, *, cache: PagedKVCache, cache_step: CacheStep) -> None:
        """Write keys and values of ``tokens`` into the cache's open pages: all that later tokens need of these.

        As :meth:`hidden_states` with a cache, in the same bits, without what the last layer does after its keys.
        """
        x, context = self._embed(tokens, step, cache, cache_step)
        *others, last = self.model.layers
        for block in others:
            x = block(x, context)
        cast(Block, last).write_keys(x, context)

    def _embed(
        self,
        tokens: Tensor,
        layout: SequenceLayout | LayoutStep,
        cache: PagedKVCache | None,
        cache_step: CacheStep | None,
    ) -> tuple[Tensor, AttentionContext]:
        """What goes into the first layer, and what all layers share."""
        self._check(tokens, layout, cache, cache_step)
        whole = None if isinstance(layout, LayoutStep) else layout
        self._inv_freq = self._inv_freq.to(tokens.device)
        if whole is not None:
            whole.schedule()  # built and kept here, so that a compiled block finds it and need not trace how it is made
        context = AttentionContext(
            layout.positions,
            self._inv_freq,
            layout=whole,
            cached=None if cache is None or cache_step is None else (cache, cache_step),
            parity=self.parity,
        )
        return self.model.embed_tokens(tokens if whole is None else whole.reorder(tokens)), context

    def logits(self, hidden: Tensor, columns: slice | None = None) -> Tensor:
        """Project hidden states (any rows of them) to fp32 logits of the ``columns`` of the vocabulary, by default all."""
        weight = self.lm_head.weight if columns is None else self.lm_head.weight[columns]
        return F.linear(hidden, weight).float()

    def weights(self) -> dict[str, Tensor]:
        """Every weight under its name in the original's checkpoints, whatever parametrizations the modules carry."""
        names = meta_model(self.config).state_dict()
        tied = {"lm_head.weight"} if self.config.tie_word_embeddings else set()
        modules = {name: name.rpartition(".") for name in names if name not in tied}
        return {name: getattr(self.get_submodule(path), leaf).detach() for name, (path, _, leaf) in modules.items()}

    @classmethod
    def from_pretrained(
        cls, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
    ) -> LumosModel:
        """Load ``config.json`` and safetensors weights; see :func:`lumos_engine.model.pretrained.load_pretrained`."""
        from .pretrained import load_pretrained

        config, weights = load_pretrained(folder, dtype=dtype, device=device)
        return cls.from_weights(config, weights)

    @classmethod
    def from_weights(cls, config: LumosConfig, weights: Mapping[str, Tensor]) -> LumosModel:
        """A model in evaluation mode on these very tensors (names as in :meth:`weights`), without copying them."""
        with torch.device("meta"):
            model = cls(config)
        state = dict(weights)
        if config.tie_word_embeddings:
            state["lm_head.weight"] = state["model.embed_tokens.weight"]
        model.load_state_dict(state, strict=True, assign=True)
        model.tie_weights()
        return model.eval()

    def save_pretrained(
        self,
        folder: str | os.PathLike[str],
        *,
        weights: Mapping[str, Tensor] | None = None,
        dtype: torch.dtype | None = None,
        max_shard_bytes: int = 5_000_000_000,
    ) -> None:
        """Write what :meth:`from_pretrained` reads; ``weights`` (an average, say) replaces the model's own.

        See :func:`lumos_engine.model.pretrained.save_pretrained`.
        """
        from .pretrained import save_pretrained

        weights = self.weights() if weights is None else weights
        save_pretrained(folder, self.config, weights, dtype=dtype, max_shard_bytes=max_shard_bytes)

    def _check(
        self,
        tokens: Tensor,
        layout: SequenceLayout | LayoutStep,
        cache: PagedKVCache | None,
        cache_step: CacheStep | None,
    ) -> None:
        if tokens.dtype != torch.int64:
            raise TypeError(f"tokens must be int64, got {tokens.dtype}")
        if tokens.shape != (layout.num_tokens,):
            raise ValueError(f"tokens must have shape [{layout.num_tokens}] for this layout, got {list(tokens.shape)}")
        if (cache is None) != (cache_step is None):
            raise ValueError("cache and cache_step must be given together")
        if isinstance(layout, LayoutStep) != (cache is not None):
            raise ValueError("a LayoutStep needs a cache, and a cache needs a LayoutStep")
        if cache_step is not None and cache_step.step is not layout:
            raise ValueError("cache_step was begun with another step than the one given as layout")
        if tokens.device.type == "cpu" and tokens.numel():  # elsewhere the check would wait for the device
            low, high = (int(bound) for bound in torch.aminmax(tokens))
            if low < 0 or high >= self.config.vocab_size:
                wrong = low if low < 0 else high
                raise ValueError(f"tokens must lie in 0..{self.config.vocab_size - 1}, got {wrong}")


def _check_rows(rows: Tensor, num_tokens: int) -> None:
    if rows.dtype != torch.int64:
        raise TypeError(f"rows must be int64, got {rows.dtype}")
    if rows.dim() != 1:
        raise ValueError(f"rows must have shape [n], got {list(rows.shape)}")
    if rows.device.type == "cpu" and rows.numel():  # elsewhere the check would wait for the device
        low, high = (int(bound) for bound in torch.aminmax(rows))
        if low < 0 or high >= num_tokens:
            raise ValueError(f"rows must lie in 0..{num_tokens - 1}, got {low if low < 0 else high}")


def meta_model(config: LumosConfig) -> LumosModel:
    """The model without storage, for its names and shapes."""
    with torch.device("meta"):
        return LumosModel(config)
