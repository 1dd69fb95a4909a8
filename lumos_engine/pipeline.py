"""LumosPipeline: prompts and pictures in, videos out."""

from __future__ import annotations

import reprlib
import secrets
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from .pipeline_folder import DEFAULTS, PIPELINE, TEXT_TOKENIZER, VISUAL_TOKENIZER, PipelineConfig, shipped_model_folder

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from .diffusion.clip_shape import ClipShape
    from .diffusion.generator import FrameGenerator, StepCallback
    from .diffusion.given import Media
    from .diffusion.noise_source import NoiseSource
    from .diffusion.result import GenerationResult
    from .diffusion.settings import OfficialQuirks
    from .layout import Vocabulary
    from .model import LumosModel
    from .tokenizers import TextTokenizer, VisualTokenizer

__all__ = ["GenerationPlan", "LumosPipeline", "shipped_model_folder"]

MODES = ("default", "official")
MAX_SEED = 2**63 - 1


@dataclass(frozen=True)
class GenerationPlan:
    """One checked call: all that the frame loop needs. ``prompts``, ``prompt_ids`` and ``given`` have one entry per
    clip; ``given`` holds codes int64 [clips, latent frames, rows, columns]."""

    generator: FrameGenerator
    prompts: tuple[str, ...]
    prompt_ids: list[list[int]]
    shape: ClipShape
    given: Tensor | None
    noise: NoiseSource
    seed: int
    callback: StepCallback | None

    def latents(self, vocabulary: Vocabulary) -> Iterator[Tensor]:
        """Codes int64 [clips, rows, columns] of each latent frame as it is finished."""
        header = vocabulary.video_header(self.shape.duration, self.shape.header_fps)
        return self.generator.frames(
            self.prompt_ids,
            header,
            height=self.shape.latent_height,
            width=self.shape.latent_width,
            num_frames=self.shape.latent_frames,
            noise=self.noise,
            given=self.given,
            callback=self.callback,
        )


class LumosPipeline:
    """Text to image, text to video, image to video and continuation with one model.

    Args:
        model: :class:`LumosModel` in evaluation mode.
        vocabulary: of the model.
        text_tokenizer, visual_tokenizer: as the model was trained with.
        defaults: default settings of calls; keys of ``pipeline_folder.DEFAULTS``.
        page_size, num_pages: of the KV cache; ``num_pages=None`` takes just enough for each call.

    Raises:
        ValueError: if vocabulary, model and visual tokenizer do not fit each other, or a default is unknown.
    """

    def __init__(
        self,
        model: LumosModel,
        vocabulary: Vocabulary,
        text_tokenizer: TextTokenizer,
        visual_tokenizer: VisualTokenizer,
        defaults: dict[str, Any] | None = None,
        *,
        page_size: int = 64,
        num_pages: int | None = None,
    ) -> None:
        if visual_tokenizer.num_codes != vocabulary.visual_size:
            raise ValueError(
                f"the visual tokenizer has {visual_tokenizer.num_codes} codes, the vocabulary {vocabulary.visual_size}"
            )
        if tuple(visual_tokenizer.compression) != tuple(vocabulary.strides):
            raise ValueError(
                f"the visual tokenizer compresses by {tuple(visual_tokenizer.compression)}, "
                f"the vocabulary's strides are {vocabulary.strides}"
            )
        if model.config.vocab_size < vocabulary.visual_end:
            raise ValueError(
                f"the vocabulary needs {vocabulary.visual_end} ids, the model has {model.config.vocab_size}"
            )
        unknown = sorted(set(defaults or {}) - set(DEFAULTS))
        if unknown:
            raise ValueError(f"unknown default {unknown[0]!r}; known: {', '.join(sorted(DEFAULTS))}")
        self.model = model
        self.vocabulary = vocabulary
        self.text_tokenizer = text_tokenizer
        self.visual_tokenizer = visual_tokenizer
        self.defaults: dict[str, Any] = {**DEFAULTS, **(defaults or {})}
        self.page_size = page_size
        self.num_pages = num_pages

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str = "cpu",
        page_size: int = 64,
        num_pages: int | None = None,
    ) -> LumosPipeline:
        """Load a folder with ``config.json``, weights, ``text_tokenizer.json``, ``visual_tokenizer/`` and
        ``pipeline.json``.

        Args:
            folder: where; None is the model that comes with the package (moving digits).
            dtype: of weights and cache; None is fp32 on the CPU and the stored one elsewhere.
            device: where to run.

        Raises:
            FileNotFoundError: no such folder, or a part of it is missing. ValueError: a part is damaged or does not fit
                the others.
        """
        import torch

        from .model import LumosModel
        from .tokenizers.text import TextTokenizer
        from .tokenizers.visual import VisualTokenizer

        path = shipped_model_folder() if folder is None else Path(folder)
        if not path.is_dir():
            raise FileNotFoundError(
                f"no model folder {path}" + (": this installation carries no model" if folder is None else "")
            )
        for name in (PIPELINE, TEXT_TOKENIZER):
            if not (path / name).is_file():
                raise FileNotFoundError(f"model folder {path} has no {name}")
        config = PipelineConfig.from_file(path / PIPELINE)
        if dtype is None and torch.device(device).type == "cpu":
            dtype = torch.float32
        return cls(
            LumosModel.from_pretrained(path, dtype=dtype, device=device),
            config.vocabulary,
            TextTokenizer.from_file(path / TEXT_TOKENIZER),
            VisualTokenizer.from_pretrained(path / VISUAL_TOKENIZER, device=device),
            config.defaults,
            page_size=page_size,
            num_pages=num_pages,
        )

    def __call__(self, prompt: str | Sequence[str], **options: Any) -> GenerationResult:
        """Generate one clip per prompt (times ``num_samples``); all prompts run in one batch.

        Args:
            prompt: what to show; a list gives one clip each, all of the same size.
            **options: those of :meth:`plan`.

        Returns:
            :class:`GenerationResult` with ``frames`` uint8 [clips, num_frames, height, width, 3].

        Raises:
            See :meth:`plan`; CacheFull if the pipeline's ``num_pages`` do not hold the call.
        """
        import torch

        from .diffusion.result import GenerationResult

        start = time.perf_counter()
        plan = self.plan(prompt, **options)
        prepared = time.perf_counter()
        # Outside inference mode, so that what is returned is an ordinary tensor.
        tokens = torch.stack([codes.clone() for codes in plan.latents(self.vocabulary)], dim=1)
        denoised = time.perf_counter()
        frames = torch.stack([self.visual_tokenizer.decode(clip) for clip in tokens]).cpu().numpy()
        decoded = time.perf_counter()
        timings = {
            "prepare": prepared - start,
            "denoise": denoised - prepared,
            "decode": decoded - denoised,
            "total": decoded - start,
        }
        return GenerationResult(frames, tokens.cpu(), plan.prompts, plan.shape.fps, plan.seed, timings)

    def stream(self, prompt: str | Sequence[str], **options: Any) -> Iterator[np.ndarray]:
        """As a call, but yield frames as they are finished: uint8 [clips, height, width, 3], with the bits that the
        call returns.

        Arguments are checked at once, before the first frame is asked for.
        """
        return self._stream(self.plan(prompt, **options))

    def _stream(self, plan: GenerationPlan) -> Iterator[np.ndarray]:
        import torch

        decoders = [self.visual_tokenizer.decoder_stream() for _ in plan.prompts]
        for codes in plan.latents(self.vocabulary):
            group = torch.stack([decoder.push(one) for decoder, one in zip(decoders, codes, strict=True)], dim=1)
            yield from group.cpu().numpy()

    def plan(
        self,
        prompt: str | Sequence[str],
        *,
        image: Media | Sequence[Media] | None = None,
        video: Media | Sequence[Media] | None = None,
        given_frames: int | None = None,
        num_frames: int | None = None,
        height: int | None = None,
        width: int | None = None,
        fps: int | None = None,
        steps: int | None = None,
        guidance_scale: float | None = None,
        temperature: float | None = None,
        sampling_temperature: float | None = None,
        history: Literal["mask", "drop", "keep"] | None = None,
        history_mask_ratio: float | None = None,
        window_frames: int | None = None,
        sink_frames: int = 0,
        seed: int | None = None,
        num_samples: int = 1,
        first_sample: int = 0,
        mode: Literal["default", "official"] = "default",
        quirks: OfficialQuirks | None = None,
        noise_source: NoiseSource | None = None,
        callback: StepCallback | None = None,
        use_cache: bool = True,
    ) -> GenerationPlan:
        """Check the options of a call and encode what was given. Options left at None take the model's defaults.

        Args:
            prompt: one or several.
            image: the first frame: path, PIL picture or uint8 [H, W] or [H, W, 1 | 3]; one for all prompts or a list of
                one each.
            video: several first frames (1 + stride * n): path, or uint8 [T, H, W] or [T, H, W, 1 | 3]; likewise.
            given_frames: use only the first so many frames of ``video``.
            num_frames: frames of the result, given ones included: 1 + stride * n; 1 makes an image.
            height, width: pixels.
            fps: frames per second that the model is told.
            steps: denoising steps per latent frame.
            guidance_scale: weight of the prompt against the same model without it; 1 runs without guidance, at half the
                work.
            temperature: of the noise that decides which codes are re-masked.
            sampling_temperature: of the softmax that codes are drawn from; 0 takes the most probable.
            history, history_mask_ratio: what later frames see of finished ones, see :class:`SamplingSettings`.
            window_frames, sink_frames: which finished latent frames they see at all: the latest and the first ones; None is
                all. With a window, the memory of the cache does not grow with the clip.
            seed: 0 .. 2^63-1; None draws one, which the result names.
            num_samples: clips per prompt, next to each other in the result.
            first_sample: number of the first clip. Noise depends on (seed, clip number): clip i of a batch is the one
                that its prompt alone gives with ``first_sample=i`` (as far as torch's matrix products give equal
                logits).
            mode: ``official`` turns all quirks of the original's inference on.
            quirks: choose quirks one by one instead.
            noise_source: takes the place of seeded noise.
            callback: called with a :class:`StepReport` after each denoising step.
            use_cache: False recomputes the history at every step.

        Raises:
            TypeError, ValueError: naming the argument, what was given and what is allowed. FileNotFoundError: no such
                image or video.
        """
        from .diffusion.clip_shape import ClipShape
        from .diffusion.generator import FrameGenerator
        from .diffusion.given import read_given
        from .diffusion.noise_source import PhiloxNoise
        from .diffusion.settings import OfficialQuirks, SamplingSettings

        def option(name: str, value: Any) -> Any:
            return self.defaults[name] if value is None else value

        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {reprlib.repr(mode)}")
        prompts = _checked_prompts(prompt)
        for name, number, least in (("num_samples", num_samples, 1), ("first_sample", first_sample, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or not least <= number <= MAX_SEED:
                raise ValueError(f"{name} must be an integer of at least {least}, got {reprlib.repr(number)}")
        seed = secrets.randbelow(2**31) if seed is None else seed
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must be an integer in 0..{MAX_SEED}, got {reprlib.repr(seed)}")
        shape = ClipShape(
            option("num_frames", num_frames),
            option("height", height),
            option("width", width),
            option("fps", fps),
            strides=self.vocabulary.strides,
            size_unit=self.vocabulary.size_unit,
            max_number=self.vocabulary.number_tokens - 1,
        )
        settings = SamplingSettings(
            option("steps", steps),
            option("guidance_scale", guidance_scale),
            option("temperature", temperature),
            option("sampling_temperature", sampling_temperature),
            option("history", history),
            option("history_mask_ratio", history_mask_ratio),
            window_frames,
            sink_frames,
            quirks if quirks is not None else OfficialQuirks.all() if mode == "official" else OfficialQuirks(),
        )
        prompt_ids = [self._encode_prompt(one, shape) for one in prompts]
        given = self._encode_given(read_given(image, video, shape, len(prompts), given_frames))
        repeated = [i for i in range(len(prompts)) for _ in range(num_samples)]
        keys = [(seed, first_sample + clip) for clip in range(len(repeated))]
        return GenerationPlan(
            FrameGenerator(
                self.model,
                self.vocabulary,
                settings,
                use_cache=use_cache,
                page_size=self.page_size,
                num_pages=self.num_pages,
            ),
            tuple(prompts[i] for i in repeated),
            [prompt_ids[i] for i in repeated],
            shape,
            None if given is None else given[repeated],
            PhiloxNoise(keys) if noise_source is None else noise_source,
            seed,
            callback,
        )

    def _encode_prompt(self, prompt: str, shape: ClipShape) -> list[int]:
        from .tokenizers.prompt import prompt_tokens

        header = 3
        frame = 4 + shape.latent_height * (shape.latent_width + 1)
        room = self.model.config.max_position_embeddings - header - frame * shape.latent_frames
        if room < 1:
            raise ValueError(
                f"{shape.latent_frames} latent frames of {frame} tokens do not fit the model's context of "
                f"{self.model.config.max_position_embeddings} tokens: ask for fewer frames or a smaller size"
            )
        return prompt_tokens(
            self.text_tokenizer.encode,
            prompt,
            width=shape.width,
            height=shape.height,
            num_frames=shape.num_frames,
            fps=shape.fps,
            bos=self.vocabulary.bos,
            sep=self.vocabulary.sep,
            max_tokens=room,
        )

    def _encode_given(self, clips: list[np.ndarray] | None) -> Tensor | None:
        """Codes int64 [prompts, latent frames, rows, columns]; one by one, so that none depends on the batch."""
        import torch

        if clips is None:
            return None
        done: dict[int, Tensor] = {}
        for clip in clips:
            if id(clip) not in done:
                done[id(clip)] = self.visual_tokenizer.encode(torch.tensor(clip)).clone()
        return torch.stack([done[id(clip)] for clip in clips])


def _checked_prompts(prompt: str | Sequence[str]) -> tuple[str, ...]:
    prompts = (prompt,) if isinstance(prompt, str) else tuple(prompt)
    if not prompts:
        raise ValueError("prompt must be a text or a list of at least one, got an empty list")
    for number, one in enumerate(prompts):
        if not isinstance(one, str):
            raise TypeError(f"prompt must be a text or a list of texts, got {type(one).__name__} at place {number}")
        if not one.strip():
            raise ValueError(f"prompt must not be empty{f', but number {number} is' if len(prompts) > 1 else ''}")
    return prompts
