"""A seeded run of our own generator, written in the format of the recorded runs of the original."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lumos_engine.diffusion.generator import FrameGenerator, StepReport
from lumos_engine.diffusion.noise_source import PhiloxNoise
from lumos_engine.diffusion.settings import OfficialQuirks, SamplingSettings
from lumos_engine.tubes import TubePattern

from .files import SMALL, GoldenFile
from .make import write_golden
from .runs import DEFAULT_MASK_RATIO, RecordedRun
from .test_infer import guided_logits

HEIGHT, WIDTH, STEPS, GUIDANCE = 4, 8, 6, 3.0
CODES, FRAME_TOKENS = HEIGHT * WIDTH, HEIGHT * (WIDTH + 1) + 4
PROMPT, HEADER = [0, 11, 12, 13, SMALL.sep], SMALL.video_header(1, 9)


def record_seeded(
    weights: GoldenFile, name: str, *, num_frames: int, given: int, mask_ratio: float | None
) -> GoldenFile:
    """Sample codes and re-masking noise from a seed, after ``given`` random frames, and record every step."""
    noise = PhiloxNoise([(5, 0)])
    reports, calls, frames = generate(weights, noise, num_frames, given, mask_ratio)
    content = torch.cat((frames + SMALL.visual_begin, torch.full((num_frames, HEIGHT, 1), SMALL.newline)), 2).flatten(1)
    # The original commits its last frame too.
    pattern = TubePattern.history(content.shape[1], mask_ratio or DEFAULT_MASK_RATIO).masked[0]
    last = with_ends(content[-1].masked_fill(pattern, SMALL.mask))
    branches = [row for i, call in enumerate(calls) for row in split(call, len(PROMPT) if i == 0 else 0)] + [last, last]
    unknown = torch.cat([report.unknown for report in reports])
    counts = [max(1, min(report.num_masked, int(report.unknown.sum()) - 1)) for report in reports]
    # The original multiplies its temperature down and never resets it: from the end of the first frame on it is 0.
    temperatures = [math.prod(1 - (earlier + 1) / STEPS for earlier in range(step + 1)) for step in range(STEPS)]
    temperatures += [0.0] * (len(reports) - STEPS)
    confidence = torch.cat([report.confidence for report in reports]).masked_fill(
        ~unknown, torch.finfo(torch.float32).max
    )
    arrays = {
        "sampled": torch.cat([report.ids for report in reports]).int(),
        "sel_prob": confidence.double(),
        "mask_len": torch.tensor(counts, dtype=torch.float64)[:, None],
        "temperature": torch.tensor(temperatures, dtype=torch.float64)[:, None],
        "noise": torch.cat([noise.gumbel(report.frame, report.step, CODES) for report in reports]),
        "masking": torch.cat([report.masked for report in reports]),
        "output_tokens": torch.tensor([*HEADER, *torch.cat([*map(with_ends, content)]), SMALL.video_end]).int(),
        "prompt": torch.tensor([*PROMPT, SMALL.sep]).int(),
        "calls_q_past_nmask": torch.tensor(call_sizes(branches, given)).int(),
        "calls_input_ids": torch.nn.utils.rnn.pad_sequence(branches, batch_first=True, padding_value=-1).int(),
    }
    meta = {
        "steps": STEPS, "cfg": GUIDANCE, "mask_ratio": mask_ratio, "temperature": 1.0, "mode": "seeded",
        "model": weights.name.removeprefix("model_").removesuffix(".weights.safetensors"),
        "n_forward": len(branches), "frames_generated": num_frames - given, "tokens_per_frame": CODES,
    }  # fmt: skip
    unfinished = RecordedRun(write_golden(weights.folder, name, arrays, meta))
    p = torch.zeros(len(reports), CODES, SMALL.visual_end)
    p[..., SMALL.visual_begin :] = guided_logits(unfinished).softmax(-1)
    return write_golden(weights.folder, name, {**arrays, "pmax": p.amax(-1), "p_first4": p[:, :4].clone()}, meta)


def generate(
    weights: GoldenFile, noise: PhiloxNoise, num_frames: int, given: int, mask_ratio: float | None
) -> tuple[list[StepReport], list[Tensor], Tensor]:
    """Reports, ids of the model's calls, codes int64 [frames, height, width]."""
    model, reports, calls = weights.model(), [], []
    model.model.embed_tokens.register_forward_pre_hook(lambda module, x: calls.append(x[0].clone()))
    settings = SamplingSettings(
        steps=STEPS, guidance_scale=GUIDANCE, history_mask_ratio=mask_ratio or DEFAULT_MASK_RATIO, quirks=OfficialQuirks.all()
    )  # fmt: skip
    first = torch.randint(SMALL.visual_size, (1, given, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(9))
    frames = FrameGenerator(model, SMALL, settings).frames(
        [PROMPT],
        HEADER,
        height=HEIGHT,
        width=WIDTH,
        num_frames=num_frames,
        noise=noise,
        given=first,
        callback=reports.append,
    )
    return reports, calls, torch.cat(list(frames))


def with_ends(content: Tensor) -> Tensor:
    header = SMALL.frame_header(HEIGHT, WIDTH)
    return torch.cat((torch.tensor(header), content, torch.tensor([SMALL.image_end])))


def split(call: Tensor, text: int) -> tuple[Tensor, Tensor]:
    """The conditional branch, longer by ``text`` tokens, and the unconditional one."""
    cut = (len(call) + text) // 2
    return call[:cut], call[cut:]


def call_sizes(branches: list[Tensor], given: int) -> list[list[int]]:
    """Tokens, cached tokens and masks of each call; the branches alternate."""
    rows = []
    for number, ids in enumerate(branches):
        prefix = len(HEADER) + (0 if number % 2 else len(PROMPT))
        frame = given + number // (2 * (STEPS + 1))
        cached = 0 if number < 2 else prefix + frame * FRAME_TOKENS
        rows.append([len(ids), cached, int((ids == SMALL.mask).sum())])
    return rows
