"""The loop: learning, exact resume, accumulation, signals, failures, export."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lumos_engine import LumosModel
from lumos_engine.io import atomic
from lumos_engine.io.checkpoint import load_safetensors
from lumos_engine.pipeline_folder import PipelineConfig
from lumos_engine.testing import tolerances
from lumos_engine.tokenizers import TextTokenizer, VisualTokenizer
from lumos_engine.train.code_factors import head_weight
from lumos_engine.train.progress import JsonLog, Report
from lumos_engine.train.trainer import Trainer

from .conftest import VOCABULARY, MakeTrainer


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """All tensors of the latest checkpoint."""
    tensors = trainer._checkpoints.load_latest().tensors
    return {f"{file}/{name}": value for file, part in tensors.items() for name, value in part.items()}


@pytest.mark.parametrize("optimizer", ["muon", "adamw"])
@pytest.mark.parametrize("history", ["mask", "drop", "keep"])
def test_two_frame_clips_are_learned(make_trainer: MakeTrainer, optimizer: str, history: str) -> None:
    reports: list[Report] = []
    trainer = make_trainer(
        train__steps=60, train__validate_steps=30, diffusion__history=history, optimizer__name=optimizer,
        optimizer__learning_rate=1e-2, optimizer__ema=0.9,
    )  # fmt: skip
    before = trainer.validate()[0]
    assert trainer.run([reports.append]) is None
    validations = [report.validation_loss for report in reports if report.validation_loss is not None]
    assert len(validations) == 2
    assert validations[-1] < before - 0.5
    assert reports[-1].fraction == 1.0 and len(reports[-1].frame_losses) == 2


@pytest.mark.parametrize(
    "options", [{}, {"train__precision": "bf16", "model__code_factors": True, "train__accumulation": 2}]
)
def test_resume_equals_the_uninterrupted_run(make_trainer: MakeTrainer, options: dict[str, object]) -> None:
    options = {"train__steps": 6, "train__checkpoint_steps": 3, "diffusion__clean_prefix_probability": 0.5, **options}
    whole = make_trainer(out="whole", **options)
    whole.run()
    part = make_trainer(out="part", **options)
    stop_after(part, 3)
    resumed = make_trainer(out="part", resume=True, **options)
    assert resumed.step == 3
    resumed.run()
    expected, found = everything(whole), everything(resumed)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert torch.equal(value, found[name]), name
    exports = [load_safetensors(trainer.out / "model" / "model.safetensors") for trainer in (whole, resumed)]
    assert all(torch.equal(exports[0][name], exports[1][name]) for name in exports[0])


def stop_after(trainer: Trainer, steps: int, number: int = signal.SIGTERM) -> int | None:
    """Run until ``number`` arrives from within step ``steps``."""

    def listener(report: Report) -> None:
        if report.step == steps:
            os.kill(os.getpid(), number)

    return trainer.run([listener])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_leaves(make_trainer: MakeTrainer, number: int) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    trainer = make_trainer(train__steps=50)
    assert stop_after(trainer, 2, number) == number
    assert 2 <= trainer.step <= 3
    assert trainer._checkpoints.load_latest().state["step"] == trainer.step
    assert (trainer.out / "model" / "model.safetensors").is_file()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers


def test_accumulation_equals_one_large_batch(make_trainer: MakeTrainer) -> None:
    options = {"optimizer__name": "adamw", "train__steps": 3}
    large = make_trainer(out="large", train__batch_size=8, **options)
    small = make_trainer(out="small", train__batch_size=2, train__accumulation=4, **options)
    for _ in range(3):
        a, b = large.train_step(), small.train_step()
        assert a.loss == pytest.approx(b.loss, abs=tolerances.REORDERED["atol"])
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=tolerances.MODEL["rtol"])
        torch.testing.assert_close(a.frame_sums, b.frame_sums, **tolerances.MODEL)
        assert a.tokens == b.tokens


def test_padding_changes_nothing_but_the_size(make_trainer: MakeTrainer) -> None:
    plain, padded = (make_trainer(out=str(size), train__round_tokens=size) for size in (1, 256))
    a, b = plain.train_step(), padded.train_step()
    assert a.loss == pytest.approx(b.loss, abs=tolerances.CLOSED_FORM["atol"])
    assert a.tokens == b.tokens


def test_gradient_checkpointing_changes_nothing(make_trainer: MakeTrainer) -> None:
    plain, recomputed = (make_trainer(out=str(on), train__gradient_checkpointing=on) for on in (False, True))
    assert plain.train_step().grad_norm == pytest.approx(
        recomputed.train_step().grad_norm, rel=tolerances.CLOSED_FORM["rtol"]
    )


def test_validation_is_always_the_same(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    first = trainer.validate()
    weights = {name: p.detach().clone() for name, p in trainer._optimizer.parameters.items()}
    assert trainer.validate() == first
    assert all(torch.equal(p, weights[name]) for name, p in trainer._optimizer.parameters.items())


def test_nan_stops_with_step_and_samples(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(train__checkpoint_steps=1)
    trainer.train_step()
    trainer.save()
    before = everything(trainer)
    with torch.no_grad():
        trainer.model.model.norm.weight[0] = float("nan")
    with pytest.raises(RuntimeError, match=r"loss is nan in step 1 on samples 4\.\.7"):
        trainer.run()
    assert all(torch.equal(value, before[name]) for name, value in everything(trainer).items())
    batch = load_safetensors(trainer.out / "failed_batch.safetensors")
    assert batch["0.tokens"].dtype == torch.int64 and len(batch["0.rows"]) == len(batch["0.targets"])


def test_infinite_gradient_stops(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer()
    trainer.model.model.norm.weight.register_hook(lambda gradient: gradient * float("inf"))
    with pytest.raises(RuntimeError, match="the gradient is not finite in step 0"):
        trainer.run()


def test_disk_full_leaves_the_previous_checkpoint(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = make_trainer()
    trainer.train_step()
    trainer.save()
    before = everything(trainer)
    trainer.train_step()
    written = []

    def fails(path: Path, flags: int) -> None:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic, "_sync", fails)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    monkeypatch.undo()
    assert trainer._checkpoints.load_latest().state["step"] == 1
    assert all(torch.equal(value, before[name]) for name, value in everything(trainer).items())
    assert [path.name for path in sorted(trainer._checkpoints.folder.iterdir())] == ["LATEST", "step-00000001"]


def test_a_folder_with_a_run_is_not_overwritten(make_trainer: MakeTrainer) -> None:
    make_trainer().run()
    with pytest.raises(ValueError, match="holds a run already; pass --resume"):
        make_trainer()


def test_resume_needs_the_same_model(make_trainer: MakeTrainer) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from"):
        make_trainer(resume=True)
    make_trainer().run()
    with pytest.raises(ValueError, match="other model options"):
        make_trainer(resume=True, model__hidden_size=128)
    with pytest.raises(ValueError, match=r"does not fit optimizer\.name"):
        make_trainer(resume=True, optimizer__name="adamw")


@pytest.mark.parametrize("tied", [False, True])
def test_export_is_the_average_with_factors_merged(
    make_trainer: MakeTrainer, tied: bool, tokenizers: tuple[VisualTokenizer, TextTokenizer]
) -> None:
    trainer = make_trainer(
        model__tie_word_embeddings=tied,
        model__code_factors=True,
        optimizer__ema=0.5,
        generation__steps=3,
        train__steps=5,
    )
    trainer.run()
    folder = trainer.out / "model"
    model = LumosModel.from_pretrained(folder)
    with trainer._average.in_place():
        embedding, head = trainer.model.model.embed_tokens.weight.detach(), head_weight(trainer.model).detach()
    assert torch.equal(model.model.embed_tokens.weight, embedding.bfloat16())
    assert torch.equal(model.lm_head.weight, head.bfloat16())
    assert not torch.equal(embedding, trainer.model.model.embed_tokens.weight)
    content = PipelineConfig.from_file(folder / "pipeline.json")
    assert content.vocabulary == VOCABULARY and content.defaults["steps"] == 3 and content.defaults["num_frames"] == 5
    assert TextTokenizer.from_file(folder / "text_tokenizer.json").encode("a 3") == tokenizers[1].encode("a 3")
    assert VisualTokenizer.from_pretrained(folder / "visual_tokenizer").levels == (4, 3)


def test_start_from_a_model(make_trainer: MakeTrainer) -> None:
    first = make_trainer(out="first")
    first.run()
    folder = str(first.out / "model")
    second = make_trainer(out="second", model__init_from=folder)
    exported = LumosModel.from_pretrained(folder).model.embed_tokens.weight
    assert torch.equal(second.model.model.embed_tokens.weight, exported.float())
    with pytest.raises(ValueError, match="of other sizes"):
        make_trainer(out="third", model__init_from=folder, model__intermediate_size=96)


def test_log_of_a_resumed_run_has_each_step_once(make_trainer: MakeTrainer) -> None:
    trainer = make_trainer(train__steps=4, train__checkpoint_steps=2)
    log = JsonLog(trainer.out / "train.jsonl", trainer.step)
    stop_after(trainer, 1)
    log.close()
    path = trainer.out / "train.jsonl"
    path.write_text('{"step": 1, "loss": 1}\n{"step": 2, "loss": 1}\n{"step": 3, "lo')
    resumed = make_trainer(train__steps=4, resume=True)
    listener = JsonLog(path, 1)
    resumed.run([listener])
    listener.close()
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == sorted(set(steps)) and steps[-1] == 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_compiled_layers_train_alike(make_trainer: MakeTrainer) -> None:
    eager, compiled = (make_trainer(out=str(on), train__compile=on) for on in (False, True))
    for _ in range(4):  # batches of different sizes
        a, b = eager.train_step(), compiled.train_step()
        assert a.loss == pytest.approx(b.loss, abs=tolerances.MODEL["atol"])
        assert a.grad_norm == pytest.approx(b.grad_norm, rel=10 * tolerances.MODEL["rtol"])
