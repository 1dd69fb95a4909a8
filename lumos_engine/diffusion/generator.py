"""The frame loop of discrete diffusion on ids: a frame appended masked, unmasked in steps, committed to the history."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .. import ops
from ..layout import Vocabulary
from ..tubes import TubePattern
from .canvas import TokenCanvas
from .forward import CachedForward, FrameForward, RecomputedForward
from .noise_source import NoiseSource
from .schedule import TemperatureSchedule, num_masked_tokens
from .settings import SamplingSettings

if TYPE_CHECKING:
    from ..model import LumosModel

LOGITS_BYTES = 64 * 2**20
"""Bound on the logits, in fp32, that exist at a time while a frame is denoised."""


@dataclass(frozen=True)
class StepReport:
    """What one denoising step did; handed to the callback.

    Attributes:
        frame, step: ordinals, given frames and all frames counted.
        num_frames, num_steps: of the whole call.
        query_tokens, cached_tokens: per sequence of the call, conditional ones first: tokens run and tokens found in
            the cache.
        num_masked: codes that the schedule leaves masked after this step, before clamping; 0 in the last step.
        temperature: of the Gumbel noise.
        unknown: bool [samples, codes], masked before the step. The next three are valid there.
        ids: int64 [samples, codes], sampled ids in the vocabulary's numbering.
        confidence: fp32 [samples, codes], probability of the sampled id.
        masked: bool [samples, codes], masked again for the next step.
    """

    frame: int
    step: int
    num_frames: int
    num_steps: int
    query_tokens: tuple[int, ...]
    cached_tokens: tuple[int, ...]
    num_masked: int
    temperature: float
    unknown: Tensor
    ids: Tensor
    confidence: Tensor
    masked: Tensor


StepCallback = Callable[[StepReport], None]


class FrameGenerator:
    """Generates visual codes frame by frame; knows neither text nor pixels.

    Args:
        model: in evaluation mode on the device to use.
        vocabulary: of the model.
        settings: steps, guidance, temperatures, history.
        use_cache: False recomputes the whole sequence in every call (slow; the definition that the cached run must
            equal).
        page_size, num_pages: of the cache; ``num_pages=None`` is just enough.
    """

    def __init__(
        self,
        model: LumosModel,
        vocabulary: Vocabulary,
        settings: SamplingSettings,
        *,
        use_cache: bool = True,
        page_size: int = 64,
        num_pages: int | None = None,
    ) -> None:
        self.model = model
        self.vocabulary = vocabulary
        self.settings = settings
        self.use_cache = use_cache
        self.page_size = page_size
        self.num_pages = num_pages

    def _history_pattern(self, canvas: TokenCanvas) -> Tensor | None:
        if self.settings.history == "keep":
            return None
        masked = (
            TubePattern.history(canvas.content_tokens, self.settings.history_mask_ratio, 1)
            .masked[0]
            .to(canvas.newline.device)
        )
        return masked if self.settings.quirks.newlines_in_history else masked & ~canvas.newline

    def frames(
        self,
        prompts: Sequence[Sequence[int]],
        header: Sequence[int],
        *,
        height: int,
        width: int,
        num_frames: int,
        noise: NoiseSource,
        given: Tensor | None = None,
        callback: StepCallback | None = None,
    ) -> Iterator[Tensor]:
        """Yield each latent frame as it is finished, given ones first.

        Args:
            prompts: ids of each sample up to and including sep.
            header: ``video_start, duration, fps``.
            height, width: latent rows and columns.
            num_frames: latent frames in all, given ones included.
            noise: randomness of the samples.
            given: codes 0 .. visual_size-1 of the first frames, int64 [samples, frames, height, width], or None.
            callback: called after every denoising step.

        Yields:
            int64 [samples, height, width], codes 0 .. visual_size-1.

        Raises:
            ValueError: at once, if there is no prompt, ``given`` does not fit or the sequence is longer than the
                model's context.
            CacheFull: while running, if ``num_pages`` pages do not hold the call.
        """
        if not prompts:
            raise ValueError("prompts must hold at least one sample, got none")
        if given is None:
            given = torch.empty(len(prompts), 0, height, width, dtype=torch.int64)
        if (
            given.dtype != torch.int64
            or given.dim() != 4
            or given.shape[0] != len(prompts)
            or given.shape[2:] != (height, width)
        ):
            raise ValueError(
                f"given must be int64 [{len(prompts)}, frames, {height}, {width}], "
                f"got {given.dtype} {list(given.shape)}"
            )
        if given.shape[1] > num_frames:
            raise ValueError(f"given holds {given.shape[1]} frames, more than num_frames={num_frames}")
        context = self.model.config.max_position_embeddings
        canvas = TokenCanvas(
            prompts,
            header,
            height=height,
            width=width,
            num_frames=num_frames,
            vocabulary=self.vocabulary,
            guided=self.settings.guided,
            window_frames=self.settings.window_frames,
            sink_frames=self.settings.sink_frames,
            device=self.model.lm_head.weight.device,
        )
        longest = max(range(len(prompts)), key=lambda sample: canvas.text_tokens[sample])
        text, total = canvas.text_tokens[longest], canvas.frame_begin(num_frames)[longest]
        if total > context:
            raise ValueError(
                f"sample {longest} needs {total} tokens ({text} of text and header, {total - text} of {num_frames} "
                f"latent frames), the model's context holds {context}: shorten the prompt or the clip"
            )
        return self._frames(canvas, self.vocabulary.visual(given), noise, callback, (height, width))

    @torch.inference_mode()
    def _frames(
        self,
        canvas: TokenCanvas,
        given: Tensor,
        noise: NoiseSource,
        callback: StepCallback | None,
        size: tuple[int, int],
    ) -> Iterator[Tensor]:
        settings, begin = self.settings, self.vocabulary.visual_begin
        first = given.shape[1]
        pattern = self._history_pattern(canvas)
        for frame in range(first):
            canvas.write(frame, given[:, frame].flatten(1).to(canvas.tokens.device))
            if pattern is not None and not settings.quirks.clean_given_frames:
                canvas.hide(frame, pattern)
            yield given[:, frame] - begin
        if first == canvas.num_frames:
            return
        forward = self._forward(canvas, pattern, first)
        for frame in range(first, canvas.num_frames):
            ids = self._denoise(forward, canvas, frame, frame == first, noise, callback)
            if frame + 1 < canvas.num_frames:  # nobody reads the history after the last frame
                if pattern is not None:
                    canvas.hide(frame, pattern)
                forward.commit(frame)
            yield (ids - begin).unflatten(1, size)

    def _forward(self, canvas: TokenCanvas, pattern: Tensor | None, first: int) -> FrameForward:
        dropped = pattern if self.settings.history == "drop" else None
        clean = first if self.settings.quirks.clean_given_frames else 0
        if not self.use_cache:
            return RecomputedForward(self.model, canvas, dropped=dropped, clean_frames=clean)
        return CachedForward(
            self.model,
            canvas,
            dropped=dropped,
            first=first,
            clean_frames=clean,
            page_size=self.page_size,
            num_pages=self.num_pages,
        )

    def _denoise(
        self,
        forward: FrameForward,
        canvas: TokenCanvas,
        frame: int,
        first_generated: bool,
        noise: NoiseSource,
        callback: StepCallback | None,
    ) -> Tensor:
        """Unmask one frame; return its ids int64 [samples, codes] and leave them on the canvas."""
        settings = self.settings
        counts = num_masked_tokens(canvas.codes_per_frame, settings.steps)
        temperatures = TemperatureSchedule(
            settings.temperature, settings.steps, settings.quirks.compounding_temperature
        )
        ids = torch.full(
            (canvas.num_samples, canvas.codes_per_frame),
            self.vocabulary.mask,
            dtype=torch.int64,
            device=canvas.tokens.device,
        )
        masked = torch.ones_like(ids, dtype=torch.bool)
        for step in range(settings.steps):
            last = step == settings.steps - 1
            temperature = temperatures.at(step, first_generated=first_generated)
            unknown = masked
            sampled, confidence, masked = self._unmask(
                forward, ids, unknown, frame, step, counts[step], temperature, noise
            )
            if last:
                masked = torch.zeros_like(masked)
            ids = sampled.masked_fill(masked, self.vocabulary.mask)
            canvas.write(frame, ids)
            if callback is not None:
                callback(
                    StepReport(
                        frame,
                        step,
                        canvas.num_frames,
                        settings.steps,
                        forward.query_tokens,
                        forward.cached_tokens,
                        0 if last else counts[step],
                        temperature,
                        unknown,
                        sampled,
                        confidence,
                        masked,
                    )
                )
            if not bool(masked.any()):  # the last step, or confidences so equal that none lies below the cut-off
                break
        return ids

    def _unmask(
        self,
        forward: FrameForward,
        ids: Tensor,
        unknown: Tensor,
        frame: int,
        step: int,
        num_masked: int,
        temperature: float,
        noise: NoiseSource,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Sample the unknown codes and choose which stay masked: ids, confidence and masked, each [samples, codes]."""
        settings, vocabulary = self.settings, self.vocabulary
        samples, codes = ids.shape
        # Unknown rows only. Ties can leave samples with different numbers of them: known rows fill up.
        rows = torch.argsort(~unknown, dim=1, stable=True)[:, : int(unknown.sum(1).max())]
        known = ~unknown.gather(1, rows)
        replayed = noise.sampled_ids(frame, step, codes)
        random = {}
        if replayed is not None:
            random["sampled_ids"] = replayed.to(rows.device).gather(1, rows) - vocabulary.visual_begin
        elif settings.sampling_temperature > 0:
            random["uniforms"] = noise.uniforms(frame, step, codes).to(rows.device).gather(1, rows)
        hidden = forward.hidden(frame, rows).unflatten(0, (-1, samples))
        sampled, confidence = self._sample(hidden, known, random)
        gumbel = noise.gumbel(frame, step, codes).to(rows.device).gather(1, rows) if temperature > 0 else None
        masked = ops.remask(confidence, known, num_masked=num_masked, temperature=temperature, gumbel=gumbel)
        new_ids = torch.where(known, ids.gather(1, rows), sampled + vocabulary.visual_begin)
        return (
            ids.scatter(1, rows, new_ids),
            torch.zeros_like(ids, dtype=torch.float32).scatter(1, rows, confidence),
            torch.zeros_like(unknown).scatter(1, rows, masked),
        )

    def _sample(self, hidden: Tensor, known: Tensor, random: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Codes and their probabilities from hidden [branches, samples, rows, width]: each [samples, rows]. Logits exist
        for as many rows at a time as LOGITS_BYTES hold."""
        settings, vocabulary = self.settings, self.vocabulary
        branches, samples, rows, _ = hidden.shape
        visual = slice(vocabulary.visual_begin, vocabulary.visual_end)
        portion = max(1, LOGITS_BYTES // (4 * branches * samples * vocabulary.visual_size))
        parts = []
        for begin in range(0, rows, portion):
            part = slice(begin, begin + portion)
            logits = self.model.logits(hidden[:, :, part], visual)
            parts.append(
                ops.sample_codes(
                    logits[0],
                    logits[1] if settings.guided else None,
                    known[:, part],
                    guidance_scale=settings.guidance_scale if settings.guided else 1.0,
                    sampling_temperature=settings.sampling_temperature,
                    **{name: values[:, part] for name, values in random.items()},
                )
            )
        sampled, confidence = (torch.cat(column, 1) for column in zip(*parts, strict=True))
        return sampled, confidence
