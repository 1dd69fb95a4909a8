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
        k, v: ``[tokens, kv_heads, head_dim]``, float32 or bfloat16 (the reference: float64 too). Any token and head
            strides; a last dimension that is not contiguous costs a copy.
        k_pages, v_pages: ``[num_pages, page_size, kv_heads, head_dim]``, contiguous, of the dtype of ``k``; must not
            require a gradient.
        slots: int64 ``[tokens]``, each ``page * page_size + offset`` and none twice.
        backend: ``"reference"`` or ``"cpu"``; default by device.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, pages that are not contiguous, or a
        slot outside the pages; nothing has been written then.
    """
    op = "paged_write"
    floats = (*registry.FLOATS, torch.float64)
    registry.check_tensor(op, "k", k, dtype=floats, shape=("tokens", "kv_heads", "head_dim"))
    chosen = registry.select_backend(op, k, backend)
    if chosen == "cpu":
        registry.check_tensor(op, "k", k, dtype=registry.FLOATS, shape=("tokens", "kv_heads", "head_dim"))
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


def _paged_write_cpu(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor) -> None:
    k = registry.rows_contiguous("paged_write", "k", k)
    v = registry.rows_contiguous("paged_write", "v", v)
    slots = slots.contiguous()  # named: a view keeps no tensor alive
    view = registry.view
    registry.extension().paged_write(
        view(k), view(v), view(k_pages), view(v_pages), view(slots), torch.get_num_threads()
    )


registry.define(
    "_paged_write(Tensor k, Tensor v, Tensor(a!) k_pages, Tensor(b!) v_pages, Tensor slots) -> ()",
    cpu=_paged_write_cpu,
    fake=lambda k, v, k_pages, v_pages, slots: None,
)
