"""The one table of tolerances, and the checks that use it.

A result in dtype D is compared with the reference in fp64 on the same inputs. What it may miss by is measured, not
guessed: twice what eager torch in D misses by on these very inputs, plus one unit in the last place of D at the
largest reference value. Eager torch's error is its largest over several orders of its sums: of few elements, one run
may be exact by luck.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

EAGER_FACTOR = 2.0
"""How many times the largest error of eager torch in the same dtype is allowed."""

ULPS = 1.0
"""Units in the last place, of the output dtype at the largest reference value, that are allowed on top."""

ORDERS = range(8)
"""``order`` of the runs of eager torch whose largest error counts: one run's is a matter of luck where elements are few."""

GOLDEN = {
    "rotation": 1e-6,  # rotated queries and keys of unit variance, fp32
    "logits": 2e-5,
    "gradients": 2e-6,
    "probabilities": 2e-6,
}
"""Absolute tolerances against numbers that the original code produced in fp32."""

SAMPLING = {
    "score": 2e-5,  # log of the confidence, the latter at least 1e-20
    "gap": 1e-4,  # of scores that keep their order in fp32
    "threshold": 1e-6,  # cumulative probability at which a uniform picks a code
}
"""Absolute tolerances of ``sample_codes`` against the fp64 softmax of the fp32 logits."""

CLOSED_FORM = {"rtol": 1e-6, "atol": 1e-6}
"""fp32 results of order one against numbers that are known without a sum."""

REORDERED = {"rtol": 1e-5, "atol": 1e-5}
"""fp32 results of order one whose sums were taken in another order, by other matrix products."""

MODEL = {"rtol": 1e-4, "atol": 1e-4}
"""The same through a whole model: logits, losses, norms of gradients."""

BF16_MODEL = 0.02
"""Logits of a model in bf16 against fp32, as a share of the largest."""

FP64 = 1e-12
"""Absolute tolerance of two ways to compute the same in fp64, of values around 1."""


def of_gradient(expected: Tensor) -> dict[str, float]:
    """What the gradient of a model in fp32 may differ by from one whose sums were taken in another order."""
    return {"rtol": MODEL["rtol"], "atol": REORDERED["atol"] * float(expected.abs().max()) + CLOSED_FORM["atol"]}


def ulp(dtype: torch.dtype, magnitude: float) -> float:
    """Distance of neighbouring numbers of ``dtype`` at ``magnitude``."""
    info = torch.finfo(dtype)
    if magnitude == 0.0:
        return info.tiny * info.eps
    return info.eps * 2.0 ** math.floor(math.log2(max(magnitude, info.tiny)))


def error_bound(exact: Tensor, eager: Tensor | Sequence[Tensor], dtype: torch.dtype) -> float:
    """Largest absolute error allowed to a result of ``dtype``, given the fp64 reference and eager torch's result.

    ``eager``: several results are eager torch's of the same call with sums in other orders, ``ORDERS``; the largest
    error of all counts.
    """
    finite = exact.isfinite()
    reference = exact.double()[finite]
    if not reference.numel():
        return 0.0
    runs = (eager,) if isinstance(eager, Tensor) else eager
    largest = max(float((run.double()[finite] - reference).abs().max()) for run in runs)
    return EAGER_FACTOR * largest + ULPS * ulp(dtype, float(reference.abs().max()))


def assert_within_bound(actual: Tensor, exact: Tensor, eager: Tensor | Sequence[Tensor], name: str = "result") -> None:
    """Fail unless ``actual`` misses ``exact`` by at most ``error_bound``, and is infinite or NaN exactly where it is.

    Args:
        actual: result of the backend under test. exact: the reference in fp64. eager: eager torch in the dtype of
            ``actual``, one run or several.
        name: named in the message.
    """
    assert_within(actual, exact, error_bound(exact, eager, actual.dtype), name)


def assert_within(actual: Tensor, exact: Tensor, bound: float, name: str = "result") -> None:
    """Fail unless ``actual`` misses ``exact`` by at most ``bound``, and is infinite or NaN exactly where it is."""
    assert actual.shape == exact.shape, f"{name} has shape {tuple(actual.shape)}, the reference {tuple(exact.shape)}"
    finite = exact.isfinite()
    same = (actual.double() == exact.double()) | (actual.isnan() & exact.isnan()) | finite
    assert bool(same.all()), f"{name} differs from the reference where that is infinite or NaN"
    error = (actual.double() - exact.double())[finite].abs()
    assert bool((error <= bound).all()), (  # NaN fails here too
        f"{name} misses the fp64 reference by {float(error.max()):.3g} at {tuple(int(i) for i in _worst(actual, exact))}; "
        f"allowed: {bound:.3g}"
    )


def _worst(actual: Tensor, exact: Tensor) -> Tensor:
    error = (actual.double() - exact.double()).abs().nan_to_num(nan=torch.inf)
    error = error.masked_fill(~exact.isfinite(), -1.0)
    return torch.stack(torch.unravel_index(error.argmax(), error.shape)) if error.dim() else error.new_empty(0)


def assert_bitwise_equal(actual: Tensor, expected: Tensor, name: str = "result") -> None:
    """Fail unless the two tensors hold the same bits; NaN equals NaN of the same bits, 0 differs from -0."""
    assert actual.dtype == expected.dtype, f"{name} has dtype {actual.dtype}, expected {expected.dtype}"
    assert actual.shape == expected.shape, f"{name} has shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    bits = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[actual.element_size()]
    different = actual.contiguous().view(bits) != expected.contiguous().view(bits)
    assert not bool(different.any()), f"{name} differs in {int(different.sum())} of {actual.numel()} elements"
