"""CUDA kernels without a GPU: a machine that executes their PTX on the CPU and checks every access.

``ptxvm()`` runs the operations' own CUDA kernels on it; ``Module`` runs any PTX text. What a kernel must not do (an access out of
bounds, a race, a barrier that not all threads reach) raises ``KernelFault`` with kernel, source line, block and thread.
"""

from __future__ import annotations

import contextlib
import importlib
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:

    class KernelFault(RuntimeError): ...


def extension() -> Any:
    """The compiled extension ``lumos_engine._C_ptxvm``. Raises RuntimeError if it is missing."""
    try:
        return importlib.import_module("lumos_engine._C_ptxvm")
    except ImportError as error:
        raise RuntimeError(
            f"lumos_engine.testing.emulation: the machine is missing ({error}); it is part of development builds: "
            "run make test, or install a source tree with pip install -C cmake.define.LUMOS_PTXVM=ON ."
        ) from error


def __getattr__(name: str) -> Any:
    if name == "KernelFault":
        return extension().KernelFault
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Machine:
    """The machine inside ``ptxvm()``."""

    def __init__(self) -> None:
        self._extension = extension()

    @property
    def launches(self) -> list[dict[str, Any]]:
        """Each launch since the begin of ``ptxvm()``: kernel, grid, block, shared bytes, device, stream, seconds, and
        counters by source line."""
        return self._extension.launches()


@contextlib.contextmanager
def ptxvm(seed: int | None = None, **options: Any) -> Iterator[Machine]:
    """Within the block, ``backend="cuda"`` of the operations means the machine, and takes tensors on the CPU.

    Args:
        seed: run blocks and warps in an order drawn from it; ``None`` runs them in their order.
        options: fields of ``Options`` in ``csrc/ptxvm/machine.h``, for example ``check_races``, ``resident_blocks``.
    """
    from ..ops import _registry

    machine = Machine()
    found = extension()
    found.set_options(permute=seed is not None, seed=seed or 0, **options)
    found.clear_launches()
    try:
        with _registry.emulate(found):
            yield machine
    finally:
        found.set_options()


def _extents(value: int | tuple[int, ...]) -> tuple[int, int, int]:
    extents = (value,) if isinstance(value, int) else value
    x, y, z = (*extents, *[1] * (3 - len(extents)))
    return x, y, z


def _packed(value: torch.Tensor | float | bytes, num_bytes: int) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, torch.Tensor):
        return value.data_ptr().to_bytes(8, "little")
    if isinstance(value, float):
        return struct.pack("<f" if num_bytes == 4 else "<d", value)
    return value.to_bytes(num_bytes, "little", signed=value < 0)


class Module:
    """PTX text that the machine has accepted.

    Raises:
        ValueError: it is no PTX, or uses what the machine does not have; names opcode and line.
    """

    def __init__(self, ptx: str) -> None:
        self._extension = extension()
        self._module = self._extension.PtxModule(ptx)

    @property
    def kernels(self) -> list[str]:
        """Names of the kernels."""
        return self._module.kernels

    def synchronisations(self, kernel: str) -> list[dict[str, Any]]:
        """Barriers, waits, commits and fences of a kernel: index, opcode, file, line. ``skip_instruction`` takes an index."""
        return self._module.synchronisations(kernel)

    def launch(
        self,
        kernel: str,
        grid: int | tuple[int, ...],
        block: int | tuple[int, ...],
        *arguments: torch.Tensor | float | bytes,
        shared_bytes: int = 0,
    ) -> None:
        """Run a kernel. It may touch the bytes of the tensors among its arguments and nothing else.

        Args:
            arguments: tensors (their address), numbers (of the parameter's size), or bytes as they are.

        Raises:
            ValueError: a call that no GPU would take.
            KernelFault: what the kernel did wrong.
        """
        sizes = self._module.parameters(kernel)
        if len(sizes) != len(arguments):
            raise ValueError(f"{kernel} takes {len(sizes)} arguments, not {len(arguments)}")
        try:
            for i, value in enumerate(arguments):
                if isinstance(value, torch.Tensor) and value.numel():
                    elements = 1 + sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
                    self._extension.add_buffer(value.data_ptr(), elements * value.element_size(), f"argument {i}")
            packed = [_packed(value, size) for value, size in zip(arguments, sizes, strict=True)]
            self._module.launch(kernel, _extents(grid), _extents(block), packed, shared_bytes)
        finally:
            self._extension.clear_buffers()
