"""check_backend on the package's own kernels, and its refusals."""

from __future__ import annotations

from typing import Any

import pytest

from lumos_engine import ops
from lumos_engine.testing import check_backend
from lumos_engine.testing.oracles import ORACLES


@pytest.mark.parametrize("op", ORACLES)
def test_our_own_kernels_pass(op: str) -> None:
    report = check_backend(op, getattr(ops, op), backward=bool(ORACLES[op].leaves), max_examples=8)
    assert set(report.num_examples) >= {"values", *ORACLES[op].properties}
    assert set(report.num_examples.values()) == {8}
    assert str(report).startswith(op)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("op is 'attention'; allowed: block_attention", {"op": "attention"}),
        ("promises holds 'speed'; allowed for mm_rope: run_to_run", {"promises": ["speed"]}),
        ("waive holds 'causality'; allowed for mm_rope: values", {"waive": ["causality"]}),
        ("backward is True; merge_attention has no gradient", {"op": "merge_attention", "backward": True}),
    ],
)
def test_bad_arguments_are_named(message: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"check_backend: {message}"):
        check_backend(**{"op": "mm_rope", "kernel": ops.mm_rope, **arguments})


def test_an_exception_of_the_kernel_is_shown_with_its_call() -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("no such tile")

    with pytest.raises(
        AssertionError, match="mm_rope: values does not hold\n  RuntimeError: no such tile\n  for\n    x: "
    ):
        check_backend("mm_rope", broken)
