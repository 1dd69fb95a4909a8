"""Training: AR-DF on packed batches of clips, ``lumos train``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import TrainConfig, load_config
    from .trainer import Trainer

__all__ = ["TrainConfig", "Trainer", "load_config"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import config, trainer

    return getattr(trainer if name == "Trainer" else config, name)
