"""Logits and residual streams, also those of right-padded batches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumos_engine import LumosModel, SequenceLayout, ops
from lumos_engine.testing.tolerances import GOLDEN

from .files import GoldenFile, layouts

FILES = r"model_.*\.logits\.npz"


def forward(model: LumosModel, ids: Tensor, layout: SequenceLayout) -> list[Tensor]:
    """The residual stream after each layer, and the logits: each [batch, tokens, width]."""
    streams: list[Tensor] = []
    hooks = [block.register_forward_hook(lambda block, x, out: streams.append(out)) for block in model.model.layers]
    with torch.no_grad():
        logits = model(ids.reshape(-1), layout)
    for hook in hooks:
        hook.remove()
    return [out.view(*ids.shape, -1) for out in (*streams, logits)]


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_logits_and_residual_streams(golden: GoldenFile, backend: str) -> None:
    arrays = golden.arrays()
    weights = golden.weights(golden.name.removeprefix("model_").removesuffix(".logits.npz"))
    assert weights.meta["config"] == golden.meta["config"]
    model, vocabulary = weights.model(), weights.vocabulary
    names = [name.removesuffix(".input_ids") for name in arrays if name.endswith(".input_ids")]
    for name in names:
        ids = arrays[f"{name}.input_ids"].long()
        parts = [f"hidden_after_layer{layer}" for layer in range(len(model.model.layers))] + ["logits"]
        expected = [arrays.pop(f"{name}.{part}") for part in parts]
        errors = {}
        for mask, layout in layouts(ids, vocabulary).items():
            with ops.use_backend(backend):
                ours = forward(model, ids, layout)
            assert ours[-1].dtype == torch.float32
            errors[mask] = max(float((a - b).abs().max()) for a, b in zip(ours, expected, strict=True))
        assert min(errors.values()) <= GOLDEN["logits"], f"{name}: largest error under each mask is {errors}"
    assert sorted(arrays) == sorted(f"{name}.input_ids" for name in names) != []  # the other arrays were all compared
