"""The folder of a trained model, as :class:`LumosPipeline` reads it: weights, vocabulary, default settings, both tokenizers."""

from __future__ import annotations

from pathlib import Path

import torch

from ..io.atomic import write_json_atomic
from ..model import LumosModel
from ..pipeline_folder import PIPELINE, TEXT_TOKENIZER, VISUAL_TOKENIZER
from ..tokenizers import TextTokenizer, VisualTokenizer
from ..tokenizers.prompt import PROMPT_TEMPLATE
from .config import TrainConfig

__all__ = ["export_model"]


def export_model(
    folder: Path,
    model: LumosModel,
    config: TrainConfig,
    visual_tokenizer: VisualTokenizer,
    text_tokenizer: TextTokenizer,
) -> None:
    """Write ``model``'s present weights (factors merged, bfloat16) and everything beside them. Raises OSError."""
    model.save_pretrained(folder, dtype=torch.bfloat16)
    visual_tokenizer.save_pretrained(folder / VISUAL_TOKENIZER, dtype=torch.bfloat16)
    text_tokenizer.save(folder / TEXT_TOKENIZER)
    data = config.data
    defaults = {"num_frames": data.num_frames, "height": data.height, "width": data.width, "fps": round(data.fps),
                "history": config.diffusion.history, **config.generation}  # fmt: skip
    content = {"vocabulary": config.vocabulary.to_dict(), "defaults": defaults, "prompt_template": PROMPT_TEMPLATE}
    write_json_atomic(folder / PIPELINE, content)
