"""What all operations share: the choice of backend, argument checks, and registration with ``torch.library``.

Every check raises one sentence that names the operation, the argument, what was given and what is allowed, before any work is done.
"""

from __future__ import annotations

import contextlib
import importlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

BACKENDS = ("reference", "cpu", "cuda")
FLOATS = (torch.float32, torch.bfloat16)

_DTYPE_CODES = {  # lumos_dtype of csrc/include/lumos/dtype.h
    torch.float32: 0,
    torch.bfloat16: 1,
    torch.float16: 2,
    torch.float64: 3,
    torch.int32: 4,
    torch.int64: 5,
    torch.uint8: 6,
    torch.bool: 7,
}

copies: Counter[str] = Counter()
"""How often an operation had to copy an argument whose last dimension was not contiguous, by ``op.argument``."""

library = torch.library.Library("lumos", "DEF")

_backend_in_use: str | None = None


# ---------------------------------------------------------------------------------------------------------------- backends


@contextlib.contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Within the block, operations called without ``backend=`` use ``name`` (``None``: the default). Holds for the process."""
    global _backend_in_use
    if name is not None and name not in BACKENDS:
        raise ValueError(f"use_backend: backend is {name!r}; allowed: {', '.join(BACKENDS)}")
    before = _backend_in_use
    _backend_in_use = name
    try:
        yield
    finally:
        _backend_in_use = before


def select_backend(op: str, tensor: Tensor, backend: str | None) -> str:
    """The backend that ``op`` shall use for ``tensor``: ``backend``, else that of ``use_backend``, else the tensor's device.

    Raises:
        ValueError: unknown backend, or one that cannot work on the tensor's device.
        RuntimeError: a backend that this installation does not have.
    """
    name = backend or _backend_in_use or ("cuda" if tensor.device.type == "cuda" else "cpu")
    if name not in BACKENDS:
        raise ValueError(f"{op}: backend is {name!r}; allowed: {', '.join(BACKENDS)}")
    if name == "cuda":
        raise RuntimeError(
            f"{op}: this build carries no CUDA kernels; move the tensors to the CPU or pass backend='reference'"
        )
    if name == "cpu":
        if tensor.device.type not in ("cpu", "meta"):
            raise ValueError(
                f"{op}: the cpu backend was given a tensor on {tensor.device}; move it to the CPU or pass backend='reference'"
            )
        if _extension_error is not None:
            raise RuntimeError(
                f"{op}: the compiled extension is missing ({_extension_error}); "
                "reinstall lumos_engine with a C++17 compiler, or pass backend='reference'"
            )
    return name


try:
    _C: Any = importlib.import_module("lumos_engine._C")
    _extension_error: str | None = None
except ImportError as error:
    _C, _extension_error = None, str(error)


def extension() -> Any:
    """The compiled extension ``lumos_engine._C``. Raises RuntimeError if it is missing."""
    if _C is None:
        raise RuntimeError(f"lumos_engine: the compiled extension is missing ({_extension_error}); reinstall it")
    return _C


def reference(module: str) -> ModuleType:
    """The module ``lumos_engine.reference.<module>``."""
    return importlib.import_module(f"lumos_engine.reference.{module}")


# ------------------------------------------------------------------------------------------------------------------ checks


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def check_tensor(
    op: str,
    name: str,
    tensor: Any,
    *,
    dtype: torch.dtype | Sequence[torch.dtype],
    shape: Sequence[int | str],
    device: torch.device | None = None,
) -> None:
    """Check one argument. ``shape`` holds extents, or words for extents that may be anything.

    Raises:
        TypeError: not a tensor, or a dtype other than ``dtype``.
        ValueError: another shape or device.
    """
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{op}: {name} is a {type(tensor).__name__}; it must be a tensor")
    allowed = (dtype,) if isinstance(dtype, torch.dtype) else tuple(dtype)
    if tensor.dtype not in allowed:
        raise TypeError(
            f"{op}: {name} has dtype {_dtype_name(tensor.dtype)}; allowed: {', '.join(map(_dtype_name, allowed))}"
        )
    good = tensor.ndim == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not good:
        wanted = ", ".join(map(str, shape))
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; it must be [{wanted}]")
    if device is not None and tensor.device != device:
        raise ValueError(f"{op}: {name} is on {tensor.device}; it must be on {device} like the first argument")


def check_head_dim(op: str, head_dim: int, allowed: Sequence[int] | None = None) -> None:
    """Raises ValueError unless ``head_dim`` is a positive multiple of 32, and one of ``allowed`` where given."""
    if head_dim <= 0 or head_dim % 32:
        raise ValueError(f"{op}: head_dim is {head_dim}; it must be a positive multiple of 32")
    if allowed is not None and head_dim not in allowed:
        raise ValueError(f"{op}: head_dim is {head_dim}; the cpu backend has {', '.join(map(str, allowed))}")


def rows_contiguous(op: str, name: str, tensor: Tensor) -> Tensor:
    """``tensor``, or a copy of it (counted in ``copies``) when its last dimension is not contiguous."""
    if tensor.stride(-1) == 1 or tensor.shape[-1] <= 1 or tensor.numel() == 0:
        return tensor
    copies[f"{op}.{name}"] += 1
    return tensor.contiguous()


def view(tensor: Tensor | None) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """What ``_C`` takes for a tensor: (data_ptr, dtype code, shape, strides in elements). It does not keep the tensor alive."""
    if tensor is None:
        return None
    return tensor.data_ptr(), _DTYPE_CODES[tensor.dtype], tuple(tensor.shape), tuple(tensor.stride())


# ------------------------------------------------------------------------------------------------------------ registration


def define(
    schema: str,
    *,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define ``lumos::<schema>`` with its CPU kernel, its fake (meta) kernel and, where given, its autograd formula."""
    library.define(schema)
    name = schema.split("(", 1)[0]
    library.impl(name, cpu, "CPU")
    torch.library.register_fake(f"lumos::{name}", fake, lib=library)
    if backward is not None:
        torch.library.register_autograd(f"lumos::{name}", backward, setup_context=setup_context, lib=library)
