"""One call of each foreign kernel: its arguments, and what fp64 says that it must answer."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

NULL = b"\0" * 8  # Triton ends its parameters by pointers to scratch memory that these kernels do not need


@dataclass
class Call:
    """Arguments as ``Module.launch`` takes them. expected: number of the argument -> its values afterwards in fp64 (NaN
    where it is anybody's), or integers. bound: greatest difference allowed, relative to the largest expected value."""

    grid: int | tuple[int, ...]
    block: int | tuple[int, ...]
    arguments: list[Tensor | float | bytes]
    expected: dict[int, Tensor]
    bound: float
    shared_bytes: int = 0

    def errors(self) -> dict[int, float]:
        """Greatest relative difference of each output."""
        found = {}
        for i, expected in self.expected.items():
            known = ~expected.isnan()
            difference = (self.arguments[i].double() - expected)[known].abs().max()
            found[i] = float(difference / expected[known].abs().max())
        return found


def poisoned(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.full(shape, math.nan, dtype=dtype)


def vector_add() -> Call:
    x, y = torch.randn(2, 5000)
    return Call(5, 128, [x, y, poisoned(5000), 5000, NULL, NULL], {2: x.double() + y.double()}, 1e-7)


def softmax() -> Call:
    x = torch.randn(6, 1000) * 4
    out = poisoned(6, 1000)
    return Call(
        6, 128, [x[:, :781], out, 1000, 781, NULL, NULL], {1: _padded(x[:, :781].double().softmax(1), 1000)}, 1e-6
    )


def _padded(values: Tensor, columns: int) -> Tensor:
    return torch.nn.functional.pad(values, (0, columns - values.shape[1]), value=math.nan)


def layer_norm() -> Call:
    x = (torch.randn(5, 1200) + 1).bfloat16()
    weight, bias = torch.randn(2, 1200)
    mean, var = x.double().mean(1), x.double().var(1, unbiased=False)
    out = (x.double() - mean[:, None]) * (var[:, None] + 1e-5).rsqrt() * weight.double() + bias.double()
    outputs = [poisoned(5, 1200, dtype=torch.bfloat16), poisoned(5), poisoned(5)]
    arguments = [x, weight, bias, *outputs, 1200, 1e-5, NULL, NULL]
    return Call(5, 128, arguments, {3: out, 4: mean, 5: (var + 1e-5).rsqrt()}, 4e-3)


def triton_matmul(dtype: torch.dtype, bound: float) -> Call:
    rows, columns, depth = 150, 144, 208
    a, b = torch.randn(rows, depth).to(dtype), torch.randn(depth, columns).to(dtype)
    arguments = [a, b, poisoned(rows, columns, dtype=dtype), rows, columns, depth, NULL, NULL]
    return Call((3, 3), 128, arguments, {2: a.double() @ b.double()}, bound)


def _attend(q: Tensor, k: Tensor, v: Tensor, causal: bool) -> tuple[Tensor, Tensor]:
    """q, k, v [heads, length, head_dim] -> output, lse [heads, length]; fp64."""
    scores = q.double() @ k.double().mT / math.sqrt(q.shape[-1])
    if causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1) @ v.double(), scores.logsumexp(-1)


def triton_attention() -> Call:
    heads, length, head_dim = 2, 150, 64
    q, k, v = torch.randn(3, heads, length, head_dim).bfloat16()
    out, lse = _attend(q, k, v, causal=True)
    outputs = [torch.full_like(q, math.nan), poisoned(heads, length)]
    arguments = [q, k, v, *outputs, length, head_dim**-0.5, NULL, NULL]
    return Call((3, heads), 128, arguments, {3: out, 4: lse}, 1e-2)


def histogram() -> Call:
    x = torch.randint(64, (2100,), dtype=torch.int32)
    arguments = [x, torch.zeros(64, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), 2100, NULL, NULL]
    return Call(5, 128, arguments, {1: x.bincount(minlength=64).double(), 2: x.sum().double().reshape(1)}, 0)


def running_sum() -> Call:
    x = torch.randn(4, 400)
    arguments = [x, poisoned(4, 400), poisoned(4, 400), 400, NULL, NULL]
    return Call(4, 128, arguments, {1: x.double().cumsum(1), 2: x.double().sort(1).values}, 1e-6)


def reductions() -> Call:
    x = torch.randn(32, 64)
    arguments = [x, torch.zeros(32, dtype=torch.int32), poisoned(64), poisoned(64, 32), NULL, NULL]
    d = x.double()
    return Call(1, 128, arguments, {1: d.argmax(1).double(), 2: d.sum(0), 3: d.t()}, 1e-6)


def dropout() -> Call:
    x = torch.rand(3000) + 1
    arguments = [x, poisoned(3000), 3000, 0.25, 1234, NULL, NULL]
    return Call(6, 128, arguments, {1: torch.where(_philox(1234, 3000) > 0.25, x.double() / 0.75, 0.0)}, 1e-6)


def _philox(seed: int, size: int) -> Tensor:
    """Uniform numbers of counters 0, 1, ...: the first word of Philox-4x32-10 (Salmon et al. 2011), as Triton scales it."""
    c = [np.arange(size, dtype=np.uint64), *(np.zeros(size, dtype=np.uint64) for _ in range(3))]
    key = [np.uint64(seed), np.uint64(0)]
    low, word = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        first, second = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [second >> word ^ c[1] ^ key[0], second & low, first >> word ^ c[3] ^ key[1], first & low]
        key = [key[0] + np.uint64(0x9E3779B9) & low, key[1] + np.uint64(0xBB67AE85) & low]
    signed = c[0].astype(np.uint32).view(np.int32).astype(np.int64)
    return torch.from_numpy(np.where(signed < 0, -signed - 1, signed) * 4.6566127342e-10)


def functions() -> Call:
    x = torch.cat([torch.randn(800), torch.randn(200) * 1e5])  # large arguments of sin are reduced with wide integers
    d = x.double()
    names = (
        torch.sin,
        torch.cos,
        torch.erf,
        lambda d: d.abs().log(),
        lambda d: d.abs().rsqrt(),
        lambda d: d.abs().sqrt(),
    )
    expected = {1 + i: function(d) for i, function in enumerate((*names, torch.floor))}
    return Call(4, 128, [x, *(poisoned(1000) for _ in expected), 1000, NULL, NULL], expected, 3e-7)


def cutlass_gemm(
    dtype: torch.dtype, columns_first: bool, bound: float, full_tiles: bool = False, slices: int = 1
) -> Call:
    m, n, k = (256, 192, 280) if full_tiles else (200, 136, 280)
    a, b, c = torch.randn(m, k).to(dtype), torch.randn(k, n).to(dtype), torch.randn(m, n).to(dtype)
    expected = 0.5 * a.double() @ b.double() + 2 * c.double()
    b = b.t().contiguous() if columns_first else b
    semaphore = torch.zeros(6, dtype=torch.int32)
    arguments = [a, b, c, torch.full_like(c, math.nan), m, n, k, 0.5, 2.0, semaphore]
    return Call((2, 3, slices), 128, arguments, {3: expected}, bound)


def cutlass_attention(dtype: torch.dtype, length: int, head_dim: int, causal: bool, bound: float) -> Call:
    heads = 2
    q, k, v = torch.randn(3, length, heads, head_dim).to(dtype)
    out, lse = _attend(*(x.transpose(0, 1) for x in (q, k, v)), causal)
    outputs = [torch.full_like(q, math.nan), poisoned(length, heads, head_dim), poisoned(heads, 192)]
    arguments = [q, k, v, *outputs, length, heads, head_dim, head_dim**-0.5, int(causal)]
    return Call((3, heads), (32, 4), arguments, {3: out.transpose(0, 1), 5: _padded(lse, 192)}, bound)


def radix_sort() -> Call:
    keys = torch.randint(-(2**31), 2**31, (3, 512)).int()
    keys[0] &= 15  # equal keys keep their order
    ordered = (keys.long() & 0xFFFFFFFF).sort(stable=True, dim=1)
    signed = ordered.values.int().double()
    return Call(3, 128, [keys, keys * 0, keys * 0], {1: signed, 2: ordered.indices.double()}, 0)


def scans() -> Call:
    x, y = torch.randint(-9, 9, (3, 128)).int(), torch.randn(3, 128)
    total = y.double().cumsum(1)
    outputs = [torch.zeros_like(x), poisoned(3, 128), poisoned(3, dtype=torch.float64)]
    expected = {1: x.cumsum(1).double(), 3: total - y.double(), 4: total[:, -1]}
    return Call(3, 128, [x, outputs[0], y, outputs[1], outputs[2]], expected, 1e-6)


def count_bytes() -> Call:
    x = torch.randint(256, (3, 512), dtype=torch.uint8)
    return Call(3, 128, [x, torch.zeros(256, dtype=torch.int32)], {1: x.flatten().bincount(minlength=256).double()}, 0)


def cute_gemm() -> Call:
    """Every parameter of CuTe's tutorial kernel that is known when it is compiled is an empty struct: one byte."""
    m, n, k = 256, 128, 320
    a, b = torch.randn(m, k).half(), torch.randn(n, k).half()
    c = torch.full((n, m), math.nan, dtype=torch.float16)  # columns of m
    static, one, zero = b"\0", struct.pack("<e", 1), struct.pack("<e", 0)
    problem, lda, ldb, ldc = struct.pack("<3i", m, n, k), *(struct.pack("<i", ld) for ld in (k, k, m))
    arguments = [
        problem,
        static,
        a,
        lda,
        static,
        static,
        static,
        b,
        ldb,
        static,
        static,
        static,
        c,
        ldc,
        static,
        static,
    ]
    shared_bytes = 2 * 3 * 128 * 64 * 2  # three stages of both tiles
    return Call((2, 1), 128, [*arguments, one, zero], {12: (a.double() @ b.double().t()).t()}, 1e-2, shared_bytes)
