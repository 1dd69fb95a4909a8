"""Triton kernels whose PTX the machine runs, and the command that compiles them: ``python triton_kernels.py FOLDER``.

Triton is the compiler here, so the PTX is nobody's of this project. It needs no GPU: every kernel is compiled for sm_80 and
left in FOLDER as ``<name>.ptx``, its bytes of shared memory as ``<name>.shared``. Needs triton alone, so the interpreter
may be another than the one that runs the tests.
"""

from __future__ import annotations

import sys
from pathlib import Path

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def vector_add(x, y, out, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    tl.store(out + at, tl.load(x + at, mask=inside) + tl.load(y + at, mask=inside), mask=inside)


@triton.jit
def softmax(x, out, row_stride, num_columns, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    inside = columns < num_columns
    values = tl.load(x + row * row_stride + columns, mask=inside, other=-float("inf"))
    powers = tl.exp(values - tl.max(values, axis=0))
    tl.store(out + row * row_stride + columns, powers / tl.sum(powers, axis=0), mask=inside)


@triton.jit
def layer_norm(x, weight, bias, out, mean_out, rstd_out, num_columns, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0)
    total = tl.zeros([BLOCK], dtype=tl.float32)
    squares = tl.zeros([BLOCK], dtype=tl.float32)
    for begin in range(0, num_columns, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        total += tl.load(x + row * num_columns + columns, mask=columns < num_columns, other=0.0).to(tl.float32)
    mean = tl.sum(total, axis=0) / num_columns
    for begin in range(0, num_columns, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        values = tl.load(x + row * num_columns + columns, mask=columns < num_columns, other=0.0).to(tl.float32)
        centred = tl.where(columns < num_columns, values - mean, 0.0)
        squares += centred * centred
    rstd = 1 / tl.sqrt(tl.sum(squares, axis=0) / num_columns + eps)
    tl.store(mean_out + row, mean)
    tl.store(rstd_out + row, rstd)
    for begin in range(0, num_columns, BLOCK):
        columns = begin + tl.arange(0, BLOCK)
        inside = columns < num_columns
        values = tl.load(x + row * num_columns + columns, mask=inside, other=0.0).to(tl.float32)
        w = tl.load(weight + columns, mask=inside).to(tl.float32)
        b = tl.load(bias + columns, mask=inside).to(tl.float32)
        tl.store(
            out + row * num_columns + columns, ((values - mean) * rstd * w + b).to(out.dtype.element_ty), mask=inside
        )


@triton.jit
def matmul(a, b, out, rows, columns, depth, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr):
    """out[rows, columns] = a[rows, depth] @ b[depth, columns], all row by row; any rows and columns."""
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    n = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    k = tl.arange(0, DEPTH)
    total = tl.zeros([ROWS, COLUMNS], dtype=tl.float32)
    for begin in range(0, depth, DEPTH):
        left = (m[:, None] < rows) & (begin + k[None, :] < depth)
        right = (begin + k[:, None] < depth) & (n[None, :] < columns)
        a_tile = tl.load(a + m[:, None] * depth + begin + k[None, :], mask=left, other=0.0)
        b_tile = tl.load(b + (begin + k[:, None]) * columns + n[None, :], mask=right, other=0.0)
        total = tl.dot(a_tile, b_tile, total)
    inside = (m[:, None] < rows) & (n[None, :] < columns)
    tl.store(out + m[:, None] * columns + n[None, :], total.to(out.dtype.element_ty), mask=inside)


@triton.jit
def attention(q, k, v, out, lse_out, length, scale, ROWS: tl.constexpr, KEYS: tl.constexpr, HEAD_DIM: tl.constexpr):
    """Causal attention of one head a program, rows of queries by blocks; q, k, v, out [heads, length, HEAD_DIM]."""
    row_block, head = tl.program_id(0), tl.program_id(1)
    first = head * length * HEAD_DIM
    row = row_block * ROWS + tl.arange(0, ROWS)
    key = tl.arange(0, KEYS)
    d = tl.arange(0, HEAD_DIM)
    q_tile = tl.load(q + first + row[:, None] * HEAD_DIM + d[None, :], mask=row[:, None] < length, other=0.0)
    largest = tl.full([ROWS], -float("inf"), dtype=tl.float32)
    total = tl.zeros([ROWS], dtype=tl.float32)
    mixed = tl.zeros([ROWS, HEAD_DIM], dtype=tl.float32)
    scale *= 1.4426950408889634  # powers of two below
    for begin in range(0, tl.minimum((row_block + 1) * ROWS, length), KEYS):
        at = begin + key
        k_tile = tl.load(k + first + at[None, :] * HEAD_DIM + d[:, None], mask=at[None, :] < length, other=0.0)
        scores = tl.dot(q_tile, k_tile) * scale
        scores = tl.where((at[None, :] <= row[:, None]) & (at[None, :] < length), scores, -float("inf"))
        new_largest = tl.maximum(largest, tl.max(scores, 1))
        weights = tl.exp2(scores - new_largest[:, None])
        shrink = tl.exp2(largest - new_largest)
        total = total * shrink + tl.sum(weights, 1)
        v_tile = tl.load(v + first + at[:, None] * HEAD_DIM + d[None, :], mask=at[:, None] < length, other=0.0)
        mixed = tl.dot(weights.to(v_tile.dtype), v_tile, mixed * shrink[:, None])
        largest = new_largest
    tl.store(lse_out + head * length + row, (largest + tl.log2(total)) / 1.4426950408889634, mask=row < length)
    where = out + first + row[:, None] * HEAD_DIM + d[None, :]
    tl.store(where, (mixed / total[:, None]).to(out.dtype.element_ty), mask=row[:, None] < length)


@triton.jit
def histogram(x, counts, total, size, BINS: tl.constexpr, BLOCK: tl.constexpr):
    """counts[BINS] += how often each value occurs in x; total += their sum. Many programs add to the same words."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    values = tl.load(x + at, mask=at < size, other=0)
    tl.atomic_add(counts + tl.arange(0, BINS), tl.histogram(values, BINS, mask=at < size))
    tl.atomic_add(total, tl.sum(values, axis=0))


@triton.jit
def running_sum(x, out, order, num_columns, BLOCK: tl.constexpr):
    """Sums of all values before and at each column, and the values in order: a scan and a sort between the lanes."""
    row = tl.program_id(0)
    columns = tl.arange(0, BLOCK)
    values = tl.load(x + row * num_columns + columns, mask=columns < num_columns, other=float("inf"))
    kept = tl.where(columns < num_columns, values, 0.0)
    tl.store(out + row * num_columns + columns, tl.cumsum(kept, axis=0), mask=columns < num_columns)
    tl.store(order + row * num_columns + columns, tl.sort(values), mask=columns < num_columns)


@triton.jit
def reductions(x, largest, sums, turned, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Of x [ROWS, COLUMNS]: place of the largest value of each row, sums of columns, transposed matrix."""
    row, column = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    values = tl.load(x + row[:, None] * COLUMNS + column[None, :])
    tl.store(largest + row, tl.argmax(values, 1))
    tl.store(sums + column, tl.sum(values, 0))
    tl.store(turned + column[:, None] * ROWS + row[None, :], tl.trans(values))


@triton.jit
def dropout(x, out, size, p, seed, BLOCK: tl.constexpr):
    """Philox numbers: wide integer products."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    values = tl.load(x + at, mask=inside, other=0.0)
    kept = tl.where(tl.rand(seed, at) > p, values / (1 - p), 0.0)
    tl.store(out + at, kept, mask=inside)


@triton.jit
def functions(x, sine, cosine, erf, log, reciprocal_root, root, whole, size, BLOCK: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    values = tl.load(x + at, mask=inside, other=1.0)
    tl.store(sine + at, tl.sin(values), mask=inside)
    tl.store(cosine + at, tl.cos(values), mask=inside)
    tl.store(erf + at, tl.erf(values), mask=inside)
    tl.store(log + at, tl.log(tl.abs(values)), mask=inside)
    tl.store(reciprocal_root + at, tl.rsqrt(tl.abs(values)), mask=inside)
    tl.store(root + at, tl.sqrt_rn(tl.abs(values)), mask=inside)
    tl.store(whole + at, tl.floor(values), mask=inside)


# name of the file: kernel, types of the parameters in order, constants, warps, stages
MATMUL = dict(ROWS=64, COLUMNS=64, DEPTH=32)
KERNELS = {
    "vector_add": (vector_add, "*fp32 *fp32 *fp32 i32", dict(BLOCK=1024), 4, 1),
    "softmax": (softmax, "*fp32 *fp32 i32 i32", dict(BLOCK=1024), 4, 1),
    "layer_norm": (layer_norm, "*bf16 *fp32 *fp32 *bf16 *fp32 *fp32 i32 fp32", dict(BLOCK=512), 4, 1),
    "matmul_bf16": (matmul, "*bf16 *bf16 *bf16 i32 i32 i32", MATMUL, 4, 3),
    "matmul_fp16": (matmul, "*fp16 *fp16 *fp16 i32 i32 i32", MATMUL, 4, 4),
    "matmul_tf32": (matmul, "*fp32 *fp32 *fp32 i32 i32 i32", MATMUL, 4, 2),
    "attention": (attention, "*bf16 *bf16 *bf16 *bf16 *fp32 i32 fp32", dict(ROWS=64, KEYS=32, HEAD_DIM=64), 4, 3),
    "histogram": (histogram, "*i32 *i32 *i32 i32", dict(BINS=64, BLOCK=512), 4, 1),
    "running_sum": (running_sum, "*fp32 *fp32 *fp32 i32", dict(BLOCK=512), 4, 1),
    "reductions": (reductions, "*fp32 *i32 *fp32 *fp32", dict(ROWS=32, COLUMNS=64), 4, 1),
    "dropout": (dropout, "*fp32 *fp32 i32 fp32 i32", dict(BLOCK=512), 4, 1),
    "functions": (functions, "*fp32 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 *fp32 i32", dict(BLOCK=256), 4, 1),
}


def compile_kernel(name: str) -> triton.compiler.CompiledKernel:
    """One kernel. Pointers are said to be aligned to 16 bytes, and the extents that are strides to be multiples of 16:
    without that Triton copies nothing with ``cp.async``."""
    kernel, types, constants, num_warps, num_stages = KERNELS[name]
    signature = dict(zip(kernel.arg_names, types.split(), strict=False)) | {key: "constexpr" for key in constants}
    strides = ("depth", "columns")
    aligned = [i for i, key in enumerate(kernel.arg_names) if signature[key].startswith("*") or key in strides]
    source = ASTSource(kernel, signature, constants, {(i,): [["tt.divisibility", 16]] for i in aligned})
    options = dict(num_warps=num_warps, num_stages=num_stages)
    return triton.compile(source, target=GPUTarget("cuda", 80, 32), options=options)


if __name__ == "__main__":
    for each in KERNELS:
        compiled = compile_kernel(each)
        Path(sys.argv[1], f"{each}.ptx").write_text(compiled.asm["ptx"])
        Path(sys.argv[1], f"{each}.shared").write_text(str(compiled.metadata.shared))
