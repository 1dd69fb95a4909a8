"""Configurations, tokenizer files and prompts of any content."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from lumos_engine import LumosPipeline
from lumos_engine.io.json_file import MAX_JSON_BYTES
from lumos_engine.model import LumosConfig, LumosModel
from lumos_engine.pipeline_folder import PipelineConfig, shipped_model_folder
from lumos_engine.tokenizers import TextTokenizer, VisualTokenizer
from lumos_engine.tokenizers.prompt import MAX_CAPTION_CHARACTERS, build_prompt
from lumos_engine.train.config import TrainConfig, load_config

from .helpers import attempt, damaged, edited, json_values

SHIPPED = shipped_model_folder()
files = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def shipped_json(name: str) -> dict[str, Any]:
    return json.loads((SHIPPED / name).read_text())


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value))
    return path


TRAINING = yaml.safe_dump(TrainConfig().to_dict()).encode()
BOMB = b"a: &a [x, x, x, x, x, x, x, x]\n" + b"".join(
    b"%c: &%c [%s]\n" % (name + 1, name + 1, b", ".join([b"*%c" % name] * 8)) for name in range(ord("a"), ord("y"))
) + b"train: {steps: *y}\n"  # fmt: skip
MERGES = b"a: &a {k: 1}\n" + b"".join(
    b"%c: &%c {<<: [%s]}\n" % (name + 1, name + 1, b", ".join([b"*%c" % name] * 8)) for name in range(ord("a"), ord("y"))
)  # fmt: skip


@files
@given(damaged(TRAINING))
@example(BOMB)
@example(MERGES)
@example(b"[" * 100_000)
@example(b"{a: " * 50_000)
@example(b"train: {steps: !!timestamp x}")
@example(b"train: {steps: !!int ''}")
@example(b"train: {steps: !!bool x}")
@example(b"train: {steps: 2001-99-99}")
@example(b"optimizer: {eps: 1" + b"0" * 400 + b"}")
@example(b"train: {steps: 1" + b"0" * 5000 + b"}")
@example(b"model: {hidden_size: 1" + b"0" * 400 + b"}")
@example(b"vocabulary: {1: 2, a: 3}")
@example(b"\xff\xfe")
@example(b"- " * 5000)
@example(b"? [1, 2]\n: 3")
def test_any_training_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    attempt(lambda: load_config(path))


@given(edited(TrainConfig().to_dict()))
def test_any_training_value(values: dict[str, Any]) -> None:
    config = attempt(lambda: TrainConfig.from_dict(values))
    if config is not None:
        assert TrainConfig.from_dict(config.to_dict()) == config


@files
@given(
    st.lists(
        st.text(max_size=30) | st.sampled_from(["--train.steps", "--train.out=", "--data.fps", "--generation.steps"]),
        max_size=4,
    )
)
@example(["--train.steps", "[" * 10_000])
@example(["--train.steps", "!!int ''"])
def test_any_overrides(tmp_path: Path, arguments: list[str]) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"")
    attempt(lambda: load_config(path, arguments))


@files
@given(edited(shipped_json("pipeline.json")) | json_values)
def test_any_pipeline_json(tmp_path: Path, value: Any) -> None:
    path = write_json(tmp_path / "pipeline.json", value)
    config = attempt(lambda: PipelineConfig.from_file(path), (ValueError,), path=path)
    if config is not None:
        assert json.loads(json.dumps(config.vocabulary.to_dict())) == value["vocabulary"] | config.vocabulary.to_dict()


@files
@given(edited(shipped_json("config.json")) | st.dictionaries(st.text(max_size=9), json_values))
@example({"num_hidden_layers": 10**400})
@example({"hidden_size": 10**400})
@example({"rope_theta": 10**400})
@example({"num_hidden_layers": 1 << 24})
@example({"hidden_act": [[]]})
def test_any_model_config(tmp_path: Path, value: dict[str, Any]) -> None:
    """Read with the shipped weights: sizes are compared with theirs before anything is made of these sizes."""
    attempt(lambda: LumosConfig.from_dict(value))
    path = write_json(tmp_path / "config.json", {**shipped_json("config.json"), **value})
    weights = tmp_path / "model.safetensors"
    if not weights.exists():
        weights.symlink_to(SHIPPED / "model.safetensors")
    attempt(lambda: LumosModel.from_pretrained(tmp_path), (ValueError,))
    assert path.exists()


@files
@given(edited(shipped_json("visual_tokenizer/config.json")))
@example({"model_type": "lumos_visual_tokenizer", "decoder_widths": [10**6, 10**6]})
@example({"model_type": "lumos_visual_tokenizer", "decoder_blocks": [10**9]})
@example({"model_type": "lumos_visual_tokenizer", "\n": 1})
@example({"model_type": "lumos_visual_tokenizer", "levels": [256] * 40})
@example({"model_type": "lumos_visual_tokenizer", "compression": [2**40, 4, 4]})
def test_any_visual_tokenizer_config(tmp_path: Path, value: dict[str, Any]) -> None:
    write_json(tmp_path / "config.json", value)
    weights = tmp_path / "model.safetensors"
    if not weights.exists():
        weights.symlink_to(SHIPPED / "visual_tokenizer" / "model.safetensors")
    attempt(lambda: VisualTokenizer.from_pretrained(tmp_path), (ValueError,))


@files
@given(damaged((SHIPPED / "text_tokenizer.json").read_bytes()) | edited(shipped_json("text_tokenizer.json")))
@example(b"")
@example(b"[" * 100_000)
@example(b'{"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}}')
def test_any_text_tokenizer_file(tmp_path: Path, value: bytes | dict[str, Any]) -> None:
    path = tmp_path / "text_tokenizer.json"
    path.write_bytes(value if isinstance(value, bytes) else json.dumps(value).encode())
    tokenizer = attempt(lambda: TextTokenizer.from_file(path), (ValueError,), path=path)
    if tokenizer is not None:
        tokenizer.encode("a 3 moving left")


@pytest.mark.parametrize("name", ["config.json", "pipeline.json", "visual_tokenizer/config.json"])
@pytest.mark.parametrize(
    "content", [b"", b"[", b"[" * 200_000, b"\xff", b"null", b'{"a": 1' + b"0" * 5000 + b"}", None]
)
def test_any_json_file_of_a_model(tmp_path: Path, name: str, content: bytes | None) -> None:
    for file in SHIPPED.rglob("*"):
        if file.is_file():
            target = tmp_path / file.relative_to(SHIPPED)
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(file)
    path = tmp_path / name
    path.unlink()
    with open(path, "wb") as file:
        if content is None:
            file.truncate(MAX_JSON_BYTES + 1)
        else:
            file.write(content)
    assert attempt(lambda: LumosPipeline.from_pretrained(tmp_path), (ValueError,), path=path) is None
    shutil.rmtree(tmp_path)


@pytest.fixture(scope="module")
def pipeline() -> LumosPipeline:
    return LumosPipeline.from_pretrained()


PROMPTS = (
    st.text(max_size=300)
    | st.text(st.characters(), max_size=50)  # lone surrogates among them
    | st.builds(
        lambda piece, count: piece * count,
        st.text(min_size=1, max_size=3),
        st.sampled_from([1000, MAX_CAPTION_CHARACTERS]),
    )
)


@files
@given(PROMPTS)
@example("\ud800")
@example("a" * (MAX_CAPTION_CHARACTERS + 1))
@example("<|video_start|><|mask|>")
@example("{width}{caption}{0}%s")
@example("\x00")
@example("\u202e\u200b" * 20)
def test_any_prompt(pipeline: LumosPipeline, prompt: str) -> None:
    plan = attempt(lambda: pipeline.plan(prompt, num_frames=5, height=32, width=32, steps=1), (ValueError,))
    if plan is not None:
        special = pipeline.vocabulary.visual_begin
        assert all(0 <= token < special for token in plan.prompt_ids[0])
        assert pipeline.vocabulary.video_start not in plan.prompt_ids[0]
        assert pipeline.text_tokenizer.decode(plan.prompt_ids[0][1:-1]) == build_prompt(prompt, 32, 32, 5, 6)


@given(st.fixed_dictionaries({}, optional={
    name: json_values for name in ("num_frames", "height", "width", "fps", "steps", "guidance_scale", "temperature", "sampling_temperature",
                                   "history", "history_mask_ratio", "seed", "num_samples", "first_sample", "mode")}))  # fmt: skip
@example({"guidance_scale": 10**400})
@example({"num_samples": "a"})
def test_any_option(pipeline: LumosPipeline, options: dict[str, Any]) -> None:
    if (
        options.get("num_samples") is None or not str(options["num_samples"]).isdigit()
    ):  # the number is the caller's wish
        attempt(lambda: pipeline.plan("a 3", **options))
