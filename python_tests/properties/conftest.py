"""Fixtures of the properties."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import lumos_engine._C as extension


@pytest.fixture(params=extension.available_isas())
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """Each instruction set of this machine in turn."""
    before = extension.cpu_isa()
    extension.set_cpu_isa(request.param)
    yield request.param
    extension.set_cpu_isa(before)
