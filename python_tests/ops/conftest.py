"""Fixtures of the operations' tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lumos_engine._C as extension


@pytest.fixture(scope="module", autouse=True)
def _restore_isa() -> Iterator[None]:
    """Tests that go through the instruction sets by themselves leave the last one behind."""
    before = extension.cpu_isa()
    yield
    extension.set_cpu_isa(before)


@pytest.fixture(params=extension.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn."""
    before = extension.cpu_isa()
    extension.set_cpu_isa(request.param)
    yield request.param
    extension.set_cpu_isa(before)
