"""Token-by-token replay of greedy runs of the original inference loop (text to video, image to video)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from lumos_engine import ops
from lumos_engine.diffusion.generator import FrameGenerator, StepReport
from lumos_engine.diffusion.noise_source import PhiloxNoise, ReplayNoise
from lumos_engine.diffusion.settings import OfficialQuirks, SamplingSettings
from lumos_engine.io.checkpoint import load_safetensors
from lumos_engine.layout import Vocabulary
from lumos_engine.model import LumosConfig, LumosModel
from lumos_engine.testing import tolerances

VOCABULARY = Vocabulary(
    bos=0,
    image_start=101,
    image_end=102,
    newline=103,
    video_start=104,
    video_end=105,
    mask=106,
    sep=100,
    size_zero=110,
    number_tokens=82,
    size_unit=32,
    visual_begin=192,
    visual_size=128,
    strides=(4, 8, 8),
)
CONFIG = LumosConfig(
    vocab_size=320,
    hidden_size=128,
    intermediate_size=256,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
)
STEPS, GUIDANCE, NUM_FRAMES, HEIGHT, WIDTH = 6, 3.0, 3, 4, 8
CODES, FRAME_TOKENS = HEIGHT * WIDTH, HEIGHT * (WIDTH + 1) + 4


@pytest.fixture(scope="module")
def model(golden_dir: Path) -> LumosModel:
    return LumosModel.from_weights(CONFIG, load_safetensors(golden_dir / "model_A_hd64_gqa.weights.safetensors")).eval()


@dataclass
class Run:
    """One golden run, its request, and our reports of it."""

    golden: dict[str, np.ndarray]
    reports: list[StepReport]
    frames: Tensor  # codes [frames, CODES]

    def stacked(self, name: str) -> np.ndarray:
        return np.stack([getattr(report, name)[0].numpy() for report in self.reports])


@functools.cache
def replay(
    model: LumosModel,
    golden_dir: Path,
    name: str,
    *,
    use_cache: bool = True,
    quirks: OfficialQuirks | None = None,
    noise_from_record: bool = False,
    backend: str = "cpu",
) -> Run:
    """Run the request of a golden file; each run is made once."""
    with np.load(golden_dir / f"{name}.npz") as file:
        golden = dict(file)
    prompt = golden["prompt"].tolist()
    prompt = prompt[: prompt.index(VOCABULARY.sep) + 1]
    tokens = golden["output_tokens"]
    assert tokens[0] == VOCABULARY.video_start
    given = NUM_FRAMES - len(golden["sampled"]) // STEPS
    codes = (
        torch.from_numpy(tokens[VOCABULARY.is_visual(tokens)].astype(np.int64)).view(1, NUM_FRAMES, HEIGHT, WIDTH)
        - VOCABULARY.visual_begin
    )
    settings = SamplingSettings(
        steps=STEPS,
        guidance_scale=GUIDANCE,
        temperature=0.0,
        sampling_temperature=0.0,
        history="mask",
        history_mask_ratio=0.7,
        quirks=OfficialQuirks.all() if quirks is None else quirks,
    )
    recorded = torch.from_numpy(golden["sampled"].astype(np.int64)).view(1, NUM_FRAMES - given, STEPS, CODES)
    # Greedy sampling asks for nothing random.
    noise = ReplayNoise(sampled_ids=recorded, first_frame=given) if noise_from_record else PhiloxNoise([(0, 0)])
    reports: list[StepReport] = []
    generator = FrameGenerator(model, VOCABULARY, settings, use_cache=use_cache)
    with ops.use_backend(backend):
        made = generator.frames(
            [prompt],
            tokens[:3].tolist(),
            height=HEIGHT,
            width=WIDTH,
            num_frames=NUM_FRAMES,
            noise=noise,
            given=codes[:, :given] if given else None,
            callback=reports.append,
        )
        frames = torch.cat([frame.flatten() for frame in made]).view(NUM_FRAMES, CODES)
    return Run(golden, reports, frames)


RUNS = ["infer_t2v_greedy", "infer_i2v_greedy"]


@pytest.mark.parametrize("name", RUNS)
@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_step_equals_the_original(
    model: LumosModel, golden_dir: Path, name: str, use_cache: bool, backend: str
) -> None:
    run = replay(model, golden_dir, name, use_cache=use_cache, backend=backend)
    golden, unknown = run.golden, run.stacked("unknown")
    assert len(run.reports) == len(golden["sampled"])
    np.testing.assert_array_equal(unknown, golden["sel_prob"] < 1e30)
    np.testing.assert_array_equal(run.stacked("ids")[unknown], golden["sampled"][unknown])
    np.testing.assert_allclose(
        run.stacked("confidence")[unknown], golden["sel_prob"][unknown], rtol=0, atol=tolerances.GOLDEN["probabilities"]
    )
    np.testing.assert_array_equal([report.temperature for report in run.reports], golden["temperature"][:, 0])
    for report, mask_len, masking in zip(run.reports, golden["mask_len"][:, 0], golden["masking"], strict=True):
        if report.step < STEPS - 1:
            assert report.num_masked == mask_len == int(report.masked.sum())
            np.testing.assert_array_equal(report.masked[0].numpy(), masking)
        else:
            assert not report.masked.any()


@pytest.mark.parametrize("name", RUNS)
def test_output_tokens_equal_the_original(model: LumosModel, golden_dir: Path, name: str) -> None:
    run = replay(model, golden_dir, name)
    tokens = run.golden["output_tokens"]
    visual = tokens[VOCABULARY.is_visual(tokens)].reshape(NUM_FRAMES, CODES)
    np.testing.assert_array_equal(run.frames.numpy() + VOCABULARY.visual_begin, visual)


@pytest.mark.parametrize("name", RUNS)
def test_calls_have_the_sizes_of_the_original(model: LumosModel, golden_dir: Path, name: str) -> None:
    """Query length, cached length and masks of every denoising call, for both branches of one packed call."""
    run = replay(model, golden_dir, name)
    # After its steps each frame has one more pair of calls, the commit.
    calls = run.golden["calls_q_past_nmask"].reshape(-1, STEPS + 1, 2, 3)[:, :STEPS].reshape(-1, 2, 3)
    assert len(calls) == len(run.reports)
    for report, call in zip(run.reports, calls, strict=True):
        assert report.query_tokens == tuple(call[:, 0])
        assert report.cached_tokens == tuple(call[:, 1])
        assert int(report.unknown.sum()) == call[0, 2] == call[1, 2]  # given frames run clean: no mask among them


def test_logits_equal_the_full_recomputation(model: LumosModel, golden_dir: Path) -> None:
    """Probabilities of the sampled codes from the original's uncached logits, at every step."""
    with np.load(golden_dir / "infer_t2v_greedy_nocache_logits.npz") as file:
        logits = torch.from_numpy(file["cfg_logits_visual"])
    for use_cache in (True, False):
        run = replay(model, golden_dir, "infer_t2v_greedy", use_cache=use_cache, backend="cpu")
        unknown = torch.from_numpy(run.stacked("unknown"))
        ids = torch.from_numpy(run.stacked("ids")) - VOCABULARY.visual_begin
        expected = logits.softmax(-1).gather(-1, ids.clamp(min=0)[..., None])[..., 0]
        torch.testing.assert_close(
            torch.from_numpy(run.stacked("confidence"))[unknown],
            expected[unknown],
            rtol=0,
            atol=tolerances.GOLDEN["probabilities"],
        )


@pytest.mark.parametrize("name", RUNS)
def test_replay_of_recorded_ids(model: LumosModel, golden_dir: Path, name: str) -> None:
    run = replay(model, golden_dir, name, noise_from_record=True)
    greedy = replay(model, golden_dir, name)
    assert torch.equal(run.frames, greedy.frames)


@pytest.mark.parametrize(("name", "quirks", "differs"), [
    # Nothing is given and T0 is 0: only the quirk of newlines acts.
    ("infer_t2v_greedy", OfficialQuirks(newlines_in_history=True), False),
    ("infer_t2v_greedy", OfficialQuirks(compounding_temperature=True, clean_given_frames=True), True),
    ("infer_i2v_greedy", OfficialQuirks(clean_given_frames=True, newlines_in_history=True), False),
    ("infer_i2v_greedy", OfficialQuirks(newlines_in_history=True), True),
    ("infer_i2v_greedy", OfficialQuirks(clean_given_frames=True), True),
])  # fmt: skip
def test_each_quirk_has_its_own_effect(
    model: LumosModel, golden_dir: Path, name: str, quirks: OfficialQuirks, differs: bool
) -> None:
    run = replay(model, golden_dir, name, quirks=quirks)
    unknown = run.stacked("unknown")
    same = bool((unknown == (run.golden["sel_prob"] < 1e30)).all()) and np.allclose(
        run.stacked("confidence")[unknown],
        run.golden["sel_prob"][unknown],
        rtol=0,
        atol=tolerances.GOLDEN["probabilities"],
    )
    assert same != differs
