"""Logits, residual streams and gradients equal those of the original code."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from lumos_engine import LumosConfig, LumosModel, SequenceLayout, Vocabulary, ops
from lumos_engine.io.checkpoint import load_safetensors
from lumos_engine.testing import tolerances


def load(golden_dir: Path, name: str) -> LumosModel:
    entry = json.loads((golden_dir / "manifest.json").read_text())["files"][f"{name}.weights.safetensors"]
    config = LumosConfig.from_dict(entry["meta"]["config"])
    return LumosModel.from_weights(config, load_safetensors(golden_dir / f"{name}.weights.safetensors"))


@pytest.mark.parametrize("kind", ["t2v", "img", "uncond"])
@pytest.mark.parametrize("letter", "ABCD")
def test_logits_and_residual_streams(golden_dir: Path, vocabulary: Vocabulary, letter: str, kind: str) -> None:
    found = sorted(golden_dir.glob(f"model_{letter}*.logits.npz"))
    if not found:
        pytest.skip(f"model {letter} is not among the golden files at hand")
    name = found[0].name.removesuffix(".logits.npz")
    model = load(golden_dir, name)
    with np.load(golden_dir / f"{name}.logits.npz") as golden:
        tokens = torch.from_numpy(golden[f"{kind}.input_ids"][0].astype(np.int64))
        logits = torch.from_numpy(golden[f"{kind}.logits"][0])
        streams = [
            torch.from_numpy(golden[f"{kind}.hidden_after_layer{layer}"][0]) for layer in range(len(model.model.layers))
        ]
    seen: list[torch.Tensor] = []
    for block in model.model.layers:
        block.register_forward_hook(lambda block, inputs, output: seen.append(output))
    with torch.no_grad():
        ours = model(tokens, SequenceLayout.from_tokens(tokens, vocabulary))
    for stream, expected in zip(seen, streams, strict=True):
        torch.testing.assert_close(stream, expected, rtol=0, atol=tolerances.GOLDEN["logits"])
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, logits, rtol=0, atol=tolerances.GOLDEN["logits"])


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_every_gradient_of_the_training_loss(
    golden_dir: Path, vocabulary: Vocabulary, gradient_checkpointing: bool
) -> None:
    golden = load_safetensors(golden_dir / "train_A_video.safetensors")
    model = load(golden_dir, "model_A_hd64_gqa").train()
    model.gradient_checkpointing = gradient_checkpointing
    tokens, labels = golden["masked_input_ids"][0], golden["masked_labels"][0]
    hidden = model.hidden_states(tokens, SequenceLayout.from_tokens(tokens, vocabulary))
    rows = (labels >= vocabulary.visual_begin).nonzero()[:, 0]
    weight = model.lm_head.weight[vocabulary.visual_begin : vocabulary.visual_begin + vocabulary.visual_size]
    loss, _ = ops.masked_linear_cross_entropy(hidden, weight, labels[rows] - vocabulary.visual_begin, rows)
    loss.backward()
    torch.testing.assert_close(loss.detach(), golden["loss"][0], rtol=0, atol=tolerances.GOLDEN["gradients"])
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, golden[f"grad.{name}"], rtol=0, atol=tolerances.GOLDEN["gradients"])
