"""Each test that takes ``golden`` runs on every file that the ``FILES`` of its module match."""

from __future__ import annotations

import pytest

from .files import folder_at_hand, golden_files


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "golden" not in metafunc.fixturenames:
        return
    folder = folder_at_hand()
    if folder is None:
        reason = "LUMOS_GOLDEN_DIR is not set: the golden vectors of the original code are not at hand"
        metafunc.parametrize("golden", [pytest.param(None, marks=pytest.mark.skip(reason=reason))], ids=[""])
    else:
        metafunc.parametrize("golden", golden_files(folder, metafunc.module.FILES), ids=str)
