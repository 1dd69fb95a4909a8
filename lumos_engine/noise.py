"""Counter-based noise: every number is a function of (seed, sample, frame, step, token) and the stream that asks.

The generator is Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011), in 64-bit
integer arithmetic, so its bits are equal on every device, in every batch and in any order of calls. Token i takes
word ``i % 4`` of the block with

    counter = (i // 4, sample, frame, stream * 2^24 + step)        key = (seed mod 2^32, seed div 2^32)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_WORD = 0xFFFFFFFF


def philox4x32(counter: tuple[Tensor | int, ...], key: tuple[Tensor | int, Tensor | int]) -> tuple[Tensor, ...]:
    """Philox4x32-10 of four counter and two key words, ints or int64 tensors of 32 bits each; the words broadcast.

    Returns four int64 tensors of 32 bits each.
    """
    c0, c1, c2, c3, k0, k1 = torch.broadcast_tensors(*(torch.as_tensor(w, dtype=torch.int64) for w in (*counter, *key)))
    for _ in range(_ROUNDS):
        # The product wraps modulo 2^64; the mask after the arithmetic shift restores its upper half.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (p1 >> 32 & _WORD) ^ c1 ^ k0, p1 & _WORD, (p0 >> 32 & _WORD) ^ c3 ^ k1, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return c0, c1, c2, c3


def philox_uniform(
    seed: int | Sequence[int], sample: int | Sequence[int], frame: int, step: int, num: int, stream: int = 0
) -> Tensor:
    """Uniform numbers k 2^-24 in [0, 1), fp32 [num]; [samples, num] where ``seed`` or ``sample`` lists several.

    Args:
        seed: 0 .. 2^64-1. sample: number of the sample, 0 .. 2^32-1. frame: 0 .. 2^32-1. step: 0 .. 2^24-1.
        num: how many tokens, 0 .. 2^34; number i belongs to token i.
        stream: what the numbers are for, 0 .. 255; streams are independent.

    Raises:
        TypeError: an argument that is not an int. ValueError: one out of its range, or lists of different lengths.
    """
    words = _words(seed, sample, frame, step, num, stream)
    return ((words >> 8).to(torch.float32) * 2.0**-24).contiguous()


def gumbel(
    seed: int | Sequence[int], sample: int | Sequence[int], frame: int, step: int, num: int, stream: int = 1
) -> Tensor:
    """Standard Gumbel numbers -log(-log(u)) of ``philox_uniform`` with the same arguments, fp32 and finite.

    The logarithms are taken in fp64 and rounded once; u = 0 counts as 2^-25.
    """
    u = philox_uniform(seed, sample, frame, step, num, stream).double().clamp(min=2.0**-25)
    return (-(-u.log()).log()).float()


def _words(
    seed: int | Sequence[int], sample: int | Sequence[int], frame: int, step: int, num: int, stream: int
) -> Tensor:
    many = isinstance(seed, Sequence) or isinstance(sample, Sequence)
    seeds, samples = (list(v) if isinstance(v, Sequence) else [v] for v in (seed, sample))
    for name, values, limit in (
        ("seed", seeds, 2**64), ("sample", samples, 2**32), ("frame", [frame], 2**32), ("step", [step], 2**24),
        ("num", [num], 2**34 + 1), ("stream", [stream], 256),
    ):  # fmt: skip
        for value in values:
            if isinstance(value, bool) or not isinstance(value, int):
                raise TypeError(f"{name} must be an int, got {type(value).__name__}")
            if not 0 <= value < limit:
                raise ValueError(f"{name} must be in 0..{limit - 1}, got {value}")
    if len(seeds) != len(samples) and 1 not in (len(seeds), len(samples)):
        raise ValueError(f"seed lists {len(seeds)} values and sample {len(samples)}; they must agree, or one be single")
    low, high = (torch.tensor([[s >> shift & _WORD] for s in seeds], dtype=torch.int64) for shift in (0, 32))
    blocks = torch.arange((num + 3) // 4, dtype=torch.int64)
    counter = (blocks, torch.tensor(samples, dtype=torch.int64)[:, None], frame, stream << 24 | step)
    words = torch.stack(philox4x32(counter, (low, high)), dim=-1).flatten(-2)[:, :num]
    return words if many else words[0]
