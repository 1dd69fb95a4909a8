"""Instructions that the lanes of a warp execute together, over arrays: element ``i`` of each is a value of thread ``i``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from lumos_engine.testing.emulation import Module

THREADS = 128  # of a block, if there are so many


def run(lines: str, results: Sequence[Any], *operands: np.ndarray) -> list[np.ndarray]:
    """What ``lines`` leave in ``%d0, %d1, ...``, of the dtypes ``results``, after ``%a0, %a1, ...`` got the operands.

    Values have 4 or 8 bytes; those of dtype bool are predicates. ``%t`` is the thread's index in its block.
    """
    count = len(operands[0])
    threads = min(THREADS, count)
    assert count % threads == 0
    outputs = [np.zeros(count, dtype) for dtype in results]
    arrays = [a.astype(np.uint32) if a.dtype == np.bool_ else a.copy() for a in operands]
    arrays += [np.zeros(count, np.uint32) if a.dtype == np.bool_ else a for a in outputs]
    dtypes = [a.dtype for a in (*operands, *outputs)]
    Module(kernel(lines, dtypes, len(operands))).launch(
        "kernel", count // threads, threads, *(torch.from_numpy(a.view(np.uint8)) for a in arrays)
    )
    return [a.astype(o.dtype) for a, o in zip(arrays[len(operands) :], outputs, strict=True)]


def kernel(lines: str, dtypes: Sequence[np.dtype], num_operands: int) -> str:
    declared, before, after = [], [], []
    for i, dtype in enumerate(dtypes):
        register = f"%a{i}" if i < num_operands else f"%d{i - num_operands}"
        is_predicate, bits = dtype == np.bool_, 64 if dtype.itemsize == 8 else 32
        declared.append(f".reg .{'pred' if is_predicate else f'b{bits}'} {register};")
        address = f"ld.param.u64 %at, [p{i}]; mad.wide.u32 %at, %thread, {bits // 8}, %at;"
        if i < num_operands:
            load = (
                "ld.global.b32 %word, [%at]; setp.ne.u32 {}, %word, 0;"
                if is_predicate
                else "ld.global.b{1} {0}, [%at];"
            )
            before.append(f"{address} {load.format(register, bits)}")
        else:
            store = (
                "selp.u32 %word, 1, 0, {}; st.global.b32 [%at], %word;"
                if is_predicate
                else "st.global.b{1} [%at], {0};"
            )
            after.append(f"{address} {store.format(register, bits)}")
    parameters = ", ".join(f".param .u64 p{i}" for i in range(len(dtypes)))
    return "\n".join(
        [
            ".version 9.0\n.target sm_90\n.address_size 64",
            f".visible .entry kernel({parameters})\n{{",
            ".reg .b64 %at; .reg .b32 %t, %thread, %word;",
            *declared,
            "mov.u32 %t, %tid.x; mov.u32 %word, %ctaid.x; mov.u32 %thread, %ntid.x;",
            "mad.lo.u32 %thread, %word, %thread, %t;",
            *before,
            lines,
            *after,
            "ret;\n}",
        ]
    )
