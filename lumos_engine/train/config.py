"""Options of a training run: nested dataclasses, read from a YAML file and ``--section.option value`` overrides."""

from __future__ import annotations

import dataclasses
import difflib
import math
import reprlib
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from ..layout import Vocabulary
from ..model import LumosConfig
from ..pipeline_folder import DEFAULTS as GENERATION_DEFAULTS
from ..tubes import MODES

__all__ = [
    "DataOptions",
    "DiffusionOptions",
    "ModelOptions",
    "OptimizerOptions",
    "RunOptions",
    "TrainConfig",
    "load_config",
]


@dataclass(frozen=True)
class ModelOptions:
    """Sizes of the transformer (see :class:`LumosConfig`) and how it starts.

    Attributes:
        vocab_size: None takes the end of the visual ids.
        code_factors: embedding (and head) rows of visual codes are a table plus one vector per digit of the tokenizer's
            scalar quantiser; merged into the table on export.
        init_from: folder of a model whose weights to start from; its sizes must be the ones given here.
    """

    hidden_size: int = 256
    intermediate_size: int = 704
    num_hidden_layers: int = 5
    num_attention_heads: int = 4
    num_key_value_heads: int = 4
    max_position_embeddings: int = 2048
    model_parallel_size: int = 1
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10000.0
    initializer_range: float = 0.02
    swin_norm: bool = False
    tie_word_embeddings: bool = True
    vocab_size: int | None = None
    code_factors: bool = False
    init_from: str | None = None

    def lumos_config(self, vocabulary: Vocabulary) -> LumosConfig:
        names = {f.name for f in dataclasses.fields(LumosConfig)} - {"vocab_size"}
        sizes = {name: getattr(self, name) for name in names}
        return LumosConfig(vocab_size=self.vocab_size or vocabulary.visual_end, **sizes)


@dataclass(frozen=True)
class DataOptions:
    """Where clips come from.

    Attributes:
        dataset: "moving-digits" or a folder of videos and images with captions.
        visual_tokenizer: folder; None is the shipped one.
        text_tokenizer: file; None is the shipped one.
        height, width: px. target_size: of a folder, buckets of that area instead (see :mod:`lumos_engine.data.buckets`).
        num_frames: of a video, 1 + 4 n for a tokenizer of stride 4.
        fps: rate at which a folder's videos are sampled.
        image_fraction: share of images (clips of one frame) among the samples.
        two_digit_share: of moving-digits.
        validation_clips: held-back clips for the validation loss.
    """

    dataset: str = "moving-digits"
    visual_tokenizer: str | None = None
    text_tokenizer: str | None = None
    height: int = 32
    width: int = 32
    target_size: int | None = None
    num_frames: int = 13
    fps: float = 6.0
    image_fraction: float = 0.15
    two_digit_share: float = 0.5
    validation_clips: int = 192


@dataclass(frozen=True)
class DiffusionOptions:
    """AR-DF (arXiv 2507.08801, section 3.3).

    Attributes:
        mask_mode: see :class:`TubePattern`. min_mask_ratio: p = max(cos(pi u / 2), min_mask_ratio).
        mask_newlines: whether row ends are masked like codes, as in the original; generation never masks them.
        text_drop: probability of cutting a sample to start at video_start, for guidance.
        history: what a frame sees of earlier ones: "mask" their masked version, "drop" its unmasked tokens only, "keep"
            clean copies (teacher forcing).
        clean_prefix_probability: probability that 1..T-1 leading frames are unmasked and unlabelled; not with "keep".
    """

    mask_mode: Literal["tube", "random", "diffusion_forcing", "tube_decay"] = "tube"
    min_mask_ratio: float = 0.7
    mask_newlines: bool = True
    text_drop: float = 0.1
    history: Literal["mask", "drop", "keep"] = "mask"
    clean_prefix_probability: float = 0.0


@dataclass(frozen=True)
class OptimizerOptions:
    """Optimiser and schedule.

    Attributes:
        name: "muon" is Muon on the matrices of the layers and AdamW on everything else.
        learning_rate: of AdamW. matrix_learning_rate: of Muon.
        decay_everything: weight decay on norms and biases too, as the original has it.
        schedule: after the warm-up, until the end of the run. final_share: learning rate at the end over the peak.
        clip_norm: largest norm of the gradient. ema: decay of the averaged weights, which validation and export use;
            0 uses the weights themselves.
    """

    name: Literal["adamw", "muon"] = "muon"
    learning_rate: float = 2.5e-3
    matrix_learning_rate: float = 3e-3
    beta1: float = 0.9
    beta2: float = 0.95
    momentum: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.05
    decay_everything: bool = False
    warmup_steps: int = 100
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    final_share: float = 0.0
    clip_norm: float = 1.0
    ema: float = 0.999


@dataclass(frozen=True)
class RunOptions:
    """The run.

    Attributes:
        out: folder for log, checkpoints and exported model.
        steps: optimiser steps. max_minutes: end the run after that time; schedule and end follow whichever of the two
            bounds is nearer. Without it the run is a function of the configuration (on one machine and thread count).
        batch_size: samples of a forward pass. accumulation: forward passes of a step.
        round_tokens: pad each forward pass to a multiple of so many tokens; 1 does not pad.
        threads: of torch; 0 keeps the default.
        compile: torch.compile each layer. gradient_checkpointing: recompute layers in the backward pass.
        checkpoint_steps: 0 is never. checkpoint_minutes: 0 is never. keep_checkpoints: the latest ones.
        validate_steps: 0 is never.
    """

    out: str = "runs/train"
    seed: int = 0
    steps: int = 1000
    max_minutes: float | None = None
    batch_size: int = 24
    accumulation: int = 1
    round_tokens: int = 512
    precision: Literal["bf16", "fp32"] = "bf16"
    threads: int = 0
    compile: bool = False
    gradient_checkpointing: bool = False
    log_steps: int = 10
    validate_steps: int = 100
    checkpoint_steps: int = 0
    checkpoint_minutes: float = 5.0
    keep_checkpoints: int = 3
    tensorboard: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """Sections of the file. ``vocabulary``: fields of :class:`Vocabulary`; ``generation``: defaults that the exported pipeline gets."""

    model: ModelOptions = field(default_factory=ModelOptions)
    data: DataOptions = field(default_factory=DataOptions)
    diffusion: DiffusionOptions = field(default_factory=DiffusionOptions)
    optimizer: OptimizerOptions = field(default_factory=OptimizerOptions)
    train: RunOptions = field(default_factory=RunOptions)
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    generation: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_ranges(self)
        self.model.lumos_config(self.vocabulary)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for YAML and JSON."""
        return {**dataclasses.asdict(self), "vocabulary": self.vocabulary.to_dict()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Raises ValueError for an unknown section or option (naming the nearest known one), TypeError for a value of another type."""
        if not isinstance(values, Mapping):
            raise TypeError(f"a training configuration maps sections to options, got {type(values).__name__}")
        sections = typing.get_type_hints(cls)
        parts: dict[str, Any] = {}
        for section, options in values.items():
            _refuse_unknown("section", section, sections)
            if options is None:
                continue
            if not isinstance(options, Mapping):
                raise TypeError(f"section {section} must map options to values, got {reprlib.repr(options)}")
            parts[section] = _section(section, sections[section], options)
        return cls(**parts)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> TrainConfig:
    """Read a YAML file, then ``--section.option value`` (or ``--section.option=value``) pairs, which win.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not YAML, an unknown section or option (the message names the nearest known one), a value out of range.
        TypeError: a value of the wrong type.
    """
    with open(path, "rb") as file:
        content = file.read(_MAX_FILE_BYTES + 1)
    if len(content) > _MAX_FILE_BYTES:
        raise ValueError(f"{path} has more than {_MAX_FILE_BYTES} bytes, which no training configuration has")
    try:
        values = _parse(content)
    except ValueError as error:
        raise ValueError(f"{path} is not valid YAML: {error}") from None
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ValueError(f"{path} must map sections to options, got {type(values).__name__}")
    values = {name: dict(part) if isinstance(part, dict) else part for name, part in values.items()}
    sections = typing.get_type_hints(TrainConfig)
    for name, text in _pairs(overrides):
        section, _, option = name.partition(".")
        if not option:
            raise ValueError(f"--{name} is not of the form --section.option; {_nearest(name, _all_options())}")
        _refuse_unknown("section", section, sections)
        _refuse_unknown(f"option of {section}", option, _options(section, sections[section]))
        try:
            value = _parse(text)
        except ValueError:
            raise ValueError(f"--{name}: {reprlib.repr(text)} is not a value") from None
        part = values.get(section)
        values[section] = {**(part if isinstance(part, dict) else {}), option: value}
    return TrainConfig.from_dict(values)


_MAX_FILE_BYTES = 256 << 10


class _Loader(yaml.SafeLoader):
    """Plain values only, and each once: aliases make a small file into a value of any size."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError(f"aliases are not read (line {self.peek_event().start_mark.line + 1})")  # type: ignore[no-untyped-call]
        return super().compose_node(parent, index)


def _parse(text: str | bytes) -> Any:
    """Raises ValueError, in one line."""
    try:
        return _Loader(text).get_single_data()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
        # Constructors of tagged values (!!int "", !!timestamp x) raise whatever their code meets.
        raise ValueError(" ".join(str(error).split()) or "a value is malformed") from None


def _pairs(arguments: Sequence[str]) -> list[tuple[str, str]]:
    pairs = []
    rest = list(arguments)
    while rest:
        name = rest.pop(0)
        if not name.startswith("--"):
            raise ValueError(f"unexpected argument {name!r}; options are --section.option value")
        name, equals, value = name[2:].partition("=")
        if not equals:
            if not rest:
                raise ValueError(f"--{name} needs a value")
            value = rest.pop(0)
        pairs.append((name.replace("-", "_"), value))
    return pairs


def _options(section: str, kind: Any) -> list[str]:
    return list(GENERATION_DEFAULTS) if section == "generation" else [f.name for f in dataclasses.fields(kind)]


def _all_options() -> list[str]:
    return [f"{s}.{o}" for s, kind in typing.get_type_hints(TrainConfig).items() for o in _options(s, kind)]


def _section(section: str, kind: Any, options: Mapping[str, Any]) -> Any:
    for option in options:
        _refuse_unknown(f"option of {section}", option, _options(section, kind))
    if section == "vocabulary":
        return Vocabulary.from_dict(options)
    if section == "generation":
        return dict(options)
    hints = typing.get_type_hints(kind)
    return kind(**{name: _typed(f"{section}.{name}", hints[name], value) for name, value in options.items()})


def _typed(name: str, hint: Any, value: Any) -> Any:
    """``value`` as the annotated type. YAML 1.1 reads ``3e-3`` as text, hence text is taken for a number where one is due."""
    if isinstance(hint, types.UnionType):
        kinds = [kind for kind in typing.get_args(hint) if kind is not types.NoneType]
        return None if value is None else _typed(name, kinds[0], value)
    if typing.get_origin(hint) is Literal:
        allowed = typing.get_args(hint)
        if value not in allowed:
            near = difflib.get_close_matches(str(value), allowed, n=1)
            raise ValueError(
                f"{name} must be one of {', '.join(allowed)}, got {reprlib.repr(value)}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return value
    if hint is float and type(value) in (int, str):
        try:
            return float(value)
        except (ValueError, OverflowError):
            pass
    if hint is str and type(value) in (int, float):
        return str(value)
    if type(value) is not hint:
        raise TypeError(f"{name} must be {_TYPE_NAMES[hint]}, got {reprlib.repr(value)}")
    return value


_TYPE_NAMES = {int: "an integer", float: "a number", bool: "true or false", str: "text"}


def _refuse_unknown(what: str, name: Any, known: Any) -> None:
    if name not in known:
        raise ValueError(f"unknown {what}: {reprlib.repr(name)}; {_nearest(str(name)[:80], list(known))}")


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"


_POSITIVE = {
    "data.height", "data.width", "data.num_frames", "data.fps", "data.validation_clips", "optimizer.learning_rate",
    "optimizer.matrix_learning_rate", "optimizer.eps", "optimizer.clip_norm", "train.steps", "train.max_minutes", "train.batch_size",
    "train.round_tokens", "train.accumulation", "train.log_steps", "train.keep_checkpoints",
}  # fmt: skip
_SHARES = {
    "data.image_fraction", "data.two_digit_share", "diffusion.min_mask_ratio", "diffusion.text_drop",
    "diffusion.clean_prefix_probability", "optimizer.beta1", "optimizer.beta2", "optimizer.momentum", "optimizer.final_share",
    "optimizer.ema",
}  # fmt: skip


def _check_ranges(config: TrainConfig) -> None:
    for section in ("data", "diffusion", "optimizer", "train"):
        options = getattr(config, section)
        for f in dataclasses.fields(options):
            name, value = f"{section}.{f.name}", getattr(options, f.name)
            if value is None or isinstance(value, (str, bool)):
                continue
            if not 0 <= value < math.inf or (name in _POSITIVE and not value):
                raise ValueError(f"{name} must be {'positive' if name in _POSITIVE else '0 or more'}, got {value}")
            if name in _SHARES and value > 1:
                raise ValueError(f"{name} must be within [0, 1], got {value}")
    for name in ("beta1", "beta2", "momentum", "ema"):
        if getattr(config.optimizer, name) == 1:
            raise ValueError(f"optimizer.{name} must be below 1")
    diffusion = config.diffusion
    assert diffusion.mask_mode in MODES
    if diffusion.clean_prefix_probability and diffusion.history == "keep":
        raise ValueError(
            "diffusion.clean_prefix_probability must be 0 with history 'keep', where all history is clean already"
        )


def describe_options() -> str:
    """All options with their defaults, one a line."""
    defaults = TrainConfig().to_dict()
    lines = [
        f"  --{section}.{option} ({'unset' if value is None else value})"
        for section, options in {**defaults, "generation": GENERATION_DEFAULTS}.items()
        for option, value in options.items()
    ]
    return "\n".join(lines)
