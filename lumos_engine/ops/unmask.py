"""One denoising step: guidance, sampling, confidence, re-masking."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _registry as registry


def unmask_step(
    cond_logits: Tensor,
    uncond_logits: Tensor | None,
    ids: Tensor,
    known: Tensor,
    *,
    guidance_scale: float = 1.0,
    sampling_temperature: float = 1.0,
    temperature: float = 0.0,
    num_masked: int | Tensor,
    uniforms: Tensor | None = None,
    sampled_ids: Tensor | None = None,
    gumbel: Tensor | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Choose an id for every unknown token of a frame, and which of them stay masked for another step (MaskGIT's rule).

    Logits are guided, ``l = g (c - u) + u``; ``p = softmax(l / sampling_temperature)`` in fp32. A token's id is the
    given one, else the first class whose cumulative probability exceeds its uniform, else (sampling_temperature 0)
    the most likely one, with p at temperature 1. Its score is ``log(max(p[id], 1e-20)) + temperature * gumbel``.
    With the scores of a sample sorted in ascending order and ``m = max(1, min(num_masked, unknown - 1))``, tokens
    whose score lies below score number m stay masked: m of them unless scores are equal.

    Only rows that are still unknown need be passed. Samples may have different numbers of them: fill up the shorter
    ones with known rows, which are not changed, never masked and do not count. Both backends are the torch
    implementation of ``lumos_engine.reference``.

    Args:
        cond_logits: ``[samples, rows, classes]``, floating-point, with the prompt.
        uncond_logits: the same without the prompt, or None for no guidance.
        ids: int64 ``[samples, rows]``, classes of the known tokens; not read where unknown.
        known: bool ``[samples, rows]``.
        guidance_scale: g; not read without ``uncond_logits``.
        sampling_temperature: >= 0.
        temperature: scale of the Gumbel noise, >= 0.
        num_masked: how many tokens shall stay masked: an int, or int64 ``[samples]``.
        uniforms: fp32 ``[samples, rows]`` in [0, 1). sampled_ids: int64 ``[samples, rows]`` in 0 .. classes - 1; not
            read where known.
        gumbel: fp32 ``[samples, rows]``; needed unless ``temperature`` is 0.
        backend: ``"reference"`` or ``"cpu"``; default by device.

    Returns:
        ids int64 ``[samples, rows]``, known ones kept; confidence fp32, p of the id, for known tokens the largest
        finite number; masked bool, the tokens to be masked again. In the last step of a frame the caller ignores
        ``masked``.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, a negative temperature, missing
        uniforms or Gumbel noise, an id out of range.
    """
    op = "unmask_step"
    floats = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    registry.check_tensor(op, "cond_logits", cond_logits, dtype=floats, shape=("samples", "rows", "classes"))
    registry.select_backend(op, cond_logits, backend)
    samples, rows, classes = cond_logits.shape
    device = cond_logits.device
    if classes == 0:
        raise ValueError(f"{op}: cond_logits has no classes; it must have at least one")
    if uncond_logits is not None:
        registry.check_tensor(
            op, "uncond_logits", uncond_logits, dtype=cond_logits.dtype, shape=(samples, rows, classes), device=device
        )
    registry.check_tensor(op, "ids", ids, dtype=torch.int64, shape=(samples, rows), device=device)
    registry.check_tensor(op, "known", known, dtype=torch.bool, shape=(samples, rows), device=device)
    for name, tensor, dtype in (
        ("uniforms", uniforms, torch.float32), ("sampled_ids", sampled_ids, torch.int64), ("gumbel", gumbel, torch.float32),
    ):  # fmt: skip
        if tensor is not None:
            registry.check_tensor(op, name, tensor, dtype=dtype, shape=(samples, rows), device=device)
    for name, value in (("sampling_temperature", sampling_temperature), ("temperature", temperature)):
        if not value >= 0:
            raise ValueError(f"{op}: {name} is {value}; it must be at least 0")
    if sampled_ids is None and uniforms is None and sampling_temperature > 0:
        raise ValueError(
            f"{op}: sampling_temperature is {sampling_temperature}; give uniforms or sampled_ids, or make it 0"
        )
    if gumbel is None and temperature > 0:
        raise ValueError(f"{op}: temperature is {temperature}; give gumbel, or make it 0")
    if uniforms is not None and not bool(((uniforms >= 0) & (uniforms < 1)).all()):
        raise ValueError(f"{op}: uniforms must be in [0, 1), got {float(uniforms.min())}..{float(uniforms.max())}")
    if isinstance(num_masked, Tensor):
        registry.check_tensor(op, "num_masked", num_masked, dtype=torch.int64, shape=(samples,), device=device)
    if sampled_ids is not None and bool(((sampled_ids < 0) | (sampled_ids >= classes)).logical_and(~known).any()):
        raise ValueError(f"{op}: sampled_ids of unknown tokens must be in 0..{classes - 1}")
    return registry.reference("unmask").unmask_step(
        cond_logits, uncond_logits, ids, known, guidance_scale=guidance_scale, sampling_temperature=sampling_temperature,
        temperature=temperature, num_masked=num_masked, uniforms=uniforms, sampled_ids=sampled_ids, gumbel=gumbel,
    )  # fmt: skip
