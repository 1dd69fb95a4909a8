"""Files and overrides of training configurations."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from lumos_engine.layout import Vocabulary
from lumos_engine.train.config import TrainConfig, describe_options, load_config


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text)
    return path


def test_file_then_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, "train:\n  steps: 7\n  batch_size: 3\noptimizer:\n  learning_rate: 3e-3\n")
    config = load_config(path, ["--train.steps", "9", "--data.image-fraction=0.5", "--train.max_minutes", "1.5"])
    assert (config.train.steps, config.train.batch_size, config.train.max_minutes) == (9, 3, 1.5)
    assert config.optimizer.learning_rate == 3e-3  # YAML 1.1 reads 3e-3 as text
    assert config.data.image_fraction == 0.5


def test_round_trip_through_the_resolved_file(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "vocabulary:\n  visual_size: 240\ngeneration:\n  steps: 16\n"))
    again = load_config(write(tmp_path, yaml.safe_dump(config.to_dict())))
    assert again == config
    assert again.vocabulary == Vocabulary(visual_size=240)


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("trian:\n  steps: 1\n", [], "unknown section: 'trian'; did you mean 'train'"),
        ("train:\n  stepz: 1\n", [], "unknown option of train: 'stepz'; did you mean 'steps'"),
        ("generation:\n  guidance: 1\n", [], "did you mean 'guidance_scale'"),
        ("", ["--optimizer.learning_rat", "1"], "did you mean 'learning_rate'"),
        ("", ["--optimiser.eps", "1"], "did you mean 'optimizer'"),
        ("", ["--steps", "1"], "did you mean 'train.steps'"),
        ("", ["steps=1"], "unexpected argument 'steps=1'"),
        ("", ["--train.steps"], "--train.steps needs a value"),
        ("", ["--optimizer.name", "moun"], "did you mean 'muon'"),
        ("", ["--train.steps", "0"], "train.steps must be positive"),
        ("", ["--optimizer.eps", ".nan"], "optimizer.eps must be positive"),
        ("", ["--diffusion.text_drop", "1.5"], "diffusion.text_drop must be within"),
        ("", ["--optimizer.ema", "1"], "optimizer.ema must be below 1"),
        ("", ["--diffusion.history", "keep", "--diffusion.clean_prefix_probability", "0.5"], "must be 0 with history 'keep'"),
        ("", ["--model.hidden_size", "100"], "head_dim"),
        ("train: [1", [], "is not valid YAML"),
        ("- 1\n", [], "must map sections to options"),
    ],
)  # fmt: skip
def test_mistakes_are_value_errors_that_name_the_remedy(
    tmp_path: Path, text: str, arguments: list[str], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path, text), arguments)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("train.steps", "1.5"),
        ("train.steps", "true"),
        ("train.compile", "1"),
        ("optimizer.eps", "[1]"),
        ("train.out", "true"),
    ],
)
def test_wrong_types(tmp_path: Path, name: str, value: str) -> None:
    with pytest.raises(TypeError, match=name):
        load_config(write(tmp_path, ""), [f"--{name}", value])


def test_absent_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "none.yaml")


def test_python_tags_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is not valid YAML"):
        load_config(write(tmp_path, "train: !!python/object/apply:os.system ['true']\n"))


def test_shipped_config_reads() -> None:
    import lumos_engine

    folder = Path(lumos_engine.__file__).parent / "configs"
    config = load_config(folder / "moving_digits.yaml")
    assert config.diffusion.history == "keep"
    assert config.vocabulary.visual_begin >= config.vocabulary.size_zero + config.vocabulary.number_tokens


def test_description_lists_every_option() -> None:
    text = describe_options()
    for section, options in TrainConfig().to_dict().items():
        assert all(f"--{section}.{option} " in text for option in options)
