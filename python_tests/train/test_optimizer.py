"""Which parameters get which update, the schedule, and averaged weights."""

from __future__ import annotations

import math

import pytest
import torch

from lumos_engine import LumosConfig, LumosModel
from lumos_engine.train.config import OptimizerOptions
from lumos_engine.train.optimizer import AveragedWeights, Optimizer, schedule_factor


def model() -> LumosModel:
    torch.manual_seed(0)
    config = LumosConfig(vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1,
                         num_key_value_heads=1)  # fmt: skip
    return LumosModel(config)


def step(options: OptimizerOptions, gradient: float = 0.0) -> tuple[LumosModel, LumosModel, float]:
    """The model before and after one update with a constant gradient, and the norm."""
    before, after = model(), model()
    optimizer = Optimizer(after, options)
    for p in after.parameters():
        p.grad = torch.full_like(p, gradient)
    return before, after, optimizer.step(1.0)


@pytest.mark.parametrize("name", ["adamw", "muon"])
@pytest.mark.parametrize("everywhere", [False, True])
def test_weight_decay(name: str, everywhere: bool) -> None:
    options = OptimizerOptions(
        name=name,
        weight_decay=0.5,
        learning_rate=0.1,
        matrix_learning_rate=0.1,
        decay_everything=everywhere,  # type: ignore[arg-type]
    )
    before, after, _ = step(options)
    others = dict(after.named_parameters())
    for parameter, old in before.named_parameters():
        decayed = everywhere or "norm" not in parameter
        torch.testing.assert_close(others[parameter], old * (0.95 if decayed else 1.0), msg=parameter)


def test_muon_orthogonalises_matrices_of_layers_only() -> None:
    before, after, _ = step(OptimizerOptions(name="muon", weight_decay=0.0), gradient=1.0)
    old = dict(before.named_parameters())
    for parameter, new in after.named_parameters():
        change = (new - old[parameter]).detach()
        if parameter.startswith("model.layers.") and "norm" not in parameter:
            assert torch.linalg.matrix_rank(change, tol=1e-3) == 1  # the update of a constant gradient has its rank ...
        else:
            # ... and AdamW's first step is the learning rate in every element.
            torch.testing.assert_close(change, torch.full_like(change, -2.5e-3), rtol=1e-3, atol=1e-7, msg=parameter)


def test_clipping_and_norm() -> None:
    a = step(OptimizerOptions(name="adamw", eps=1e-2, clip_norm=1e-3), gradient=1.0)
    count = sum(p.numel() for p in a[0].parameters())
    assert a[2] == pytest.approx(math.sqrt(count), rel=1e-4)
    change = (a[1].model.norm.weight - a[0].model.norm.weight).abs().max()
    assert float(change.detach()) < 2.5e-4  # far below the learning rate: the clipped gradient is small against eps


def test_nothing_is_updated_on_a_gradient_that_is_not_finite() -> None:
    before, after, norm = step(OptimizerOptions(), gradient=float("nan"))
    assert math.isnan(norm)
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True))


def test_schedules() -> None:
    linear = OptimizerOptions(warmup_steps=10, schedule="linear", final_share=0.1)
    assert schedule_factor(0, 0.0, linear) == pytest.approx(0.1)
    assert schedule_factor(9, 0.0, linear) == pytest.approx(1.0)
    assert schedule_factor(50, 0.5, linear) == pytest.approx(0.55)
    assert schedule_factor(99, 1.0, linear) == pytest.approx(0.1)
    cosine = OptimizerOptions(warmup_steps=0, schedule="cosine")
    assert [round(schedule_factor(5, f, cosine), 6) for f in (0, 0.5, 1)] == [1, 0.5, 0]
    assert schedule_factor(7, 0.9, OptimizerOptions(warmup_steps=0, schedule="constant")) == 1


def test_state_of_another_optimizer_is_refused() -> None:
    first = Optimizer(model(), OptimizerOptions(name="adamw"))
    for p in first.parameters.values():
        p.grad = torch.ones_like(p)
    first.step(1.0)
    state = first.state()
    with pytest.raises(ValueError, match=r"does not fit optimizer\.name"):
        Optimizer(model(), OptimizerOptions(name="muon")).load_state(state)
    with pytest.raises(ValueError, match="which the model does not have"):
        Optimizer(model(), OptimizerOptions(name="adamw")).load_state({"x/step": torch.tensor(1.0)})


def test_average_follows_its_formula() -> None:
    weight = torch.zeros(3)
    average = AveragedWeights({"w": weight}, 0.5)
    expected = torch.zeros(3)
    for i in range(1, 40):
        weight += 1
        average.update()
        decay = min(0.5, (1 + i) / (10 + i))
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(average.values["w"], expected)
    with average.in_place():
        assert torch.equal(weight, average.values["w"])
    assert torch.equal(weight, torch.full((3,), 39.0))


def test_without_average_the_weights_are_their_own() -> None:
    weight = torch.zeros(3)
    average = AveragedWeights({"w": weight}, 0.0)
    average.update()
    with average.in_place():
        weight += 1
    assert torch.equal(weight, torch.ones(3))
