"""What a result came from: hashes of weights and versions of software."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["describe_run", "weights_sha256"]

_PACKAGES = ("torch", "numpy", "scikit-learn", "scipy")


def weights_sha256(module: torch.nn.Module) -> str:
    """SHA-256 over name, dtype, shape and bytes of every tensor of the state dict, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def describe_run(parts: Mapping[str, Any]) -> dict[str, Any]:
    """``weights_sha256`` of each part (a module, or something whose ``model`` is one; others are left out) and
    ``versions``.
    """
    from .. import __version__

    hashes = {}
    for name, part in parts.items():
        module = part if isinstance(part, torch.nn.Module) else getattr(part, "model", None)
        if isinstance(module, torch.nn.Module):
            hashes[name] = weights_sha256(module)
    versions = {package: importlib.metadata.version(package) for package in _PACKAGES}
    return {
        "weights_sha256": hashes,
        "versions": {"lumos_engine": __version__, "python": platform.python_version(), **versions},
    }
