"""Run the operations on a backend of one's choice; CUDA on a GPU where there is one, else in emulation."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..ops import _registry
from . import emulation

BACKENDS = ("reference", "cpu", "cuda")
COMPILED = ("cpu", "cuda")

DTYPES = {
    "reference": (torch.float32, torch.bfloat16, torch.float16),
    "cpu": (torch.float32, torch.bfloat16),
    "cuda": (torch.float32, torch.bfloat16, torch.float16),
}


def has_gpu() -> bool:
    """Whether torch sees a GPU and ``lumos_engine._C`` has kernels for it."""
    return torch.cuda.is_available() and bool(_registry.extension().cuda_kernels())


def why_no_cuda() -> str | None:
    """Why no CUDA kernel can run here, not even in emulation; None if they can."""
    if has_gpu():
        return None
    try:
        kernels = emulation.extension().cuda_kernels()
    except RuntimeError as error:
        return str(error)
    return None if kernels else "lumos_engine._C_ptxvm carries no CUDA kernels: it was built without nvcc"


@contextlib.contextmanager
def running(backend: str, schedule: int | None = None) -> Iterator[Callable[[Tensor], Tensor]]:
    """Within the block, operations called without ``backend=`` use ``backend``.

    Args:
        schedule: ``seed`` of ``emulation.ptxvm``, if CUDA kernels are emulated.

    Yields:
        A function that moves a tensor to the device of the backend, with the same strides, offset and memory around it;
        a tensor that lies there already is returned as it is.
    """
    on_gpu = backend == "cuda" and has_gpu()
    machine = emulation.ptxvm(schedule) if backend == "cuda" and not on_gpu else contextlib.nullcontext()
    with machine, _registry.use_backend(backend):
        yield _to_gpu if on_gpu else _stay


def _stay(x: Tensor) -> Tensor:
    return x


def _to_gpu(x: Tensor) -> Tensor:
    storage = x.as_strided((x.untyped_storage().nbytes() // x.element_size(),), (1,), 0)
    return storage.to("cuda").as_strided(x.shape, x.stride(), x.storage_offset())
