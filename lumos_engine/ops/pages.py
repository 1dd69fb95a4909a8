"""Write keys and values into the slots of a paged cache."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _registry as registry


def paged_write(
    k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, *, backend: str | None = None
) -> None:
    """Copy token i of ``k`` and ``v`` to slot ``slots[i]`` of the pages, in place. No gradient flows through the pages.

    Args:
        k, v: ``[tokens, kv_heads, head_dim]``, float32 or bfloat16 (cuda: float16 too; the reference: that and
            float64). Strides as ``x`` of ``mm_rope``.
        k_pages, v_pages: ``[num_pages, page_size, kv_heads, head_dim]``, contiguous, of the dtype of ``k``; must not
            require a gradient.
        slots: int64 ``[tokens]``, each ``page * page_size + offset`` and none twice.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    On cuda pages begin at a multiple of 16 bytes, their head_dim is a multiple of 16 bytes, and nobody waits for the GPU
    to look at the slots: a token whose slot is outside the pages is left out.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, pages that are not contiguous, or, not on
        cuda, a slot outside the pages; nothing has been written then.
    """
    op = "paged_write"
    chosen = registry.select_backend(op, k, backend) if isinstance(k, Tensor) else "reference"
    registry.check_tensor(op, "k", k, dtype=registry.FLOATS_OF[chosen], shape=("tokens", "kv_heads", "head_dim"))
    check_pages(op, k, v, k_pages, v_pages, slots)
    if chosen == "reference":
        check_slots(op, slots, k_pages)
        registry.reference("pages").paged_write(k, v, k_pages, v_pages, slots)
    else:
        torch.ops.lumos._paged_write(k.detach(), v.detach(), k_pages, v_pages, slots)


def check_pages(op: str, k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    """Raises TypeError or ValueError unless v, the pages and slots fit k [tokens, kv_heads, head_dim]."""
    tokens, kv_heads, head_dim = k.shape
    registry.check_tensor(op, "v", v, dtype=k.dtype, shape=tuple(k.shape), device=k.device)
    pages = ("num_pages", "page_size", kv_heads, head_dim)
    registry.check_tensor(op, "k_pages", k_pages, dtype=k.dtype, shape=pages, device=k.device)
    registry.check_tensor(op, "v_pages", v_pages, dtype=k.dtype, shape=tuple(k_pages.shape), device=k.device)
    registry.check_tensor(op, "slots", slots, dtype=torch.int64, shape=(tokens,), device=k.device)
    for name, tensor in (("k_pages", k_pages), ("v_pages", v_pages)):
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} has strides {tensor.stride()}; it must be contiguous")


def check_slots(op: str, slots: Tensor, k_pages: Tensor) -> None:
    """Raises ValueError unless all slots lie in the pages. The cpu kernel does this by itself."""
    num_slots = k_pages.shape[0] * k_pages.shape[1]
    if len(slots) and (int(slots.min()) < 0 or int(slots.max()) >= num_slots):
        raise ValueError(
            f"{op}: slots are {int(slots.min())}..{int(slots.max())}; the pages hold slots 0..{num_slots - 1}"
        )


def _paged_write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    k = registry.rows_contiguous("paged_write", "k", k)
    v = registry.rows_contiguous("paged_write", "v", v)
    registry.call("paged_write", k, v, k_pages, v_pages, slots.contiguous())


registry.define(
    "_paged_write(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor slots) -> ()",
    cpu=_paged_write,
    cuda=_paged_write,
    fake=lambda k, v, k_pages, v_pages, slots: None,
)
