"""The training loop: AR-DF loss on packed batches, averaged weights, validation, checkpoints that resume exactly."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from torch import Tensor

from .. import ops
from ..io.atomic import write_bytes_atomic
from ..io.checkpoint import save_safetensors
from ..model import LumosModel
from ..tokenizers import TextTokenizer, VisualTokenizer
from .batches import BatchMaker, TrainBatch
from .checkpoint import CheckpointFolder
from .code_factors import add_code_factors, head_weight
from .config import TrainConfig
from .export import export_model
from .interrupt import requested_signals
from .optimizer import AveragedWeights, Optimizer, schedule_factor
from .progress import Report
from .sources import ClipSource, open_sources
from .statistics import StepResult, Window, frame_means, frame_sums
from .tokenizers import check_tokenizers, load_tokenizers

__all__ = ["Trainer"]

_VALIDATION_SEED = 20250707


class Trainer:
    """One run in the folder ``config.train.out``, which nothing else may write to meanwhile: see :func:`lumos_engine.io.lock.owned_folder`.

    Args:
        config: of the run. resume: continue from the newest whole checkpoint; without it the folder must hold none.
        sources: training and validation clips in place of those that ``config.data`` names.
        tokenizers: visual and text tokenizer in place of those that ``config.data`` names.
        on_encode: called with clips encoded and clips in all while a folder is encoded, which happens once.

    Attributes:
        step: optimiser steps done.

    Raises:
        ValueError: options that do not fit each other, the data or the checkpoint; a folder that already holds a run.
        FileNotFoundError: nothing to resume, or no tokenizer where the options point.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        resume: bool = False,
        sources: tuple[ClipSource, ClipSource] | None = None,
        tokenizers: tuple[VisualTokenizer, TextTokenizer] | None = None,
        on_encode: Callable[[int, int], None] | None = None,
    ) -> None:
        self.config = config
        run, vocabulary = config.train, config.vocabulary
        self.out = Path(run.out)
        self._checkpoints = CheckpointFolder(self.out / "checkpoints", run.keep_checkpoints)
        if self._checkpoints.exists() and not resume:
            raise ValueError(
                f"{self.out} holds a run already; pass --resume to continue it, or choose another train.out"
            )
        if run.threads:
            torch.set_num_threads(run.threads)
        self.visual_tokenizer, self.text_tokenizer = tokenizers or load_tokenizers(config.data)
        check_tokenizers(config, self.visual_tokenizer, self.text_tokenizer)
        self.model = self._build_model()
        self._optimizer = Optimizer(self.model, config.optimizer)
        self._average = AveragedWeights(self._optimizer.parameters, config.optimizer.ema)
        training, held_back = sources or open_sources(
            config.data, self.visual_tokenizer, run.seed, self.out / "codes.safetensors", on_encode
        )
        self._batches, self._validation = (
            BatchMaker(source, self.text_tokenizer, vocabulary, config.diffusion, seed=seed,
                       max_tokens=self.model.config.max_position_embeddings, round_tokens=run.round_tokens)
            for source, seed in ((training, run.seed), (held_back, _VALIDATION_SEED))
        )  # fmt: skip
        self._visual = slice(vocabulary.visual_begin, vocabulary.visual_end)
        self._window = Window()
        self._minutes = 0.0
        self.step = 0
        self._saved_step = self._exported_step = -1
        if resume:
            self._load()
        self.out.mkdir(parents=True, exist_ok=True)
        write_bytes_atomic(self.out / "config.yaml", yaml.safe_dump(config.to_dict(), sort_keys=False).encode())

    # The run

    def fraction(self) -> float:
        """Share of the run that is done, 0..1."""
        run = self.config.train
        return min(1.0, max(self.step / run.steps, self._minutes / (run.max_minutes or math.inf)))

    def run(self, listeners: Sequence[Callable[[Report], None]] = ()) -> int | None:
        """Train until the end of the run, or until SIGINT or SIGTERM asks to leave after the current step; save and export then.

        Returns the signal's number, None at the end of the run. A second signal takes effect at once.

        Raises:
            RuntimeError: loss or gradient is not finite; step and samples are named and the batch is saved as ``failed_batch.safetensors``.
            OSError: a checkpoint cannot be written; earlier ones are as they were.
        """
        run = self.config.train
        last_save = time.monotonic()
        with requested_signals() as caught:
            while self.fraction() < 1.0 and not caught:
                begin = time.monotonic()
                result = self.train_step()
                seconds = time.monotonic() - begin
                self._window.add(result, seconds)
                self._minutes += seconds / 60
                done = self.fraction() >= 1.0
                validate = run.validate_steps and (done or self.step % run.validate_steps == 0)
                if done or validate or self.step % run.log_steps == 0:
                    validation = self.validate() if validate else None
                    report = self._window.report(self.step, self.fraction(), self._minutes, validation)
                    for listener in listeners:
                        listener(report)
                    self._window = Window()
                minutes = (time.monotonic() - last_save) / 60
                if (run.checkpoint_minutes and minutes >= run.checkpoint_minutes) or (
                    run.checkpoint_steps and self.step % run.checkpoint_steps == 0
                ):
                    self.save()
                    last_save = time.monotonic()
            self.save()
        return caught[0] if caught else None

    def train_step(self) -> StepResult:
        """One update on the next ``batch_size * accumulation`` samples."""
        run = self.config.train
        begin = self.step * run.batch_size * run.accumulation
        batches = [self._batches.batch(begin + i * run.batch_size, run.batch_size) for i in range(run.accumulation)]
        num_rows = max(1, sum(len(batch.rows) for batch in batches))  # a lone masked token may be a row end
        factor = schedule_factor(self.step, self.fraction(), self.config.optimizer)
        loss, losses = 0.0, []
        for batch in batches:
            mean, per_row = self._loss(batch)
            # Token mean over the whole step, however its samples are dealt to forward passes.
            share = mean * (len(batch.rows) / num_rows)
            share.backward()
            loss += share.item()
            losses.append(per_row.detach())
        norm = self._optimizer.step(factor) if math.isfinite(loss) else math.nan
        if not math.isfinite(norm):
            self._refuse(batches, loss)
        self._average.update()
        self.step += 1
        sums = frame_sums(torch.cat(losses), torch.cat([batch.frames for batch in batches]))
        tokens = sum(batch.layout.num_tokens - batch.num_padding for batch in batches)
        return StepResult(loss, sums, norm, self.config.optimizer.learning_rate * factor, tokens)

    @torch.no_grad()
    def validate(self) -> tuple[float, list[float | None]]:
        """Loss and loss by frame of the averaged weights on the held-back clips, always the same under the same masks."""
        run, count = self.config.train, self.config.data.validation_clips
        losses, frames = [], []
        with self._average.in_place():
            for begin in range(0, count, run.batch_size):
                batch = self._validation.batch(begin, min(run.batch_size, count - begin))
                losses.append(self._loss(batch)[1])
                frames.append(batch.frames)
        sums = frame_sums(torch.cat(losses), torch.cat(frames))
        return float(sums[0].sum() / sums[1].sum()), frame_means(sums)

    def _loss(self, batch: TrainBatch) -> tuple[Tensor, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.config.train.precision == "bf16"):
            hidden = self.model.hidden_states(batch.tokens, batch.layout)
            weight = head_weight(self.model)[self._visual]
            return ops.masked_linear_cross_entropy(hidden, weight, batch.targets, batch.rows)

    # State

    def save(self) -> None:
        """Write a checkpoint and the model so far (``out/model``), each unless it is of this step already."""
        if self.step != self._saved_step:
            self._save_checkpoint()
            self._saved_step = self.step
        if self.step != self._exported_step:
            with self._average.in_place():
                export_model(self.out / "model", self.model, self.config, self.visual_tokenizer, self.text_tokenizer)
            self._exported_step = self.step

    def _save_checkpoint(self) -> None:
        parameters = {name: p.detach() for name, p in self._optimizer.parameters.items()}
        tensors = {"model": parameters, "optimizer": self._optimizer.state(), "rng": {"torch": torch.get_rng_state()}}
        if self._average.values:
            tensors["ema"] = self._average.values
        state = {
            "minutes": self._minutes,
            "next_sample": self.step * self.config.train.batch_size * self.config.train.accumulation,
            "ema_updates": self._average.updates,
            "window": self._window.to_dict(),
            "config": self.config.to_dict(),
        }
        self._checkpoints.save(self.step, tensors, state)

    def _load(self) -> None:
        checkpoint = self._checkpoints.load_latest()
        saved = TrainConfig.from_dict(checkpoint.state["config"])
        for section in ("model", "vocabulary"):
            if getattr(saved, section) != getattr(self.config, section):
                raise ValueError(
                    f"{checkpoint.path} was made with other {section} options; resume with those in {self.out / 'config.yaml'}"
                )
        parameters = self._optimizer.parameters
        for file in ("model", "ema"):
            found = {name: list(value.shape) for name, value in checkpoint.tensors.get(file, {}).items()}
            if (found or file == "model" or self._average.values) and found != {
                n: list(p.shape) for n, p in parameters.items()
            }:
                raise ValueError(
                    f"{checkpoint.path}/{file}.safetensors does not hold the weights that the options describe"
                )
        with torch.no_grad():
            for name, value in checkpoint.tensors["model"].items():
                parameters[name].copy_(value)
        self._optimizer.load_state(checkpoint.tensors["optimizer"])
        self._average.load(checkpoint.tensors.get("ema", {}), checkpoint.state["ema_updates"])
        torch.set_rng_state(checkpoint.tensors["rng"]["torch"])
        self.step = self._saved_step = checkpoint.state["step"]
        self._minutes = checkpoint.state["minutes"]
        self._window = Window.from_dict(checkpoint.state["window"])

    def _build_model(self) -> LumosModel:
        options = self.config.model
        sizes = options.lumos_config(self.config.vocabulary)
        if options.init_from:
            model = LumosModel.from_pretrained(options.init_from, dtype=torch.float32)
            if model.config != sizes:
                raise ValueError(
                    f"model.init_from: {options.init_from} is of other sizes than the model section: {model.config}"
                )
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.config.train.seed)
                model = LumosModel(sizes)
        model.train()
        model.gradient_checkpointing = self.config.train.gradient_checkpointing
        if options.code_factors:
            add_code_factors(model, self.visual_tokenizer.levels, self.config.vocabulary)
        if self.config.train.compile:
            for block in model.model.layers:
                block.compile(dynamic=True)
        return model

    def _refuse(self, batches: list[TrainBatch], loss: float) -> None:
        path = self.out / "failed_batch.safetensors"
        tensors = {}
        for i, batch in enumerate(batches):
            parts = {
                "tokens": batch.tokens,
                "rows": batch.rows,
                "targets": batch.targets,
                "cu_seqlens": batch.layout.cu_seqlens,
            }
            tensors.update({f"{i}.{name}": value for name, value in parts.items()})
        save_safetensors(path, tensors)
        samples = f"{batches[0].positions.start}..{batches[-1].positions.stop - 1}"
        what = f"loss is {loss}" if not math.isfinite(loss) else "the gradient is not finite"
        raise RuntimeError(
            f"{what} in step {self.step} on samples {samples}; the batch is in {path}, the last checkpoint stays: "
            "lower optimizer.learning_rate or use train.precision fp32"
        )
