"""The transformer: configuration, layers, model, and its folder on disk."""

from .config import LumosConfig
from .model import LumosModel

__all__ = ["LumosConfig", "LumosModel"]
