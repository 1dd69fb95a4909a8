"""Optimiser, learning-rate schedule, gradient clipping and averaged weights."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .config import OptimizerOptions

__all__ = ["AveragedWeights", "Optimizer", "schedule_factor"]

_LAYERS = "model.layers."


def schedule_factor(step: int, fraction: float, options: OptimizerOptions) -> float:
    """Learning rate over its peak at 0-based ``step``, ``fraction`` of the run being done: linear warm-up, then the schedule."""
    warm = min(1.0, (step + 1) / options.warmup_steps) if options.warmup_steps else 1.0
    done = min(max(fraction, 0.0), 1.0)
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": (1.0 + math.cos(math.pi * done)) / 2}[options.schedule]
    return warm * (options.final_share + (1.0 - options.final_share) * shape)


class Optimizer:
    """AdamW on all parameters, or Muon (Jordan et al. 2024) on the matrices of the layers and AdamW on the rest.

    Muon's updates are scaled to the size of AdamW's ("match_rms_adamw", Moonlight, arXiv 2502.16982), so that one learning rate
    fits both. Weight decay acts on matrices and embeddings; on norms and biases only with ``decay_everything``.
    """

    def __init__(self, model: nn.Module, options: OptimizerOptions) -> None:
        self._options = options
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        matrices = {n for n, p in self.parameters.items() if p.ndim == 2 and n.startswith(_LAYERS) and "norm" not in n}
        if options.name == "adamw":
            matrices = set()
        rest = {n: p for n, p in self.parameters.items() if n not in matrices}
        decayed = {n for n in rest if options.decay_everything or ("norm" not in n and not n.endswith("bias"))}
        groups = [
            {
                "params": [p for n, p in rest.items() if (n in decayed) is decay],
                "weight_decay": options.weight_decay * decay,
            }
            for decay in (True, False)
        ]
        self._parts: list[tuple[torch.optim.Optimizer, float]] = []
        if matrices:
            muon = torch.optim.Muon(
                [self.parameters[n] for n in self.parameters if n in matrices],
                lr=options.matrix_learning_rate, weight_decay=options.weight_decay, momentum=options.momentum,
                adjust_lr_fn="match_rms_adamw",
            )  # fmt: skip
            self._parts.append((muon, options.matrix_learning_rate))
        adamw = torch.optim.AdamW(
            [group for group in groups if group["params"]], lr=options.learning_rate, betas=(options.beta1, options.beta2),
            eps=options.eps, fused=True,
        )  # fmt: skip
        self._parts.append((adamw, options.learning_rate))

    def step(self, factor: float) -> float:
        """Clip, update with learning rates times ``factor``, clear the gradients. Returns the norm before clipping; when that is not
        finite nothing is updated."""
        norm = float(nn.utils.clip_grad_norm_(self.parameters.values(), self._options.clip_norm))
        if math.isfinite(norm):
            for optimizer, rate in self._parts:
                for group in optimizer.param_groups:
                    group["lr"] = rate * factor
                optimizer.step()
        for optimizer, _ in self._parts:
            optimizer.zero_grad(set_to_none=True)
        return norm

    def state(self) -> dict[str, Tensor]:
        """Moments and counters by ``parameter/key``."""
        names = {id(p): n for n, p in self.parameters.items()}
        return {
            f"{names[id(p)]}/{key}": value
            for optimizer, _ in self._parts
            for p, entries in optimizer.state.items()
            for key, value in entries.items()
        }

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`. ValueError where the state is of another optimiser or model."""
        owners = {
            id(p): optimizer
            for optimizer, _ in self._parts
            for group in optimizer.param_groups
            for p in group["params"]
        }
        for optimizer, _ in self._parts:
            optimizer.state.clear()
        for name, value in state.items():
            parameter, _, key = name.rpartition("/")
            if parameter not in self.parameters:
                raise ValueError(f"the optimizer state holds {parameter!r}, which the model does not have")
            p = self.parameters[parameter]
            owner = owners[id(p)]
            expected = (
                ("momentum_buffer",) if isinstance(owner, torch.optim.Muon) else ("step", "exp_avg", "exp_avg_sq")
            )
            if key not in expected or (value.ndim and value.shape != p.shape):
                raise ValueError(
                    f"the optimizer state {name!r} of shape {list(value.shape)} does not fit optimizer.name or the model"
                )
            owner.state[p][key] = value.clone()


class AveragedWeights:
    """Exponential moving average of parameters; the decay grows from 2/11 with the number of updates, so that the start is forgotten.

    Without an average (``decay`` 0) the values are the parameters themselves.
    """

    def __init__(self, parameters: Mapping[str, Tensor], decay: float) -> None:
        self._parameters, self._decay, self.updates = dict(parameters), decay, 0
        self.values = {n: p.detach().clone() for n, p in parameters.items()} if decay else {}

    @torch.no_grad()
    def update(self) -> None:
        if self._decay:
            self.updates += 1
            decay = min(self._decay, (1 + self.updates) / (10 + self.updates))
            torch._foreach_lerp_(list(self.values.values()), list(self._parameters.values()), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within the block the parameters hold the average."""
        own = {name: self._parameters[name].detach().clone() for name in self.values}
        try:
            self._copy(self.values)
            yield
        finally:
            self._copy(own)

    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Take over an average of these very parameters."""
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def _copy(self, values: Mapping[str, Tensor]) -> None:
        for name, value in values.items():
            self._parameters[name].copy_(value)
