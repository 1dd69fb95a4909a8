"""Shared fixtures and hypothesis profiles of the suite.

Profiles: ``ci`` (default) is a small sample with fixed seeds, ``quick`` the smallest useful one, ``slow`` the long search.
Choose with ``--hypothesis-profile``; ``--slow`` also runs the tests marked ``slow`` and switches to the ``slow`` profile.
``--extension`` tests another build of ``lumos_engine._C`` than the one installed, with sanitizers, say.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

# The tests' tensors are small: torch's threads would spend their time waiting for each other. Tests of threading set their own number.
torch.set_num_threads(1)

_COMMON = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("ci", max_examples=20, derandomize=True, **_COMMON)
settings.register_profile("quick", max_examples=5, derandomize=True, **_COMMON)
settings.register_profile("slow", max_examples=300, **_COMMON)
settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long property searches and the tests marked slow")
    parser.addoption("--extension", metavar="FILE", help="the build of lumos_engine._C to test in place of the installed one")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--slow"):
        settings.load_profile("slow")
    if path := config.getoption("--extension"):
        _use_extension(path)


def _use_extension(path: str) -> None:
    """Load ``path`` as ``lumos_engine._C`` before a test imports that."""
    import lumos_engine

    spec = importlib.util.spec_from_file_location("lumos_engine._C", path)
    if spec is None or spec.loader is None:
        raise pytest.UsageError(f"--extension {path} is no extension module")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules[spec.name] = module
    lumos_engine._C = module  # type: ignore[attr-defined]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
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
