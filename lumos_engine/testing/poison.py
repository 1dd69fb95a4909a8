"""Memory that gives a kernel away: NaN where it must write or never read, guard bands around what it may write."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..reference.mask import visible

if TYPE_CHECKING:
    from ..layout import SequenceLayout

_GUARD_ELEMENTS = 64
_FILL = "fill_uninitialized_memory"  # a property of the module, unknown to type checkers


@contextlib.contextmanager
def poisoned_outputs() -> Iterator[None]:
    """Within the block, torch fills the memory that it allocates with NaN, or the largest integer."""
    settings = torch.utils.deterministic
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    fill = getattr(settings, _FILL)
    torch.use_deterministic_algorithms(True, warn_only=True)
    setattr(settings, _FILL, True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        setattr(settings, _FILL, fill)


def poison_value(dtype: torch.dtype) -> float | int | bool:
    """NaN, or the largest integer; True for bool."""
    if dtype.is_floating_point:
        return float("nan")
    return True if dtype == torch.bool else torch.iinfo(dtype).max


class GuardedTensor:
    """A contiguous tensor with poison before and behind it.

    Attributes:
        tensor: the part that a kernel may write, filled with poison.
    """

    def __init__(self, shape: Sequence[int], dtype: torch.dtype) -> None:
        size = int(torch.Size(shape).numel())
        self._buffer = torch.full((size + 2 * _GUARD_ELEMENTS,), poison_value(dtype), dtype=dtype)
        self.tensor = self._buffer[_GUARD_ELEMENTS : _GUARD_ELEMENTS + size].view(tuple(shape))

    def assert_untouched(self) -> None:
        """Fail if anything outside ``tensor`` was written."""
        guards = torch.cat((self._buffer[:_GUARD_ELEMENTS], self._buffer[len(self._buffer) - _GUARD_ELEMENTS :]))
        intact = guards.isnan() if guards.is_floating_point() else guards == poison_value(guards.dtype)
        assert bool(intact.all()), f"{int((~intact).sum())} elements outside the tensor were written"


def poison_unseen_keys(k: Tensor, v: Tensor, layout: SequenceLayout) -> tuple[Tensor, Tensor]:
    """Copies of ``k`` and ``v`` [tokens, kv_heads, head_dim] with NaN where no query sees the key."""
    seen = torch.cat([visible(layout, sequence).any(0) for sequence in range(layout.num_sequences)])
    nan = float("nan")
    return k.masked_fill(~seen[:, None, None], nan), v.masked_fill(~seen[:, None, None], nan)
