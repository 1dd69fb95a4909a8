"""Shared fixtures and hypothesis profiles of the suite.

Profiles: ``ci`` (default) is a small sample with fixed seeds, ``quick`` the smallest useful one, ``slow`` the long search.
Choose with ``--hypothesis-profile``; ``--slow`` also runs the tests marked ``slow`` and switches to the ``slow`` profile.
Tests with a parameter ``backend`` that is "cuda" are skipped where neither a GPU nor its emulation is at hand.
The environment variable ``LUMOS_TEST_EXTENSION`` names another build of ``lumos_engine._C`` to test, with sanitizers, say.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

import lumos_engine

if path := os.environ.get("LUMOS_TEST_EXTENSION"):  # here and not in a hook: other conftest files import the extension
    _spec = importlib.util.spec_from_file_location("lumos_engine._C", path)
    assert _spec and _spec.loader, f"LUMOS_TEST_EXTENSION={path} is no extension module"
    lumos_engine._C = importlib.util.module_from_spec(_spec)  # type: ignore[attr-defined]
    _spec.loader.exec_module(lumos_engine._C)
    sys.modules[_spec.name] = lumos_engine._C

from lumos_engine.testing import backends

# The tests' tensors are small: torch's threads would spend their time waiting for each other. Tests of threading set their own number.
torch.set_num_threads(1)

_COMMON = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("ci", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("quick", max_examples=5, derandomize=True, **_COMMON)
settings.register_profile("slow", max_examples=300, **_COMMON)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long property searches and the tests marked slow")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--slow"):
        settings.load_profile("slow")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if reason := backends.why_no_cuda():
        for item in items:
            callspec = getattr(item, "callspec", None)
            if callspec and callspec.params.get("backend") == "cuda":
                item.add_marker(pytest.mark.skip(reason=f"cuda: {reason}"))
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Folder of numbers that the original Lumos-1 code produced; ``LUMOS_GOLDEN_DIR`` names it."""
    folder = os.environ.get("LUMOS_GOLDEN_DIR")
    if not folder:
        pytest.skip("LUMOS_GOLDEN_DIR is not set: the golden vectors of the original code are not at hand")
    path = Path(folder)
    if not (path / "manifest.json").is_file():
        pytest.fail(f"LUMOS_GOLDEN_DIR={folder} holds no manifest.json")
    return path
