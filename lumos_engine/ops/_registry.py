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
from torch.utils.weak import WeakIdKeyDictionary

BACKENDS = ("reference", "cpu", "cuda")
FLOATS = (torch.float32, torch.bfloat16)
FLOATS_OF = {
    "reference": (*FLOATS, torch.float16, torch.float64),
    "cpu": FLOATS,
    "cuda": (*FLOATS, torch.float16),
}
"""What the operations that have a kernel on every backend take, by backend."""

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
"""How often an operation had to copy an argument that lay in memory as no kernel reads it, by ``op.argument``."""

library = torch.library.Library("lumos", "DEF")

_ACCESS_BYTES = 16  # of the CUDA kernels

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


@contextlib.contextmanager
def emulate(extension: Any) -> Iterator[None]:
    """Within the block, operations on CPU tensors run the CUDA kernels of ``extension``, as the backend "cuda".

    Those without a CUDA kernel stay on the CPU. ``extension``: like ``_C``, but able to run CUDA kernels on the memory
    of the host; see ``lumos_engine.testing.emulation``. Holds for the process.
    """
    global _emulator, _emulated
    before = _emulator, _emulated
    _emulator, _emulated = extension, tuple(extension.cuda_kernels())
    try:
        yield
    finally:
        _emulator, _emulated = before


def uses_cuda(kernel: str, tensor: Tensor) -> bool:
    """Whether a call of ``kernel`` on ``tensor`` is one of the CUDA kernel."""
    return tensor.is_cuda or kernel in _emulated


def select_backend(op: str, tensor: Tensor, backend: str | None, kernel: str | None = None) -> str:
    """The backend that ``op`` shall use for ``tensor``: ``backend``, else that of ``use_backend``, else the tensor's device.

    ``kernel``: the function of ``_C`` that does the work, if its name is not ``op``.

    Raises:
        ValueError: unknown backend, or one that cannot work on the tensor's device.
        RuntimeError: a backend that this installation does not have.
    """
    device = tensor.device.type
    kernel = kernel or op
    emulated = device == "cpu" and kernel in _emulated
    name = backend or _backend_in_use or ("cuda" if device == "cuda" or emulated else "cpu")
    if name not in BACKENDS:
        raise ValueError(f"{op}: backend is {name!r}; allowed: {', '.join(BACKENDS)}")
    if name == "cuda" and not emulated:
        if kernel not in _cuda_kernels:
            raise RuntimeError(
                f"{op}: this build carries no CUDA kernel of it; move the tensors to the CPU or pass backend='reference'"
            )
        if device not in ("cuda", "meta"):
            raise ValueError(
                f"{op}: the cuda backend was given a tensor on {tensor.device}; move it to a GPU, "
                "or run the kernel without one in lumos_engine.testing.ptxvm()"
            )
    if name == "cpu":
        if emulated:
            raise ValueError(
                f"{op}: backend is 'cpu' within an emulation, where tensors on the CPU go to the CUDA kernel; "
                "pass backend='cuda' or leave the emulation"
            )
        if device not in ("cpu", "meta"):
            raise ValueError(
                f"{op}: the cpu backend was given a tensor on {tensor.device}; move it to the CPU or pass backend='reference'"
            )
        if _extension_error is not None:
            raise RuntimeError(
                f"{op}: the compiled extension is missing ({_extension_error}); "
                "reinstall lumos_engine with a C++17 compiler, or pass backend='reference'"
            )
    return name


def leaves_to_torch(tensor: Tensor, backend: str | None) -> bool:
    """Whether an operation with a kernel for CPUs alone leaves ``tensor`` to torch's own: on other devices, and in dtypes that
    the kernel does not take, unless another backend is asked for."""
    name = backend or _backend_in_use
    if name is None:
        return tensor.device.type != "cpu" or tensor.dtype not in FLOATS_OF["cpu"]
    return name == "cuda"


try:
    _C: Any = importlib.import_module("lumos_engine._C")
    _extension_error: str | None = None
except ImportError as error:
    _C, _extension_error = None, str(error)

# Names of functions, as tuples because torch.compile reads them.
_cuda_kernels: tuple[str, ...] = tuple(_C.cuda_kernels()) if _C is not None else ()
_emulator: Any = None
_emulated: tuple[str, ...] = ()


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
    """``tensor``, or a copy of it (counted in ``copies``) when the kernel of ``op`` cannot read it where it lies.

    Its last dimension must be contiguous; on CUDA its first element and all other strides must lie at multiples of 16
    bytes too: then the rows of a copy are padded where they must be.
    """
    if tensor.numel() == 0:
        return tensor
    *outer, last = ((stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    good = last[0] == 1 or last[1] == 1
    if good and uses_cuda(op, tensor):
        places = [tensor.data_ptr(), *(stride * tensor.element_size() for stride, size in outer if size > 1)]
        good = all(place % _ACCESS_BYTES == 0 for place in places)
    if good:
        return tensor
    copies[f"{op}.{name}"] += 1
    access = _ACCESS_BYTES // tensor.element_size() if uses_cuda(op, tensor) else 1
    *shape, size = tensor.shape
    return tensor.new_empty((*shape, -(-size // access) * access))[..., :size].copy_(tensor)


def view(tensor: Tensor | None) -> tuple[int, int, tuple[int, ...], tuple[int, ...]] | None:
    """What ``_C`` takes for a tensor: (data_ptr, dtype code, shape, strides in elements). It does not keep the tensor alive."""
    if tensor is None:
        return None
    return tensor.data_ptr(), _DTYPE_CODES[tensor.dtype], tuple(tensor.shape), tuple(tensor.stride())


def _place_of(kernel: str, first: Tensor) -> tuple[Any, tuple[int, int, int]]:
    """The extension that runs ``kernel`` for ``first``, and where: (GPU, stream, threads of the CPU)."""
    if not uses_cuda(kernel, first):
        return extension(), (-1, 0, torch.get_num_threads())
    if first.is_cuda:
        return extension(), (first.device.index, torch.cuda.current_stream(first.device).cuda_stream, 0)
    return _emulator, (0, 0, 0)


_device_copies = WeakIdKeyDictionary()  # of tensors on the CPU: {device: copy}


def on_device(tensor: Tensor, like: Tensor) -> Tensor:
    """``tensor`` where ``like`` lies. A copy is made once and kept as long as ``tensor``, which must not change: a schedule."""
    if tensor.device == like.device:
        return tensor
    copies_of = _device_copies.setdefault(tensor, {})
    if like.device not in copies_of:
        copies_of[like.device] = tensor.to(like.device)
    copy: Tensor = copies_of[like.device]
    return copy


def call(kernel: str, first: Tensor, *arguments: Any) -> None:
    """Run ``_C.<kernel>(first, *arguments, device)`` on the device of ``first``, each tensor as its ``view``.

    On a GPU the kernel is queued on torch's current stream, and nobody waits for it.
    """
    module, device = _place_of(kernel, first)
    views = (view(x) if isinstance(x, Tensor) else x for x in (first, *arguments))
    getattr(module, kernel)(*views, device)


def without_autograd(operation: Callable[..., Any], *arguments: Any) -> Any:
    """``operation(*arguments)``; where gradients are switched off, past its autograd formula.

    That is Python, which the dispatcher calls even if there is nothing to record.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return operation(*arguments)
    with torch._C._AutoDispatchBelowAutograd():
        return operation(*arguments)


def workspace(kernel: str, first: Tensor, *arguments: Any) -> Tensor:
    """Memory that ``kernel`` wants beside its arguments: as many bytes as ``_C.<kernel>_workspace_bytes`` says."""
    module, device = _place_of(kernel, first)
    views = (view(x) if isinstance(x, Tensor) else x for x in (first, *arguments))
    return first.new_empty(getattr(module, f"{kernel}_workspace_bytes")(*views, device), dtype=torch.uint8)


# ------------------------------------------------------------------------------------------------------------ registration


def define(
    schema: str,
    *,
    cpu: Callable[..., Any],
    fake: Callable[..., Any],
    cuda: Callable[..., Any] | None = None,
    kernel: str | None = None,
    setup_context: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Define ``lumos::<schema>`` with its CPU kernel, its fake (meta) kernel and, where given, CUDA kernel and autograd formula.

    Within ``emulate`` the CUDA kernel takes tensors on the CPU too, if the function ``kernel`` of ``_C`` is emulated; its name
    is the operation's without underscores around it unless given.
    """
    library.define(schema)
    name = schema.split("(", 1)[0]
    function = kernel or name.strip("_")
    if cuda is None:
        library.impl(name, cpu, "CPU")
    else:

        def cpu_or_emulated(*arguments: Any) -> Any:
            return (cuda if function in _emulated else cpu)(*arguments)

        library.impl(name, cpu_or_emulated, "CPU")
        library.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"lumos::{name}", fake, lib=library)
    if backward is not None:
        torch.library.register_autograd(f"lumos::{name}", backward, setup_context=setup_context, lib=library)
