"""A recorded run of the original's inference loop, its request, and our run of the same request."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from lumos_engine import LumosModel, SequenceLayout, Vocabulary, ops
from lumos_engine.diffusion.generator import FrameGenerator, StepReport
from lumos_engine.diffusion.noise_source import NoiseSource, PhiloxNoise, ReplayNoise
from lumos_engine.diffusion.settings import OfficialQuirks, SamplingSettings
from lumos_engine.layout import Frame

from .files import GoldenFile

DEFAULT_MASK_RATIO = 0.3  # of the original, where its option is not set


@dataclass(frozen=True)
class OurRun:
    """reports: of every step. calls: int64 ids of every call of the model. frames: codes [frames, height, width]."""

    reports: list[StepReport]
    calls: list[Tensor]
    frames: Tensor

    def stacked(self, name: str) -> Tensor:
        """A field of the reports, [steps, codes]."""
        return torch.stack([getattr(report, name)[0] for report in self.reports])


class RecordedRun:
    """What the file says of one run. Frames that the request gives are part of ``codes`` and count in ``num_frames``."""

    def __init__(self, golden: GoldenFile) -> None:
        self.meta = golden.meta
        self.arrays = golden.arrays()
        self.weights = golden.weights(self.meta["model"])
        self.steps: int = self.meta["steps"]
        tokens = self.arrays["output_tokens"].long()
        layout = SequenceLayout.from_tokens(tokens, self.vocabulary)
        frames = [segment for segment in layout.sequences[0] if isinstance(segment, Frame)]
        self.num_frames, self.height, self.width = len(frames), frames[0].height, frames[0].width
        self.num_codes = self.height * self.width
        self.given = self.num_frames - self.meta["frames_generated"]
        self.header = tokens[:3].tolist()
        self.codes = (tokens[layout.content & ~layout.newline] - self.vocabulary.visual_begin).view(
            self.num_frames, self.height, self.width
        )
        first_call = self.calls[0][0].tolist()
        self.prompt = first_call[: first_call.index(self.vocabulary.video_start)]

    @cached_property
    def vocabulary(self) -> Vocabulary:
        return self.weights.vocabulary

    @cached_property
    def model(self) -> LumosModel:
        return self.weights.model()

    @cached_property
    def calls(self) -> list[tuple[Tensor, Tensor]]:
        """Ids of each call of the conditional and of the unconditional branch."""
        rows = [row[row >= 0] for row in self.arrays["calls_input_ids"].long()]
        return list(zip(rows[::2], rows[1::2], strict=True))

    def calls_of_steps(self, per_call: Tensor) -> Tensor:
        """[calls, n] without the last pair of calls of each frame, which commits it: [steps, 2 branches, n]."""
        pairs = per_call.view(-1, self.steps + 1, 2, per_call.shape[-1])
        return pairs[:, : self.steps].reshape(-1, 2, per_call.shape[-1])

    @property
    def greedy(self) -> bool:
        return self.meta["mode"] == "greedy"

    def settings(self, quirks: OfficialQuirks) -> SamplingSettings:
        ratio = self.meta["mask_ratio"]
        return SamplingSettings(
            steps=self.steps,
            guidance_scale=self.meta["cfg"],
            temperature=self.meta["temperature"],
            sampling_temperature=0.0 if self.greedy else 1.0,
            history="mask",
            history_mask_ratio=DEFAULT_MASK_RATIO if ratio is None else ratio,
            quirks=quirks,
        )

    def recorded_noise(self) -> ReplayNoise:
        shape = (1, -1, self.steps, self.num_codes)
        return ReplayNoise(
            self.arrays["sampled"].long().view(shape), self.arrays["noise"].view(shape), first_frame=self.given
        )

    def replay(
        self,
        *,
        use_cache: bool = True,
        backend: str = "cpu",
        quirks: OfficialQuirks | None = None,
        noise: NoiseSource | None = None,
    ) -> OurRun:
        """Generate. A greedy run takes no noise, another one what is recorded, unless ``noise`` is given."""
        if noise is None:
            noise = PhiloxNoise([(0, 0)]) if self.greedy else self.recorded_noise()
        reports: list[StepReport] = []
        calls: list[Tensor] = []
        hook = self.model.model.embed_tokens.register_forward_pre_hook(lambda module, x: calls.append(x[0].clone()))
        settings = self.settings(OfficialQuirks.all() if quirks is None else quirks)
        with ops.use_backend(backend):
            frames = FrameGenerator(self.model, self.vocabulary, settings, use_cache=use_cache).frames(
                [self.prompt],
                self.header,
                height=self.height,
                width=self.width,
                num_frames=self.num_frames,
                noise=noise,
                given=self.codes[None, : self.given] if self.given else None,
                callback=reports.append,
            )
            codes = torch.cat(list(frames))
        hook.remove()
        return OurRun(reports, calls, codes)
