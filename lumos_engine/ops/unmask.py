"""One denoising step: guidance, sampling, confidence, re-masking."""

from __future__ import annotations

import torch
from torch import Tensor

from . import _registry as registry
from .sampling import checked_sample_codes


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
    ones with known rows, which are not changed, never masked and do not count. It is ``sample_codes``, then ``remask``:
    call those where the logits of all rows are too many to exist at once.

    Args:
        cond_logits: ``[samples, rows, classes]`` with the prompt; cpu: float32 and bfloat16, cuda: float16 too.
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
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        ids int64 ``[samples, rows]``, known ones kept; confidence fp32, p of the id, for known tokens the largest
        finite number; masked bool, the tokens to be masked again. In the last step of a frame the caller ignores
        ``masked``.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, a negative temperature, missing
        uniforms or Gumbel noise, an id out of range (on CUDA see ``sample_codes``).
    """
    op = "unmask_step"
    floats = (*registry.FLOATS, torch.float16, torch.float64)
    registry.check_tensor(op, "cond_logits", cond_logits, dtype=floats, shape=("samples", "rows", "classes"))
    rows = tuple(cond_logits.shape[:2])
    registry.check_tensor(op, "known", known, dtype=torch.bool, shape=rows, device=cond_logits.device)
    registry.check_tensor(op, "ids", ids, dtype=torch.int64, shape=rows, device=known.device)
    _check_remask(op, known, num_masked, temperature, gumbel)
    codes, confidence = checked_sample_codes(
        op, cond_logits, uncond_logits, known, guidance_scale=guidance_scale, sampling_temperature=sampling_temperature,
        uniforms=uniforms, sampled_ids=sampled_ids, backend=backend,
    )  # fmt: skip
    masked = remask(confidence, known, num_masked=num_masked, temperature=temperature, gumbel=gumbel, backend=backend)
    return torch.where(known, ids, codes), confidence, masked


def remask(
    confidence: Tensor,
    known: Tensor,
    *,
    num_masked: int | Tensor,
    temperature: float = 0.0,
    gumbel: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Which of the unknown tokens stay masked for another step: the second half of ``unmask_step``, which see.

    Args:
        confidence: fp32 ``[samples, rows]``; not read where known. known: bool ``[samples, rows]``.
        num_masked, temperature, gumbel: as in ``unmask_step``.
        backend: ``"reference"``, ``"cpu"`` or ``"cuda"``; default by device.

    Returns:
        bool ``[samples, rows]``. A confidence of NaN is never masked.

    Raises:
        TypeError: wrong dtype. ValueError: shapes or devices that do not agree, a negative temperature, missing noise.
    """
    op = "remask"
    registry.check_tensor(op, "confidence", confidence, dtype=torch.float32, shape=("samples", "rows"))
    registry.check_tensor(op, "known", known, dtype=torch.bool, shape=tuple(confidence.shape), device=confidence.device)
    _check_remask(op, known, num_masked, temperature, gumbel)
    if registry.select_backend(op, confidence, backend) == "reference":
        return registry.reference("unmask").remask(
            confidence, known, num_masked=num_masked, temperature=temperature, gumbel=gumbel
        )
    counts, count = (num_masked, 0) if isinstance(num_masked, Tensor) else (None, num_masked)
    return torch.ops.lumos._remask(confidence, known, counts, count, float(temperature), gumbel)


def _check_remask(op: str, known: Tensor, num_masked: int | Tensor, temperature: float, gumbel: Tensor | None) -> None:
    if gumbel is not None:
        registry.check_tensor(op, "gumbel", gumbel, dtype=torch.float32, shape=tuple(known.shape), device=known.device)
    if not temperature >= 0:
        raise ValueError(f"{op}: temperature is {temperature}; it must be at least 0")
    if gumbel is None and temperature > 0:
        raise ValueError(f"{op}: temperature is {temperature}; give gumbel, or make it 0")
    if isinstance(num_masked, Tensor):
        registry.check_tensor(op, "num_masked", num_masked, dtype=torch.int64, shape=(len(known),), device=known.device)


def _remask(
    confidence: Tensor, known: Tensor, counts: Tensor | None, count: int, temperature: float, gumbel: Tensor | None
) -> Tensor:
    masked = _remask_fake(confidence, known, counts, count, temperature, gumbel)
    confidence, known = confidence.contiguous(), known.contiguous()
    counts, gumbel = (None if x is None else x.contiguous() for x in (counts, gumbel))
    registry.call("remask", confidence, known, counts, count, temperature, gumbel, masked)
    return masked


def _remask_fake(confidence: Tensor, known: Tensor, *_: object) -> Tensor:
    return known.new_empty(known.shape)


registry.define(
    "_remask(Tensor confidence, Tensor known, Tensor? counts, int count, float temperature, Tensor? gumbel) -> Tensor",
    cpu=_remask,
    cuda=_remask,
    fake=_remask_fake,
)
