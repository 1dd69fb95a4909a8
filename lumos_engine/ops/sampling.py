"""Guidance, softmax and sampling: the part of a denoising step that reads the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _registry as registry


def sample_codes(
    cond_logits: Tensor,
    uncond_logits: Tensor | None,
    known: Tensor,
    *,
    guidance_scale: float = 1.0,
    sampling_temperature: float = 1.0,
    uniforms: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Choose a class for every unknown row, and say how probable it was.

    Logits are guided, ``l = g (c - u) + u``; ``p = softmax(l / sampling_temperature)`` in fp32. The class is the given
    one, else the first whose cumulative probability (summed in fp64) exceeds the row's uniform, else
    (sampling_temperature 0) the first most likely one, with p at temperature 1. A class of probability 0 is never
    drawn. A row's result depends on that row alone, so rows may be handed over in any portions.

    Args:
        cond_logits: ``[samples, rows, classes]`` with the prompt; cpu: float32 and bfloat16, cuda: float16 too.
        uncond_logits: the same without the prompt, or None for no guidance.
        known: bool ``[samples, rows]``, rows that are not looked at and may hold anything.
        guidance_scale: g; not read without ``uncond_logits``.
        sampling_temperature: >= 0.
        uniforms: fp32 ``[samples, rows]`` in [0, 1). sampled_ids: int64 ``[samples, rows]`` in 0 .. classes - 1; not
            read where known.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        Classes int64 ``[samples, rows]``, 0 where known; p of them, fp32, the largest finite number where known. The
        backends may differ in rows whose uniform lies within rounding of the border between two classes.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, a negative temperature, missing
        uniforms, an id out of range. On CUDA the host does not wait for values: an unknown row whose id is out of range
        gets class 0 with p NaN, a uniform out of range means the nearest one inside.
    """
    return checked_sample_codes(
        "sample_codes", cond_logits, uncond_logits, known, guidance_scale=guidance_scale,
        sampling_temperature=sampling_temperature, uniforms=uniforms, sampled_ids=sampled_ids, backend=backend,
    )  # fmt: skip


def checked_sample_codes(
    op: str,
    cond_logits: Tensor,
    uncond_logits: Tensor | None,
    known: Tensor,
    *,
    guidance_scale: float,
    sampling_temperature: float,
    uniforms: Tensor | None,
    sampled_ids: Tensor | None,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """``sample_codes`` on behalf of ``op``, which errors name."""
    floats = registry.FLOATS_OF["reference"]
    registry.check_tensor(op, "cond_logits", cond_logits, dtype=floats, shape=("samples", "rows", "classes"))
    chosen = registry.select_backend(op, cond_logits, backend, kernel="sample_codes")
    samples, rows, classes = cond_logits.shape
    registry.check_tensor(
        op, "cond_logits", cond_logits, dtype=registry.FLOATS_OF[chosen], shape=(samples, rows, classes)
    )
    device = cond_logits.device
    if classes == 0:
        raise ValueError(f"{op}: cond_logits has no classes; it must have at least one")
    if uncond_logits is not None:
        registry.check_tensor(
            op, "uncond_logits", uncond_logits, dtype=cond_logits.dtype, shape=(samples, rows, classes), device=device
        )
    registry.check_tensor(op, "known", known, dtype=torch.bool, shape=(samples, rows), device=device)
    for name, tensor, dtype in (("uniforms", uniforms, torch.float32), ("sampled_ids", sampled_ids, torch.int64)):
        if tensor is not None:
            registry.check_tensor(op, name, tensor, dtype=dtype, shape=(samples, rows), device=device)
    if not sampling_temperature >= 0:
        raise ValueError(f"{op}: sampling_temperature is {sampling_temperature}; it must be at least 0")
    if sampled_ids is None and uniforms is None and sampling_temperature > 0:
        raise ValueError(
            f"{op}: sampling_temperature is {sampling_temperature}; give uniforms or sampled_ids, or make it 0"
        )
    if not torch.compiler.is_compiling() and chosen != "cuda":
        if uniforms is not None and not bool(((uniforms >= 0) & (uniforms < 1)).all()):
            raise ValueError(f"{op}: uniforms must be in [0, 1), got {float(uniforms.min())}..{float(uniforms.max())}")
        if sampled_ids is not None and bool(((sampled_ids < 0) | (sampled_ids >= classes)).logical_and(~known).any()):
            raise ValueError(f"{op}: sampled_ids of unknown tokens must be in 0..{classes - 1}")
    if chosen == "reference":
        return registry.reference("unmask").sample_codes(
            cond_logits, uncond_logits, known, guidance_scale=guidance_scale, sampling_temperature=sampling_temperature,
            uniforms=uniforms, sampled_ids=sampled_ids,
        )  # fmt: skip
    return torch.ops.lumos._sample_codes(
        cond_logits, uncond_logits, known, sampled_ids, uniforms, float(guidance_scale), float(sampling_temperature)
    )


def _sample_codes(
    cond: Tensor,
    uncond: Tensor | None,
    known: Tensor,
    given: Tensor | None,
    uniforms: Tensor | None,
    guidance_scale: float,
    temperature: float,
) -> tuple[Tensor, Tensor]:
    cond = registry.rows_contiguous("sample_codes", "cond_logits", cond)
    if uncond is not None:
        uncond = registry.rows_contiguous("sample_codes", "uncond_logits", uncond)
    codes, confidence = _sample_codes_fake(cond, uncond, known)
    small = (None if x is None else x.contiguous() for x in (known, given, uniforms))
    registry.call("sample_codes", cond, uncond, *small, guidance_scale, temperature, codes, confidence)
    return codes, confidence


def _sample_codes_fake(cond: Tensor, uncond: Tensor | None, known: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    return known.new_empty(known.shape, dtype=torch.int64), known.new_empty(known.shape, dtype=torch.float32)


registry.define(
    "_sample_codes(Tensor cond, Tensor? uncond, Tensor known, Tensor? given, Tensor? uniforms, float guidance_scale, "
    "float temperature) -> (Tensor, Tensor)",
    cpu=_sample_codes,
    cuda=_sample_codes,
    fake=_sample_codes_fake,
)
