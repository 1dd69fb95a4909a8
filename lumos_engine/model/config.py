"""Sizes and choices of a Lumos transformer, in the words of the original's ``config.json``."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

__all__ = ["LumosConfig"]

# Values that the architecture does not leave open. The original writes only what differs from its own defaults, so an
# absent key means the original's default; all of these but mm_rope agree with it.
_FIXED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "attention_bias": (False, None),
    "mlp_bias": (False, None),
    "rope_scaling": (None,),
    "mm_rope": (True,),
}

_MAX_SIZE = 1 << 24  # so that the bytes of any weight fit into 64 bits


@dataclass(frozen=True)
class LumosConfig:
    """Configuration of :class:`LumosModel`. Defaults are those of the original's config class (its 7B shape).

    ``swin_norm`` puts the RMSNorm behind attention and MLP instead of before. ``model_parallel_size`` is the number of
    rows of the per-head QK norms; head j uses row ``j // (heads // model_parallel_size)``.

    Raises:
        TypeError: a field of the wrong type.
        ValueError: sizes that do not fit together; head_dim must be a multiple of 32, because MM-RoPE deals out
            frequencies in groups of 16 pairs.
    """

    vocab_size: int = 65536
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    max_position_embeddings: int = 4096
    model_parallel_size: int = 1
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    initializer_range: float = 0.02
    swin_norm: bool = False
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        for field in fields(self):
            value: Any = getattr(self, field.name)
            default: Any = field.default
            kind = type(default)
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise TypeError(f"{field.name} must be {kind.__name__}, got {reprlib.repr(value)}")
            if kind is not bool and not 0 < value <= sys.float_info.max:
                raise ValueError(f"{field.name} must be positive, got {reprlib.repr(value)}")
            if kind is int and value > _MAX_SIZE:
                raise ValueError(f"{field.name} must be at most {_MAX_SIZE}, got {reprlib.repr(value)}")
        heads, kv_heads, rows = self.num_attention_heads, self.num_key_value_heads, self.model_parallel_size
        if self.hidden_size % heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {heads}")
        if self.head_dim % 32:
            raise ValueError(
                f"head_dim = hidden_size / num_attention_heads must be a multiple of 32, got {self.head_dim}"
            )
        if heads % kv_heads:
            raise ValueError(f"num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        if heads % rows or kv_heads % rows:
            raise ValueError(
                f"model_parallel_size {rows} must divide num_attention_heads {heads} and num_key_value_heads {kv_heads}"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LumosConfig:
        """Read the original's ``config.json``. Keys that do not change the function (dropout, vq_config, ...) are ignored.

        Raises:
            TypeError, ValueError: see the class; also when a key asks for an architecture that this is not (biases,
                rope scaling, another activation, plain 1-D rotary positions).
        """
        known = {field.name: field.default for field in fields(cls)}
        for key, allowed in _FIXED.items():
            if values.get(key, allowed[0] if key != "mm_rope" else False) not in allowed:
                raise ValueError(
                    f"{key} must be {allowed[0]!r} in the config, got {reprlib.repr(values.get(key, 'nothing'))}"
                )
        config = cls(**{key: value for key, value in values.items() if key in known})
        if values.get("head_dim") not in (None, config.head_dim):
            raise ValueError(f"head_dim must be hidden_size / num_attention_heads = {config.head_dim}, "
                             f"got {reprlib.repr(values['head_dim'])}")  # fmt: skip
        return config

    def to_dict(self) -> dict[str, Any]:
        """All fields and the fixed choices, as ``config.json`` holds them; :meth:`from_dict` reads it back."""
        return {"model_type": "chameleon", **asdict(self), **{key: allowed[0] for key, allowed in _FIXED.items()}}
