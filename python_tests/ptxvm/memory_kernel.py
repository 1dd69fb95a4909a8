"""Small kernels around a few lines of PTX that access memory."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from lumos_engine.testing.emulation import KernelFault, Module, extension

_REGISTERS = """
.reg .b64 %d<16>;
.reg .b32 %r<32>, %thread, %lane, %warp, %block;
.reg .b16 %h<16>;
.reg .pred %q<8>;
mov.u32 %thread, %tid.x;
and.b32 %lane, %thread, 31;
shr.u32 %warp, %thread, 5;
mov.u32 %block, %ctaid.x;
"""


def kernel(body: str, num_pointers: int, shared: int = 0, local: int = 0, name: str = "kernel") -> str:
    """``body`` has pointers ``%a0, %a1, ...``, ``%thread``, ``%lane``, ``%warp``, ``%block`` and free registers ``%d, %r, %h, %q``.

    Of memory it has the arrays ``shared`` and ``local``, of these many bytes.
    """
    parameters = ", ".join(f".param .u64 p{i}" for i in range(num_pointers))
    pointers = "".join(f".reg .b64 %a{i}; ld.param.u64 %a{i}, [p{i}];\n" for i in range(num_pointers))
    arrays = "".join(
        f".{space} .align 16 .b8 {space}[{size}];\n" for space, size in (("shared", shared), ("local", local)) if size
    )
    return f".visible .entry {name}({parameters})\n{{\n{arrays}{_REGISTERS}{pointers}{body}\nret;\n}}\n"


def module(*kernels: str, variables: str = "") -> Module:
    return Module(f".version 9.0\n.target sm_80\n.address_size 64\n{variables}\n{''.join(kernels)}")


def tensor(array: np.ndarray) -> torch.Tensor:
    """The same bytes."""
    return torch.from_numpy(array.view(np.uint8))


def aligned(shape: int | tuple[int, ...]) -> np.ndarray:
    """Zero bytes that begin with a line of the caches."""
    return torch.zeros(shape, dtype=torch.uint8).numpy()


def run(
    body: str,
    *arrays: np.ndarray,
    grid: int = 1,
    block: int = 32,
    shared: int = 0,
    local: int = 0,
    variables: str = "",
    **options: Any,
) -> dict[str, Any]:
    """Run a kernel around ``body`` on arrays, which it may change; returns what the launch counted."""
    machine = extension()
    machine.clear_launches()
    machine.set_options(**options)
    try:
        made = module(kernel(body, len(arrays), shared, local), variables=variables)
        made.launch("kernel", grid, block, *map(tensor, arrays))
    finally:
        machine.set_options()
    return machine.launches()[-1]


def fails(kind: str, message: str, body: str, *arrays: np.ndarray, **arguments: Any) -> KernelFault:
    """That ``run`` ends with a fault of this kind, which says ``message``; regular expressions."""
    with pytest.raises(KernelFault, match=f"^({kind}): .*({message})") as caught:
        run(body, *arrays, **arguments)
    return caught.value


def counted(launch: dict[str, Any], classes: Sequence[str], what: str) -> int:
    return sum(line[what] for line in launch["lines"] if line["class"] in classes)


# Ways to access a word of a space at an address, with %r4 and %r5.
KINDS = {
    "read": "ld.{0}.u32 %r4, [{1}];",
    "write": "st.{0}.u32 [{1}], %r5;",
    "strong read": "ld.volatile.{0}.u32 %r4, [{1}];",
    "strong write": "st.volatile.{0}.u32 [{1}], %r5;",
    "atomic": "atom.{0}.add.u32 %r4, [{1}], %r5;",
}
pairs = pytest.mark.parametrize(("first", "second"), list(itertools.product(KINDS, KINDS)))


def conflict(*kinds: str) -> bool:
    writes = any("read" not in kind for kind in kinds)
    return writes and any(kind in ("read", "write") for kind in kinds)
