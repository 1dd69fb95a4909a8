"""Files of kinds that may not be at hand, made here: the checks accept them, and refuse them with one thing changed.

Positions and masks are written out from the description of the format, token by token; numbers of models and of runs are our own.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumos_engine import SequenceLayout, Vocabulary, ops
from lumos_engine.testing.tolerances import GOLDEN

from . import test_ar_df_masks, test_claims, test_datapipe, test_infer, test_masks, test_model, test_rope, test_train
from .files import SMALL, GoldenFile, layouts
from .made_runs import record_seeded
from .make import padded, video_ids, write_golden, write_model

REAL = Vocabulary()
BATCH = padded([video_ids(5, 2, 4, 4, 1), video_ids(12, 1, 4, 8, 2)])


def grid_positions(ids: list[int], vocabulary: Vocabulary) -> tuple[list[list[int]], list[int]]:
    """(t, h, w) of each token, and whether it is content; by a walk over the ids."""
    positions, content, at, frame, origin = [], [], 0, 0, -1
    while at < len(ids):
        if ids[at] != vocabulary.image_start:
            positions.append([at] * 3)
            content.append(0)
            at += 1
            continue
        height, width = ((ids[at + i] - vocabulary.size_zero) * 4 for i in (1, 2))
        origin = at + 3 if origin < 0 else origin
        cells = [(r, c) for r in range(height) for c in range(width + 1)]
        end = at + 3 + len(cells)
        positions += [[i] * 3 for i in range(at, at + 3)]
        positions += [[origin + 4 * frame, origin + 8 * r, origin + 8 * c] for r, c in cells] + [[end] * 3]
        content += [0, 0, 0, *[1] * len(cells), 0]
        at, frame = end + 1, frame + 1
    return positions, content


def write_rope(folder: Path, name: str, ids: Tensor, head_dim: int, every: int, **meta: object) -> GoldenFile:
    """Tables and rotations of every ``every``-th token, by the plain formulas."""
    vocabulary = REAL if meta.get("vocab") == "real" else SMALL
    walked = [grid_positions(row, vocabulary) for row in ids.tolist()]
    positions, content = (torch.tensor([each[i] for each in walked]) for i in (0, 1))
    idx = torch.arange(0, ids.shape[1], every)
    axis = torch.tensor(["thw".index(a) for a in "tttthhwwhhwwhhww"] * (head_dim // 32))
    angle = positions[:, idx][..., axis] * (
        1.0 / 10000.0 ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    )
    cos, sin = (torch.cat([f(angle)] * 2, -1) for f in (torch.cos, torch.sin))
    draw = torch.Generator().manual_seed(0)
    q, k = (torch.randn(len(ids), heads, len(idx), head_dim, generator=draw) for heads in (2, 1))
    rotated = [
        x * cos[:, None] + torch.cat((-x[..., head_dim // 2 :], x[..., : head_dim // 2]), -1) * sin[:, None]
        for x in (q, k)
    ]
    index = torch.arange(ids.shape[1]).expand(ids.shape).int()
    arrays = {
        "input_ids": ids.int(), "pos_text": index, "content_flag": content.to(torch.int8), "idx": idx.int(), "cos": cos, "sin": sin,
        **{f"pos_{a}": positions[..., i].int() for i, a in enumerate("thw")},
        **{f"{n}_bf16_bits": x.bfloat16().view(torch.int16) for n, x in (("cos", cos), ("sin", sin))},
        "q": q, "k": k, "q_rot": rotated[0], "k_rot": rotated[1],
    }  # fmt: skip
    return write_golden(folder, name, arrays, {"head_dim": head_dim, "theta": 10000.0, **meta})


@pytest.mark.parametrize(("name", "head_dim"), [("rope_batch2_padded_hd32", 32), ("rope_real_256p_hd128", 128)])
def test_rope_files(tmp_path: Path, name: str, head_dim: int) -> None:
    real = "real" in name
    ids = torch.tensor([video_ids(98, 7, 32, 56, vocabulary=REAL)]) if real else BATCH
    assert not real or ids.shape[1] == 100 + 3 + 7 * 1828 + 2
    golden = write_rope(
        tmp_path, f"{name}.npz", ids, head_dim, 64 if real else 1, **({"vocab": "real"} if real else {})
    )
    test_rope.test_positions(golden)
    for backend in ("reference", "cpu"):
        test_rope.test_tables(golden, backend)
        for x in "qk":
            test_rope.test_rotation(golden, x, backend)
    arrays = golden.arrays()
    arrays["pos_h"], arrays["pos_w"] = arrays["pos_w"], arrays["pos_h"]
    swapped = write_golden(tmp_path, golden.name, arrays, golden.meta)
    for check in (lambda: test_rope.test_positions(swapped), lambda: test_rope.test_tables(swapped, "cpu")):
        with pytest.raises(AssertionError):
            check()


def visible(ids: list[int], frames_of: list[list[int]]) -> Tensor:
    """By the rule, token by token; frames are those of any of ``frames_of``."""
    blocks = []
    for row in frames_of:
        starts = [i for i, token in enumerate(row) if token == SMALL.image_start]
        blocks += [(a, row.index(SMALL.image_end, a)) for a in starts]
    n = range(len(ids))
    return torch.tensor([[j <= i or any(a <= i <= b and a <= j <= b for a, b in blocks) for j in n] for i in n])


def test_masks_of_a_padded_batch(tmp_path: Path) -> None:
    rows = BATCH.tolist()
    correct = torch.stack([visible(row, [row]) for row in rows])
    shared = torch.stack([visible(row, rows) for row in rows])
    assert not torch.equal(correct, shared)
    arrays = {
        "b_official_BUGGY.input_ids": BATCH, "b_official_BUGGY.allowed": shared, "b_correct_per_sample.allowed": correct,
        "padded.input_ids": BATCH, "padded.allowed": correct,
    }  # fmt: skip
    test_masks.test_visibility(write_golden(tmp_path, "attention_masks_padded.npz", arrays, {}))
    with pytest.raises(AssertionError):
        wrong = write_golden(tmp_path, "attention_masks_padded.npz", {**arrays, "padded.allowed": shared}, {})
        test_masks.test_visibility(wrong)


@pytest.fixture
def uneven(tmp_path: Path) -> GoldenFile:
    return write_model(tmp_path, "D", swin_norm=True, model_parallel_size=2)


def masked(ids: Tensor) -> Tensor:
    """Content hidden by tubes of the rows' own, drawn as the original draws them from seed 17."""
    layout = SequenceLayout.from_tokens(ids.reshape(-1), SMALL, [ids.shape[1]] * len(ids))
    patterns = test_ar_df_masks.draw("tube", 17, test_ar_df_masks.sizes_of(layout), 0.7, whole_process=False)
    return torch.stack([p.apply(ids[row], layout, row, SMALL.mask) for row, p in enumerate(patterns)])


@pytest.mark.parametrize("mask", ["per_sample", "shared"])
def test_a_model_file(tmp_path: Path, uneven: GoldenFile, mask: str) -> None:
    assert uneven.model().config.head_dim == 32
    arrays = {}
    for name, ids in (("img", BATCH[1:]), ("batch2", BATCH)):
        ids = masked(ids)
        with ops.use_backend("reference"):
            *streams, logits = test_model.forward(
                uneven.model(), ids, layouts(ids, SMALL).get(mask, layouts(ids[:1], SMALL)["per_sample"])
            )
        arrays |= {f"{name}.input_ids": ids.int(), f"{name}.logits": logits}
        arrays |= {f"{name}.hidden_after_layer{i}": stream for i, stream in enumerate(streams)}
    golden = write_golden(tmp_path, "model_D_made.logits.npz", arrays, {"config": uneven.meta["config"]})
    test_model.test_logits_and_residual_streams(golden, "cpu")

    index = tmp_path / "manifest.json"
    text = index.read_text()
    index.write_text(text.replace('"swin_norm": true', '"swin_norm": false'))
    with pytest.raises(AssertionError, match="largest error"):
        test_model.test_logits_and_residual_streams(golden, "cpu")
    index.write_text(text.replace('"model_parallel_size": 2', '"model_parallel_size": 1'))
    with pytest.raises(RuntimeError, match="size mismatch"):
        test_model.test_logits_and_residual_streams(golden, "cpu")
    index.write_text(text)
    write_golden(tmp_path, golden.name, {**arrays, "extra.logits": arrays["img.logits"]}, golden.meta)
    with pytest.raises(AssertionError):
        test_model.test_logits_and_residual_streams(GoldenFile(tmp_path, golden.name), "cpu")


@pytest.mark.parametrize("mask", ["per_sample", "shared"])
def test_a_training_batch(tmp_path: Path, uneven: GoldenFile, mask: str) -> None:
    """Gradients of a padded batch, whether the original's rows saw their own frames only or those of the other row too."""
    hidden, draw = masked(BATCH), torch.Generator().manual_seed(17)
    clean_labels = torch.where(BATCH == 0, -100, BATCH)
    for row in range(len(BATCH)):
        clean_labels[row, : BATCH[row].tolist().index(SMALL.video_start)] = -100
    layout = layouts(BATCH, SMALL)["per_sample"]
    kept = ~layout.content.view(BATCH.shape) | (hidden == SMALL.mask)
    arrays = {
        "clean_input_ids": BATCH, "clean_labels": clean_labels, "masked_input_ids": hidden,
        "masked_labels": torch.where(kept, clean_labels, -100),
        "mask_prob": torch.cos(torch.rand(2, generator=draw) * torch.pi / 2).clamp(min=0.7),
    }  # fmt: skip
    meta = {"seed": 17, "n_loss_tokens": int(((hidden == SMALL.mask) & SMALL.is_visual(BATCH)).sum())}
    golden = write_golden(tmp_path, "train_D_batch.safetensors", arrays, meta)
    model = uneven.model()
    samples = [test_train.corrupted(*rows, SMALL) for rows in zip(BATCH, hidden, strict=True)]
    loss, per_row = test_train.step(model, test_train.batches(samples, golden, arrays)[mask], SMALL)
    arrays |= {"loss": loss[None], "aux.tmp_closs_CE_frame0": per_row.mean()[None]}
    arrays |= {f"grad.{name}": parameter.grad for name, parameter in model.named_parameters()}
    golden = write_golden(tmp_path, golden.name, arrays, {**meta, "loss": float(loss)})
    test_train.test_corruption(golden)
    test_train.test_losses_and_every_gradient(golden, "cpu", True)
    arrays["grad.model.norm.weight"] = arrays["grad.model.norm.weight"] + 1e-5
    with pytest.raises(AssertionError, match="largest errors"):
        test_train.test_losses_and_every_gradient(
            write_golden(tmp_path, golden.name, arrays, golden.meta), "cpu", False
        )


def test_packing_drops_the_padding_and_nothing_else(uneven: GoldenFile) -> None:
    """Logits of a batch packed without its padding are those of the padded one."""
    lengths = [int((row != 0).nonzero()[-1]) + 1 for row in BATCH]
    real = torch.arange(BATCH.shape[1]) < torch.tensor(lengths)[:, None]
    packed = SequenceLayout.from_tokens(BATCH[real], SMALL, lengths)
    with torch.no_grad():
        expected = test_model.forward(uneven.model(), BATCH, layouts(BATCH, SMALL)["per_sample"])[-1][real]
        torch.testing.assert_close(uneven.model()(BATCH[real], packed), expected, rtol=0, atol=GOLDEN["logits"])


@pytest.mark.parametrize("mode", test_ar_df_masks.MODES)
def test_masks_of_training_batches(tmp_path: Path, mode: str) -> None:
    layout = layouts(BATCH, SMALL)["per_sample"]
    patterns = test_ar_df_masks.draw(test_ar_df_masks.MODES[mode], 1002, [(2, 20), (1, 36)], 0.7, whole_process=False)
    ids = torch.stack([p.apply(BATCH[row], layout, row, SMALL.mask) for row, p in enumerate(patterns)])
    content = layout.content.view(BATCH.shape)
    prefix = f"{mode}.s2.batch2"
    arrays = {
        "batch2.clean_ids": BATCH, "batch2.clean_labels": BATCH, f"{prefix}.ids": ids,
        f"{prefix}.labels": torch.where(content & (ids != SMALL.mask), -100, BATCH),
        f"{prefix}.mask_prob": torch.tensor([ratio for p in patterns for ratio in p.ratio]),
    }  # fmt: skip
    golden = write_golden(tmp_path, "ardf_masks_batch2.npz", arrays, {"min_masking_rate": 0.7, "il": {"batch2": 20}})
    test_ar_df_masks.test_masks(golden, True)
    golden = write_golden(tmp_path, golden.name, arrays, {**golden.meta, "min_masking_rate": 0.9})
    with pytest.raises(AssertionError):
        test_ar_df_masks.test_masks(golden, False)


@pytest.mark.parametrize(
    ("name", "frames", "given", "ratio"),
    [("infer_t2v_seeded.npz", 3, 0, 0.7), ("infer_i2v_seeded.npz", 3, 1, 0.5), ("infer_t2i_seeded.npz", 1, 0, None)],
)
def test_a_seeded_run(
    tmp_path: Path, uneven: GoldenFile, name: str, frames: int, given: int, ratio: float | None
) -> None:
    """Sampled and re-masked with random numbers, then replayed from the record alone, token by token."""
    golden = record_seeded(uneven, name, num_frames=frames, given=given, mask_ratio=ratio)
    for use_cache in (True, False):
        test_infer.test_every_step(golden, use_cache, "cpu")
    test_infer.test_calls(golden)
    test_infer.test_probabilities_of_the_recorded_sequences(golden)
    test_infer.test_replay_of_what_is_recorded(golden)
    test_infer.test_history_pattern_in_the_calls(golden)
    for quirk in ("compounding_temperature", "clean_given_frames", "newlines_in_history"):
        test_infer.test_each_quirk_acts_where_it_can(golden, quirk)

    arrays = golden.arrays()
    without_noise = write_golden(tmp_path, name, {**arrays, "noise": arrays["noise"] * 0}, golden.meta)
    with pytest.raises(AssertionError):
        test_infer.test_every_step(without_noise, True, "cpu")
    arrays["sampled"][0, 3] = (
        SMALL.visual_begin + (arrays["sampled"][0, 3] - SMALL.visual_begin + 1) % SMALL.visual_size
    )
    with pytest.raises(AssertionError):
        test_infer.test_every_step(write_golden(tmp_path, name, arrays, golden.meta), True, "cpu")


def test_an_image_of_the_data_pipeline(tmp_path: Path) -> None:
    prompt = [0, 22807, 16604, 16400, 32559, 16767, 16604, 16400, 32559, 16972, 17711, 16409, 16582, 17000, REAL.sep]
    ids = torch.tensor(prompt + video_ids(0, 1, 8, 4, vocabulary=REAL))
    ids[len(prompt) + 1 : len(prompt) + 3] = torch.tensor(REAL.video_header(1, 1)[1:])
    labels = ids.clone()
    labels[: len(prompt)] = -100
    arrays = {"ids": ids.int(), "labels": labels.int(), "raw_len": torch.tensor([len(ids)])}
    golden = write_golden(tmp_path, "datapipe_test_image.npz", arrays, {"fps_duration_rgb": [1, 1]})
    test_datapipe.test_our_sample_has_the_same_ids(golden)
    test_datapipe.test_labels_are_the_ids_of_the_video(golden)
    prepared = test_datapipe.Prepared(golden)
    text = test_datapipe.with_placeholders(prepared.text, 1, 1)
    assert len(text) == len(prepared.text)
    assert [text.count(placeholder) for placeholder in (65539, 65540)] == [1, 1]
    labels[-1] = -100
    with pytest.raises(AssertionError):
        test_datapipe.test_labels_are_the_ids_of_the_video(
            write_golden(tmp_path, golden.name, {**arrays, "labels": labels.int()}, golden.meta)
        )


def test_claims_refuse_what_no_module_reads(tmp_path: Path) -> None:
    golden = write_golden(tmp_path, "surprise.npz", {"x": torch.zeros(2)}, {})
    test_claims.test_the_manifest_describes_the_file(golden)
    with pytest.raises(AssertionError, match=r"surprise\.npz is claimed by no module"):
        test_claims.test_exactly_one_module_claims(golden)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["files"][golden.name]["arrays"]["x"]["shape"] = [3]
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(AssertionError):
        test_claims.test_the_manifest_describes_the_file(golden)
    with pytest.raises(AssertionError, match="not in the manifest"):
        test_claims.test_the_manifest_describes_the_file(dataclasses.replace(golden, name="other.npz"))
