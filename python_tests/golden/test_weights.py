"""Weights under the original's names, in the shapes that their configuration asks for."""

from __future__ import annotations

from lumos_engine import LumosConfig
from lumos_engine.model.model import meta_model

from .files import GoldenFile

FILES = r"model_.*\.weights\.safetensors"


def test_names_and_shapes(golden: GoldenFile) -> None:
    expected = meta_model(LumosConfig.from_dict(golden.meta["config"])).state_dict()
    assert {name: weight.shape for name, weight in golden.arrays().items()} == {
        name: weight.shape for name, weight in expected.items()
    }
