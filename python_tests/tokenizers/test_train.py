"""Training of the visual tokenizer, tiny, and its command line."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from lumos_engine.cli.main import main
from lumos_engine.io.lock import FolderInUse, owned_folder
from lumos_engine.tokenizers import VisualTokenizer, VisualTokenizerConfig
from lumos_engine.tokenizers import train as train_module
from lumos_engine.tokenizers.metrics import evaluate
from lumos_engine.tokenizers.train import (
    TokenizerTrainConfig,
    learning_rate_factor,
    reconstruction_loss,
    train_tokenizer,
)

SMALL = VisualTokenizerConfig(encoder_widths=(32,), encoder_blocks=(1,), decoder_widths=(32,), decoder_blocks=(1,))
TINY = TokenizerTrainConfig(
    steps=60,
    batch_size=8,
    num_frames=5,
    warmup_steps=5,
    precision="fp32",
    foreground_weight=5.0,
    eval_clips=16,
    eval_every=40,
    log_every=10,
    model=SMALL,
)


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_training_lowers_the_loss_and_leaves_a_tokenizer(tmp_path):
    seen = []
    state = torch.get_rng_state()
    report = train_tokenizer("moving-digits", tmp_path, TINY, seen.append)
    assert torch.equal(torch.get_rng_state(), state)
    assert seen[-1].loss < 0.3 * seen[0].loss
    assert [p.step for p in seen] == [10, 20, 30, 40, 50, 60]
    assert [p.step for p in seen if p.report] == [40, 60]
    assert seen[-1].report == report and seen[-1].fraction == 1
    lines = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == [p.loss for p in seen]
    result = json.loads((tmp_path / "training.json").read_text())["result"]
    assert result["psnr"] == report.psnr and result["step"] == 60
    assert VisualTokenizer.from_pretrained(tmp_path).config == SMALL


def test_training_repeats(tmp_path):
    config = dataclasses.replace(TINY, steps=4)
    for name in ("a", "b"):
        train_tokenizer("moving-digits", tmp_path / name, config)
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    train_tokenizer("moving-digits", tmp_path / "c", dataclasses.replace(config, seed=1))
    assert (tmp_path / "a/model.safetensors").read_bytes() != (tmp_path / "c/model.safetensors").read_bytes()


def test_interruption_saves(tmp_path):
    def interrupt(progress):
        if progress.step == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_tokenizer("moving-digits", tmp_path, TINY, interrupt)
    VisualTokenizer.from_pretrained(tmp_path)
    assert json.loads((tmp_path / "training.json").read_text())["result"]["step"] == 10


def test_a_loss_that_is_not_finite_stops(tmp_path, monkeypatch):
    monkeypatch.setattr(train_module, "reconstruction_loss", lambda *_: torch.tensor(torch.nan, requires_grad=True))
    with pytest.raises(RuntimeError, match="loss is nan at step 0"):
        train_tokenizer("moving-digits", tmp_path, TINY)
    assert not (tmp_path / "model.safetensors").exists()


def test_time_bounds_the_run(tmp_path):
    seen = []
    config = dataclasses.replace(TINY, steps=10**6, max_minutes=1e-6, log_every=1, eval_every=10**6)
    train_tokenizer("moving-digits", tmp_path, config, seen.append)
    assert len(seen) == 1 and seen[0].fraction == 1


def test_learning_rate():
    config = dataclasses.replace(TINY, warmup_steps=10, decay_share=0.6)
    factors = [
        learning_rate_factor(step, fraction, config)
        for step, fraction in [(0, 0), (9, 0.1), (50, 0.4), (70, 0.7), (99, 1)]
    ]
    assert factors == pytest.approx([0.1, 1, 1, 0.5, 0])


def test_foreground_counts_more():
    config = dataclasses.replace(TINY, foreground_weight=5.0, mse_weight=0.0, l1_weight=1.0)
    target = torch.tensor([-1.0, 1.0])
    losses = [reconstruction_loss(target + torch.tensor(d), target, config).item() for d in ([0.6, 0.0], [0.0, 0.6])]
    assert losses == pytest.approx([0.1, 0.5])


def test_footage_trains(tmp_path):
    image = pytest.importorskip("PIL.Image")
    generator = torch.Generator().manual_seed(0)
    for i in range(4):
        pixels = torch.randint(256, (40, 40, 3), generator=generator, dtype=torch.uint8).numpy()
        (tmp_path / "data").mkdir(exist_ok=True)
        image.fromarray(pixels).save(tmp_path / "data" / f"{i}.png")
    model = dataclasses.replace(SMALL, channels=3, compression=(4, 8, 8), encoder="conv", encoder_history=1)
    config = dataclasses.replace(TINY, steps=3, foreground_weight=1.0, model=model)
    train_tokenizer(str(tmp_path / "data"), tmp_path / "out", config)
    assert VisualTokenizer.from_pretrained(tmp_path / "out").channels == 3
    with pytest.raises(ValueError, match=r"model\.channels must be 3"):
        train_tokenizer(str(tmp_path / "data"), tmp_path / "out", TINY)


class _Perfect:
    num_codes = 4

    def encode_batch(self, clips):
        self.clips = clips
        return torch.tensor([0, 0, 0, 1]).expand(len(clips), 4)

    def decode_batch(self, codes):
        output = self.clips.int()
        output[0] += 10
        return output


def test_report():
    report = evaluate(_Perfect(), torch.zeros(2, 1, 4, 4, 1, dtype=torch.uint8))  # errors 100 and 0 (floor 1e-3)
    assert report.pooled_psnr == pytest.approx(31.141, abs=1e-2)
    assert report.psnr == pytest.approx((28.131 + 78.131) / 2, abs=1e-2)
    assert (report.codes_used, report.most_common_share) == (2, 0.75)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"learning_rate": 0.0},
        {"precision": "fp8"},
        {"num_frames": 4},
        {"height": 30},
        {"decay_share": 2.0},
        {"max_minutes": 0.0},
    ],
)
def test_bad_options_are_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        dataclasses.replace(TINY, **wrong)


def exit_code(arguments: list[str]) -> int:
    try:
        return main(arguments)
    except SystemExit as stop:
        return int(stop.code or 0)


def test_command_line_trains(tmp_path, capsys):
    out = tmp_path / "tokenizer"
    sizes = "--model.encoder-widths 16 --model.decoder-widths 16 --model.decoder-blocks 1"
    options = f"--steps 2 --batch-size 2 --eval-clips 2 --num-frames 5 {sizes}".split()
    assert exit_code(["tokenizer", "train", "moving-digits", "--out", str(out), *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["num_codes"] == 240
    assert exit_code(["tokenizer", "train", "moving-digits", "--out", str(out), *options]) == 0
    assert "dB on held-back clips" in capsys.readouterr().out
    assert exit_code(["tokenizer", "text", "--out", str(tmp_path / "text.json"), "--captions", "200"]) == 0
    assert (tmp_path / "text.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere"], "neither 'moving-digits' nor a folder"),
        (["train", "moving-digits", "--steps", "0"], "steps must be at least 1"),
        (["train", "moving-digits", "--stepz", "5"], "--steps"),
        (["train", "moving-digits", "--model.channels", "3"], "model.channels must be 1"),
        (["train", "moving-digits", "--model.encoder", "mlp"], "encoder must be"),
        (["train", "moving-digits", "--threads", "-1"], "threads must be 0 or more"),
    ],
)
def test_mistakes_end_in_a_sentence(arguments, message, tmp_path, capsys):
    assert exit_code(["tokenizer", *arguments, "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert message in " ".join(error.replace("│", "").split()) and "Traceback" not in error
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_a_folder_in_use_is_refused(tmp_path):
    with owned_folder(tmp_path), pytest.raises(FolderInUse, match="in use by another process"):
        train_tokenizer("moving-digits", tmp_path, TINY)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
