"""The folder of a pipeline: a model, its tokenizers, and ``pipeline.json`` with vocabulary and default settings."""

from __future__ import annotations

import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .layout import Vocabulary

TEXT_TOKENIZER = "text_tokenizer.json"
VISUAL_TOKENIZER = "visual_tokenizer"
PIPELINE = "pipeline.json"

# What a pipeline.json may set, with the original's values for what it does not.
DEFAULTS: dict[str, Any] = {
    "num_frames": 25, "height": 256, "width": 448, "fps": 12, "steps": 50, "guidance_scale": 15.0, "temperature": 1.0,
    "sampling_temperature": 1.0, "history": "mask", "history_mask_ratio": 0.7,
}  # fmt: skip


def shipped_model_folder() -> Path:
    """Folder of the model that comes with the package."""
    return Path(__file__).parent / "assets" / "moving_digits"


@dataclass(frozen=True)
class PipelineConfig:
    """Contents of ``pipeline.json``.

    Attributes:
        vocabulary: ids and strides.
        defaults: every key of :data:`DEFAULTS`.
    """

    vocabulary: Vocabulary
    defaults: dict[str, Any]

    @classmethod
    def from_file(cls, path: Path) -> PipelineConfig:
        """Read ``path``.

        Raises:
            FileNotFoundError: no such file. ValueError: not JSON, an unknown key, a value of the wrong type, or a
                prompt template other than the one this package writes prompts with.
        """
        from .io.json_file import read_json_object
        from .layout import Vocabulary
        from .tokenizers.prompt import PROMPT_TEMPLATE

        content = read_json_object(path)
        if not isinstance(content.get("vocabulary"), dict):
            raise ValueError(f"{path} must hold an object with a vocabulary")
        _refuse_unknown(path, "key", content, ("vocabulary", "defaults", "prompt_template"))
        if content.get("prompt_template", PROMPT_TEMPLATE) != PROMPT_TEMPLATE:
            raise ValueError(
                f"{path}: prompt_template differs from the one that prompts are written with: {PROMPT_TEMPLATE!r}"
            )
        defaults = content.get("defaults", {})
        if not isinstance(defaults, dict):
            raise ValueError(f"{path}: defaults must be an object, got {type(defaults).__name__}")
        _refuse_unknown(path, "default", defaults, DEFAULTS)
        for name, value in defaults.items():
            kind = type(DEFAULTS[name])
            if type(value) is not kind and not (kind is float and type(value) is int):
                raise ValueError(f"{path}: default {name} must be {kind.__name__}, got {reprlib.repr(value)}")
        try:
            vocabulary = Vocabulary.from_dict(content["vocabulary"])
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: {error}") from None
        return cls(vocabulary, {**DEFAULTS, **defaults})


def _refuse_unknown(path: Path, what: str, found: dict[str, Any], known: Any) -> None:
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ValueError(f"{path}: unknown {what} {unknown[0]!r}; known: {', '.join(sorted(known))}")
