"""One training step: corruption, loss, loss of each frame, and the gradient of every weight."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lumos_engine import LumosModel, SequenceLayout, Vocabulary, ops
from lumos_engine.layout import Frame
from lumos_engine.testing.tolerances import GOLDEN
from lumos_engine.train.ar_df import IGNORED, CorruptedSample, Sample, corrupt_with
from lumos_engine.train.batches import TrainBatch, pack
from lumos_engine.tubes import TubePattern

from .files import GoldenFile, layouts

FILES = r"train_.*\.safetensors"


def model_of(golden: GoldenFile) -> GoldenFile:
    """Weights file of ``train_<letter>_...``."""
    return golden.weights(golden.name.split("_")[1])


def corrupted(clean: Tensor, masked: Tensor, vocabulary: Vocabulary) -> CorruptedSample:
    """Our corruption of one clean row, without its padding, by the pattern of the masked row."""
    end = int((clean != vocabulary.bos).nonzero()[-1]) + 1
    clean, masked = clean[:end], masked[:end]
    layout = SequenceLayout.from_tokens(clean, vocabulary)
    frames = [segment for segment in layout.sequences[0] if isinstance(segment, Frame)]
    begin = int((clean == vocabulary.video_start).nonzero()[0])
    codes = clean[layout.content & ~layout.newline] - vocabulary.visual_begin
    sample = Sample(
        clean[:begin].tolist(), clean[begin : begin + 3].tolist(), codes.view(len(frames), frames[0].height, -1)
    )
    pattern = (masked == vocabulary.mask)[layout.content].view(len(frames), -1)
    return corrupt_with(sample, vocabulary, TubePattern(pattern, "tube", (0.0,)))


def padded(samples: list[CorruptedSample], length: int, name: str, fill: int) -> Tensor:
    rows = [getattr(sample, name) for sample in samples]
    return torch.stack([torch.nn.functional.pad(row, (0, length - len(row)), value=fill) for row in rows])


def batches(samples: list[CorruptedSample], golden: GoldenFile, arrays: dict[str, Tensor]) -> dict[str, TrainBatch]:
    """Our packed batch, without padding, and the padded one under the mask that the original shares among its rows."""
    vocabulary = model_of(golden).vocabulary
    found = {"per_sample": pack(samples, vocabulary, "mask", range(len(samples)))}
    layout = layouts(arrays["masked_input_ids"], vocabulary).get("shared")
    if layout is not None:
        labels = arrays["masked_labels"].flatten()
        rows = vocabulary.is_visual(labels).nonzero()[:, 0]
        targets = labels[rows] - vocabulary.visual_begin
        tokens = arrays["masked_input_ids"].flatten()
        found["shared"] = TrainBatch(tokens, layout, rows, targets, layout.frame_id[rows], range(len(samples)), 0)
    return found


def step(model: LumosModel, batch: TrainBatch, vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Loss and loss of each row; gradients are left in the model."""
    model.zero_grad()
    weight = model.lm_head.weight[vocabulary.visual_begin : vocabulary.visual_end]
    hidden = model.hidden_states(batch.tokens, batch.layout)
    loss, per_row = ops.masked_linear_cross_entropy(hidden, weight, batch.targets, batch.rows)
    loss.backward()
    return loss.detach(), per_row.detach()


def largest_errors(
    model: LumosModel, batch: TrainBatch, vocabulary: Vocabulary, arrays: dict[str, Tensor]
) -> dict[str, float]:
    """Of the loss, the losses of frames and the gradients."""
    loss, per_row = step(model, batch, vocabulary)
    aux = sorted(
        (name for name in arrays if name.startswith("aux.")), key=lambda name: int(name.rpartition("frame")[2])
    )
    # The original takes equal parts of the rows for its frames: in a batch of one they are its frames.
    parts = torch.stack([part.mean() for part in per_row.chunk(max(1, len(aux)))])
    expected = torch.cat([arrays[name] for name in aux]) if aux else loss[None]
    gradients = {name: arrays[f"grad.{name}"] for name, _ in model.named_parameters()}
    assert len(gradients) == sum(name.startswith("grad.") for name in arrays)
    return {
        "loss": float((loss - arrays["loss"]).abs().max()),
        "frames": float((parts - expected).abs().max()),
        "gradients": max(float((p.grad - gradients[name]).abs().max()) for name, p in model.named_parameters()),
    }


def test_corruption(golden: GoldenFile) -> None:
    """Our corruption of the clean rows makes the masked rows; the pattern is the one of the seed."""
    arrays, vocabulary = golden.arrays(), model_of(golden).vocabulary
    clean, masked, labels = (arrays[name] for name in ("clean_input_ids", "masked_input_ids", "masked_labels"))
    samples = [corrupted(*rows, vocabulary) for rows in zip(clean, masked, strict=True)]
    assert torch.equal(padded(samples, clean.shape[1], "tokens", vocabulary.bos), masked)
    # The original labels masked newlines and leaves them out of the loss; here only what the loss reads has a label.
    expected = torch.where(vocabulary.is_visual(labels), labels, IGNORED)
    assert torch.equal(padded(samples, clean.shape[1], "labels", IGNORED), expected)
    assert int((expected != IGNORED).sum()) == golden.meta["n_loss_tokens"]

    generator = torch.Generator().manual_seed(golden.meta["seed"])
    ratios = torch.rand(len(clean), generator=generator)
    for row, ratio in enumerate(ratios):
        layout = SequenceLayout.from_tokens(clean[row], vocabulary)
        frames = [segment for segment in layout.sequences[0] if isinstance(segment, Frame)]
        content = frames[0].content_tokens
        ranks = torch.rand(content, generator=generator)
        pattern = TubePattern.from_uniforms(ratio[None], ranks, len(frames), content)
        assert torch.equal(pattern.apply(clean[row], layout, 0, vocabulary.mask), masked[row])
        assert pattern.ratio == (float(arrays["mask_prob"][row]),)
        kept = ~layout.content | pattern.token_mask(layout, 0)
        assert torch.equal(torch.where(kept, arrays["clean_labels"][row], IGNORED), labels[row])


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_losses_and_every_gradient(golden: GoldenFile, backend: str, gradient_checkpointing: bool) -> None:
    arrays, weights = golden.arrays(), model_of(golden)
    model, vocabulary = weights.model().train(), weights.vocabulary
    model.gradient_checkpointing = gradient_checkpointing
    samples = [
        corrupted(*rows, vocabulary) for rows in zip(arrays["clean_input_ids"], arrays["masked_input_ids"], strict=True)
    ]
    with ops.use_backend(backend):
        errors = {
            mask: largest_errors(model, batch, vocabulary, arrays)
            for mask, batch in batches(samples, golden, arrays).items()
        }
    assert min(max(each.values()) for each in errors.values()) <= GOLDEN["gradients"], (
        f"largest errors under each mask: {errors}"
    )
    assert float(arrays["loss"]) == golden.meta["loss"]
