"""The evaluation around the scores: prompt sets, ceilings, continuation, manifest and the command."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from lumos_engine.cli import eval as command
from lumos_engine.data import HELD_OUT
from lumos_engine.data.motion import parse_caption
from lumos_engine.evals.continuation import future_mse, psnr_db, summarize_continuation
from lumos_engine.evals.digits import _continuation_clips, evaluate_digits, prompt_clips, table_rows
from lumos_engine.evals.manifest import weights_sha256
from lumos_engine.evals.sheet import contact_sheet


class _Tokenizer:
    """Codes are the frames themselves; decoding takes the lowest bits away."""

    def encode_batch(self, frames: torch.Tensor) -> torch.Tensor:
        return frames.long()

    def decode_batch(self, codes: torch.Tensor) -> torch.Tensor:
        return (codes & ~31).to(torch.uint8).expand(*codes.shape[:-1], 3)


class _Pipeline:
    """Gives the true clip of a prompt, or of a first frame; ``spoil`` changes it."""

    def __init__(self, num: int, spoil: Any = lambda frames: frames) -> None:
        self.defaults = {"num_frames": 13, "height": 32, "width": 32, "fps": 6, "steps": 16}
        self.visual_tokenizer = _Tokenizer()
        self.model = torch.nn.Linear(2, 2)
        self.spoil = spoil
        self.calls: list[dict[str, Any]] = []
        self.truth = {c: f for b in prompt_clips(num).values() for c, f in zip(b.captions, b.frames, strict=True)}
        for name in ("one_digit_seen", "two_digit_seen"):
            for frames in _continuation_clips(num, name).frames:
                self.truth[frames[0].tobytes()] = frames

    def __call__(self, prompts: list[str], **options: Any) -> SimpleNamespace:
        self.calls.append({"clips": len(prompts), **options})
        keys = [image.tobytes() for image in options["image"]] if "image" in options else prompts
        return SimpleNamespace(frames=self.spoil(np.stack([self.truth[key] for key in keys]).repeat(3, axis=-1)))


def test_prompts_are_fixed_and_of_the_right_kind() -> None:
    full = prompt_clips(256)
    assert {name: len(clips.captions) for name, clips in full.items()} == {
        "one_digit_seen": 128, "one_digit_unseen": 32, "two_digit_seen": 64, "two_digit_unseen": 32,
    }  # fmt: skip
    for name, clips in full.items():
        for caption in clips.captions:
            objects = parse_caption(caption)
            assert len(objects) == (1 if name.startswith("one") else 2)
            assert all((pair in HELD_OUT) == name.endswith("unseen") for pair in objects)
    quick = prompt_clips(24)
    assert [len(clips.captions) for clips in quick.values()] == [12, 3, 6, 3]
    assert all(clips.captions == full[name].captions[: len(clips.captions)] for name, clips in quick.items())
    for num in (1, 2, 7, 100):
        assert sum(len(clips.captions) for clips in prompt_clips(num).values()) == num
    with pytest.raises(ValueError, match="at least 1 prompt, not 0"):
        prompt_clips(0)


def test_a_perfect_model_reaches_everything() -> None:
    pipeline = _Pipeline(32)
    progress, kept = [], {}
    report = evaluate_digits(
        pipeline, 32, seed=5, batch_size=10, options={"steps": 4},
        progress=lambda done, total: progress.append((done, total)),
        keep_clips=lambda name, generated, truth: kept.update({name: (generated, truth)}),
    )  # fmt: skip
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    for group in report["groups"].values():
        for metric, share in group["share_of_reconstruction"].items():
            assert share == 1.0 or group["true"][metric]["share"] < 1.0
        assert group["generated"]["direction_accuracy"]["share"] == 1.0
    one, two = (report["continuation"][name] for name in ("one_digit_seen", "two_digit_seen"))
    assert (one["clips"], two["clips"]) == (8, 4)
    assert one["psnr_generated_db"] == 60.0 and 30 < one["psnr_reconstructed_db"] < 50 and one["gain_db"] > 30
    # Each clip has noise of its own, whatever the batches are.
    assert [(call["first_sample"], call["clips"]) for call in pipeline.calls] == [
        (0, 10), (10, 6), (16, 4), (20, 8), (28, 4), (32, 8), (40, 4),
    ]  # fmt: skip
    assert all(call["seed"] == 5 and call["steps"] == 4 for call in pipeline.calls)
    assert progress[-1] == (44, 44) and list(kept)[-1] == "continued_two_digit_seen"
    manifest = report["manifest"]
    assert manifest["settings"]["steps"] == 4 and manifest["weights_sha256"]["model"] == weights_sha256(pipeline.model)
    assert (
        set(manifest["weights_sha256"]) == {"model", "classifier"}
        and manifest["versions"]["torch"] == torch.__version__
    )
    assert (
        evaluate_digits(_Pipeline(8), 8, continuation=False)["manifest"]["prompts_sha256"] != manifest["prompts_sha256"]
    )


def test_a_model_that_repeats_the_first_frame_gains_nothing() -> None:
    report = evaluate_digits(_Pipeline(16, spoil=lambda frames: np.broadcast_to(frames[:, :1], frames.shape)), 16)
    for found in report["continuation"].values():
        assert found["gain_db"] == found["gain_pooled_db"] == 0.0
        assert found["psnr_generated_db"] == found["psnr_repeated_db"]
    assert report["groups"]["one_digit_seen"]["share_of_reconstruction"]["direction_accuracy"] < 0.5


def test_table_has_a_row_for_each_metric_and_survives_one_prompt() -> None:
    rows = table_rows(evaluate_digits(_Pipeline(1), 1))
    assert rows[0][2:] == ["generated", "reconstructed", "true", "of ceiling"]
    assert all(len(row) == 6 and all(isinstance(cell, str) for cell in row) for row in rows)
    assert rows[1][:3] == ["one digit, seen pairs (1)", "digit", "100.0 % [21, 100]"]
    assert len(rows) == 1 + 6 + 2 * 3


def test_psnr_by_hand() -> None:
    truth = np.zeros((1, 3, 2, 2, 1), dtype=np.uint8)
    clips = truth.copy()
    clips[:, 0] = 255  # the first frame does not count
    clips[:, 1, 0, 0] = 255
    np.testing.assert_allclose(future_mse(clips, truth), [1 / 8])
    assert psnr_db(0.01) == pytest.approx(20) and psnr_db(0.0) == pytest.approx(60)
    found = summarize_continuation(clips, truth, truth)
    assert found["psnr_generated_db"] == pytest.approx(9.0309, abs=1e-4) and found["gain_low_db"] is None
    for other in (truth[:, :1], truth[..., :1, :]):
        with pytest.raises(ValueError, match="must agree"):
            future_mse(other, truth)
    with pytest.raises(ValueError, match="at least 2 frames"):
        future_mse(truth[:, :1], truth[:, :1])


def test_contact_sheet() -> None:
    clips = np.full((2, 5, 4, 6, 3), 10, dtype=np.uint8)
    sheet = contact_sheet(clips, clips[..., :1] + 1)
    assert sheet.shape == (1, 2 * (4 + 4 + 2), 3 * 7, 3)
    assert sheet[0, 0, 0, 0] == 10 and sheet[0, 4, 0, 0] == 11 and sheet[0, 0, 6, 0] == 96


def test_hash_sees_every_change() -> None:
    module = torch.nn.Linear(2, 2)
    before = weights_sha256(module)
    assert before == weights_sha256(module)
    with torch.no_grad():
        module.weight[0, 0] += 1
    assert before != weights_sha256(module)


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    import lumos_engine.pipeline

    monkeypatch.setattr(lumos_engine.pipeline.LumosPipeline, "from_pretrained", lambda folder: _Pipeline(8))


@pytest.mark.usefixtures("pipeline")
def test_command_prints_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "digits",
        "--num",
        "8",
        "--out",
        str(tmp_path / "report.json"),
        "--sheets",
        str(tmp_path / "sheets"),
        "--steps",
        "3",
    ]
    assert command.main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert json.loads((tmp_path / "report.json").read_text()) == printed
    assert printed["num"] == 8 and printed["manifest"]["settings"]["steps"] == 3
    assert len(list((tmp_path / "sheets").glob("*.png"))) == 6
    assert command.main(["digits", "--num", "8", "--no-continuation"]) == 0
    table = capsys.readouterr().out
    assert "two digits, seen" in table and "gain" not in table


@pytest.mark.usefixtures("pipeline")
@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (["fish"], ValueError, "unknown evaluation 'fish'; known: digits"),
        (["digits", "--num", "0"], ValueError, "--num and --batch-size must be at least 1"),
        (["digits", "--batch-size", "-1"], ValueError, "must be at least 1"),
        (["digits", "--out", "/no/such/folder/a.json"], FileNotFoundError, "no such folder"),
    ],
)
def test_command_refuses(arguments: list[str], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        command.main(arguments)


def test_command_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["--help"]) == 0 and command.main([]) == 2
    assert capsys.readouterr().out.count("usage: lumos eval digits") == 2


def test_batch_size_is_checked() -> None:
    with pytest.raises(ValueError, match="batch_size must be at least 1, not 0"):
        evaluate_digits(_Pipeline(1), 1, batch_size=0)
