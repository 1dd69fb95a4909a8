"""The folder of a model: what is written is read back; what does not fit is named; nothing is half-written."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.utils import parametrize

from lumos_engine import LumosConfig, LumosModel
from lumos_engine.io.checkpoint import CheckpointError, load_safetensors, save_safetensors

CONFIG = LumosConfig(vocab_size=48, hidden_size=64, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
                     num_key_value_heads=1, swin_norm=True)  # fmt: skip
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@pytest.fixture
def saved(tmp_path: Path) -> tuple[LumosModel, Path]:
    torch.manual_seed(0)
    model = LumosModel(CONFIG)
    model.save_pretrained(tmp_path / "m")
    return model, tmp_path / "m"


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    """Replace (or, with None, remove) tensors in the file of weights; __ stands for a dot."""
    tensors = load_safetensors(folder / WEIGHTS)
    for name, value in changes.items():
        tensors.pop(name.replace("__", "."), None)
        if value is not None:
            tensors[name.replace("__", ".")] = value
    save_safetensors(folder / WEIGHTS, tensors)


def assert_same(left: LumosModel, right: LumosModel) -> None:
    assert left.config == right.config
    left_state, right_state = left.state_dict(), right.state_dict()
    assert left_state.keys() == right_state.keys()
    assert all(torch.equal(left_state[name], right_state[name]) for name in left_state)


def test_round_trip(saved: tuple[LumosModel, Path]) -> None:
    model, folder = saved
    loaded = LumosModel.from_pretrained(folder)
    assert_same(loaded, model)
    assert not loaded.training and all(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(os.listdir(folder)) == ["config.json", WEIGHTS]


def test_names_of_the_original(saved: tuple[LumosModel, Path]) -> None:
    attention = [f"self_attn.{kind}_proj.weight" for kind in "qkvo"]
    norms = [f"self_attn.{kind}_norm.{leaf}" for kind in "qk" for leaf in ("weight", "bias")]
    rest = [*(f"mlp.{kind}_proj.weight" for kind in ("gate", "up", "down")), "input_layernorm.weight",
            "post_attention_layernorm.weight"]  # fmt: skip
    layers = [f"model.layers.{i}.{name}" for i in range(2) for name in (*attention, *norms, *rest)]
    names = {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight", *layers}
    assert set(load_safetensors(saved[1] / WEIGHTS)) == names


def test_dtype_is_as_stored_or_as_asked(saved: tuple[LumosModel, Path]) -> None:
    model, folder = saved
    model.save_pretrained(folder, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in LumosModel.from_pretrained(folder).parameters()} == {torch.bfloat16}
    assert {p.dtype for p in LumosModel.from_pretrained(folder, dtype=torch.float32).parameters()} == {torch.float32}
    rewrite(folder, model__norm__weight=torch.ones(64, dtype=torch.float32))
    assert {parameter.dtype for parameter in LumosModel.from_pretrained(folder).parameters()} == {torch.float32}


def test_shards_and_one_file_replace_each_other(saved: tuple[LumosModel, Path]) -> None:
    model, folder = saved
    model.save_pretrained(folder, max_shard_bytes=20_000)
    files = sorted(os.listdir(folder))
    assert WEIGHTS not in files and INDEX in files and len(files) > 4
    index = json.loads((folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == sum(parameter.nbytes for parameter in model.parameters())
    assert_same(LumosModel.from_pretrained(folder), model)
    model.save_pretrained(folder)
    assert INDEX not in os.listdir(folder)
    assert_same(LumosModel.from_pretrained(folder), model)


def test_tied_weights_are_stored_once(tmp_path: Path) -> None:
    model = LumosModel(dataclasses.replace(CONFIG, tie_word_embeddings=True))
    model.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_safetensors(tmp_path / WEIGHTS)
    loaded = LumosModel.from_pretrained(tmp_path)
    assert_same(loaded, model)
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight
    rewrite(tmp_path, lm_head__weight=model.lm_head.weight.detach().clone())
    assert_same(LumosModel.from_pretrained(tmp_path), model)
    rewrite(tmp_path, lm_head__weight=torch.zeros(48, 64))
    with pytest.raises(CheckpointError, match="says that they are tied"):
        LumosModel.from_pretrained(tmp_path)


class Doubled(torch.nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def test_parametrizations_are_merged(saved: tuple[LumosModel, Path]) -> None:
    model, folder = saved
    plain = model.model.embed_tokens.weight.detach().clone()
    parametrize.register_parametrization(model.model.embed_tokens, "weight", Doubled())
    model.save_pretrained(folder)
    assert torch.equal(LumosModel.from_pretrained(folder).model.embed_tokens.weight, 2 * plain)


def test_other_weights_can_be_saved_in_place_of_the_models(saved: tuple[LumosModel, Path]) -> None:
    model, folder = saved
    average = {name: weight / 2 for name, weight in model.weights().items()}
    model.save_pretrained(folder, weights=average)
    assert torch.equal(LumosModel.from_pretrained(folder).lm_head.weight, model.lm_head.weight / 2)


def test_the_vq_model_of_the_original_is_ignored(saved: tuple[LumosModel, Path]) -> None:
    model, folder = saved
    rewrite(folder, model__vqmodel__quant_conv__weight=torch.ones(3))
    assert_same(LumosModel.from_pretrained(folder), model)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, r"'model\.norm\.weight' of shape \[64\] is missing"),
        (
            {"model__norm__weight": torch.ones(65)},
            r"'model\.norm\.weight' has shape \[65\], config\.json asks for \[64\]",
        ),
        ({"model__norm__weight": torch.ones(64, dtype=torch.int32)}, r"'model\.norm\.weight' has dtype torch\.int32"),
        (
            {"model__layers__2__mlp__up_proj__weight": torch.ones(32, 64)},
            r"layers\.2\.mlp.* of shape \[32, 64\] has no place",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(
    saved: tuple[LumosModel, Path], changes: dict[str, Tensor | None], message: str
) -> None:
    rewrite(saved[1], **changes)
    with pytest.raises(CheckpointError, match=rf"model\.safetensors: tensor .*{message}"):
        LumosModel.from_pretrained(saved[1])


def test_a_config_that_does_not_fit_is_named(saved: tuple[LumosModel, Path]) -> None:
    path = saved[1] / "config.json"
    values = json.loads(path.read_text())
    for text, message in (
        (json.dumps({**values, "mm_rope": False}), r"config\.json: mm_rope must be True"),
        (json.dumps({**values, "vocab_size": "48"}), r"config\.json: vocab_size must be int, got '48'"),
        ("[]", r"config\.json: not a JSON object"),
        ("{", r"config\.json: not valid JSON"),
    ):
        path.write_text(text)
        with pytest.raises(CheckpointError, match=message):
            LumosModel.from_pretrained(saved[1])


def test_absent_files_are_file_not_found_errors(saved: tuple[LumosModel, Path], tmp_path: Path) -> None:
    (saved[1] / WEIGHTS).unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        LumosModel.from_pretrained(saved[1])
    with pytest.raises(FileNotFoundError, match=r"config\.json"):
        LumosModel.from_pretrained(tmp_path / "nowhere")


def test_an_index_that_lies_is_refused(saved: tuple[LumosModel, Path]) -> None:
    model, folder = saved
    model.save_pretrained(folder, max_shard_bytes=20_000)
    index = json.loads((folder / INDEX).read_text())
    placed = index["weight_map"]
    first = min(placed.values())
    for weight_map, message in (
        ({**placed, "lm_head.weight": "../model.safetensors"}, "is not a file name"),
        ({**placed, "lm_head.weight": 3}, "is not a file name"),
        ({**placed, "more": first}, "'more' is not in it"),
        (
            {name: file for name, file in placed.items() if "0.input_layernorm" not in name},
            "the index does not place there",
        ),
        ({}, "weight_map"),
        (None, "weight_map"),
    ):
        (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            LumosModel.from_pretrained(folder)
    (folder / INDEX).write_text(json.dumps(index))
    (folder / first).unlink()
    with pytest.raises(FileNotFoundError, match=first):
        LumosModel.from_pretrained(folder)


@pytest.mark.parametrize("successes", [0, 1, 2])
def test_a_full_disk_leaves_the_old_model(
    saved: tuple[LumosModel, Path], monkeypatch: pytest.MonkeyPatch, successes: int
) -> None:
    folder = saved[1]
    before = {name: (folder / name).read_bytes() for name in os.listdir(folder)}
    calls: list[int] = []
    plain = os.open

    def full(path: str, flags: int, *rest: int) -> int:
        if ".tmp" in str(path) and flags & os.O_CREAT:
            calls.append(1)
            if len(calls) > successes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return plain(path, flags, *rest)

    monkeypatch.setattr(os, "open", full)
    other = LumosModel(dataclasses.replace(CONFIG, num_hidden_layers=3))
    with pytest.raises(OSError, match=r"No space left") as caught:
        other.save_pretrained(folder, max_shard_bytes=30_000)
    assert caught.value.errno == errno.ENOSPC and ".tmp" not in str(caught.value.filename)
    assert {name: (folder / name).read_bytes() for name in os.listdir(folder)} == before


def test_loading_makes_no_second_copy(saved: tuple[LumosModel, Path]) -> None:
    """The model holds the very tensors that were read."""
    model, _ = saved
    weights = model.weights()
    loaded = LumosModel.from_weights(model.config, weights)
    assert all(loaded.get_parameter(name).data_ptr() == weight.data_ptr() for name, weight in weights.items())
