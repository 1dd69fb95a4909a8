"""What every operation owes the framework. A new operation needs an entry in ``registered.SAMPLES``, nothing else."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode

from lumos_engine import ops
from lumos_engine.testing import backends, strategies, tolerances

from .registered import NO_TENSORS, SAMPLES, Sample, raw_calls, registered_ops

RUNS = [(name, backend) for name, sample in SAMPLES.items() for backend in sample.backends]
every_sample = pytest.mark.parametrize("sample", SAMPLES.values(), ids=SAMPLES)
every_run = pytest.mark.parametrize(
    ("sample", "backend"), [(SAMPLES[name], backend) for name, backend in RUNS], ids=map(", ".join, RUNS)
)


@pytest.fixture
def place(backend: str) -> Iterator[Callable[[Any], Any]]:
    """Moves tensors to the device of ``backend``, on which operations run."""
    with backends.running(backend) as move:
        yield lambda x: move(x) if isinstance(x, Tensor) else x


def tensors_of(result: Any) -> list[Tensor]:
    return [result] if isinstance(result, Tensor) else list(result or ())


def test_every_operation_has_a_sample() -> None:
    called = {call.name for sample in SAMPLES.values() for call in raw_calls(sample, 3)}
    assert called == registered_ops(), "give the operation an entry in registered.SAMPLES"
    functions = {name for name in ops.__all__ if callable(getattr(ops, name))} - {"use_backend"} - NO_TENSORS
    assert functions == {sample.function for sample in SAMPLES.values()}


@every_run
def test_opcheck(sample: Sample, place: Callable[[Any], Any]) -> None:
    for call in raw_calls(sample, 3, place):
        backward = call.name.endswith("_backward")  # not differentiable itself
        arguments = [x.detach() if backward and isinstance(x, Tensor) else x for x in call.arguments]
        torch.library.opcheck(call.function.default, tuple(arguments))


@every_run
def test_the_fake_kernel_agrees_in_shape_dtype_and_strides(sample: Sample, place: Callable[[Any], Any]) -> None:
    for n in (3, 70):
        for call in raw_calls(sample, n, place):
            with torch.no_grad():
                real = tensors_of(call.function(*call.arguments))
                with FakeTensorMode() as mode:
                    arguments = [mode.from_tensor(x) if isinstance(x, Tensor) else x for x in call.arguments]
                    fake = tensors_of(call.function(*arguments))
            for a, b in zip(real, fake, strict=True):
                assert (a.shape, a.dtype, a.stride()) == (b.shape, b.dtype, b.stride()), call.name


def count_graphs(function: Callable[..., Any], calls: list[tuple[Any, ...]]) -> list[int]:
    """How many graphs were compiled after each of the calls."""
    torch.compiler.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    graphs = []
    for arguments in calls:
        compiled(*arguments)
        graphs.append(int(torch._dynamo.utils.counters["stats"]["unique_graphs"]))
    return graphs


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "backend"), [(name, backend) for name, backend in RUNS if SAMPLES[name].traceable])
def test_compiles_whole_and_once_more_for_all_other_layouts(name: str, place: Callable[[Any], Any]) -> None:
    sample = SAMPLES[name]
    calls = [tuple(map(place, sample.arguments(n))) for n in (3, 70, 9, 130)]
    graphs = count_graphs(lambda *x: sample.call(x), calls)
    assert graphs[1] <= 2 and graphs[1] == graphs[-1], f"graphs after each call: {graphs}"


@every_run
@pytest.mark.parametrize("order", strategies.MEMORY_ORDERS)
def test_memory_order_changes_no_bit(sample: Sample, order: str, place: Callable[[Any], Any]) -> None:
    with torch.no_grad():
        expected, actual = (sample.arguments(5) for _ in range(2))
        heads = [i for i, x in enumerate(actual) if isinstance(x, Tensor) and x.is_floating_point() and x.ndim == 3]
        ordered = tuple(strategies.in_order(x, order) if i in heads else x for i, x in enumerate(actual))
        torch.manual_seed(0)
        results = [tensors_of(sample.call(tuple(map(place, x)))) for x in (ordered, expected)]
    if sample.function != "tube_mask":  # its uniforms are drawn
        for a, b in zip(*results, strict=True):
            tolerances.assert_bitwise_equal(a, b)


@every_sample
def test_a_tensor_elsewhere_is_refused_by_name(sample: Sample) -> None:
    arguments = sample.arguments(3)
    for place in range(1, len(arguments)):
        if isinstance(arguments[place], Tensor):
            moved = (*arguments[:place], arguments[place].to("meta"), *arguments[place + 1 :])
            with pytest.raises(ValueError, match=r"^\w+: \w+ is on meta; it must be on cpu"):
                sample.call(moved)


@pytest.mark.parametrize("device", ["cuda", "xpu"])
def test_the_cpu_backend_refuses_another_device(device: str) -> None:
    with FakeTensorMode():
        x = torch.empty(3, 2, 32, device=device)
        positions = torch.empty(3, 3, dtype=torch.int32, device=device)
        with pytest.raises(ValueError, match=f"mm_rope: the cpu backend was given a tensor on {device}"):
            ops.mm_rope(x, positions, backend="cpu")


@pytest.mark.parametrize("name", [name for name, sample in SAMPLES.items() if sample.leaves])
def test_gradients_of_the_reference(name: str) -> None:
    sample = SAMPLES[name]
    arguments = list(sample.arguments(2))
    leaves = [arguments[place].double().requires_grad_() for place in sample.leaves]

    def function(*inputs: Tensor) -> tuple[Tensor, ...]:
        for place, x in zip(sample.leaves, inputs, strict=True):
            arguments[place] = x
        return tuple(x for x in tensors_of(sample.call(tuple(arguments), backend="reference")) if x.requires_grad)

    assert torch.autograd.gradcheck(function, leaves)
