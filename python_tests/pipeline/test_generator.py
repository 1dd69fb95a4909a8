"""The frame loop: cache against recomputation, history modes, guidance, independence of the batch, limits."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from lumos_engine.diffusion import generator as generator_module
from lumos_engine.diffusion.canvas import TokenCanvas
from lumos_engine.diffusion.forward import CachedForward, RecomputedForward
from lumos_engine.diffusion.generator import FrameGenerator, StepReport
from lumos_engine.diffusion.noise_source import PhiloxNoise, ReplayNoise
from lumos_engine.diffusion.settings import OfficialQuirks, SamplingSettings
from lumos_engine.kv_cache import CacheFull
from lumos_engine.model import LumosModel
from lumos_engine.testing import tolerances
from lumos_engine.tubes import TubePattern

from .conftest import VISUAL_SIZE, VOCABULARY

HEADER = VOCABULARY.video_header(2, 4)
HEIGHT = WIDTH = 4
CODES, CONTENT, FRAME = 16, 20, 24
PROMPTS = ([0, 50, 51, 52, 3], [0, 60, 3], [0, 70, 71, 72, 73, 74, 75, 3])


def generate(
    model: LumosModel,
    prompts: Sequence[list[int]],
    *,
    num_frames: int = 3,
    keys: Sequence[tuple[int, int]] | None = None,
    given: Tensor | None = None,
    reports: list[StepReport] | None = None,
    use_cache: bool = True,
    page_size: int = 64,
    num_pages: int | None = None,
    **settings: object,
) -> Tensor:
    """Codes [samples, frames, HEIGHT, WIDTH]."""
    chosen = SamplingSettings(
        **{
            "steps": 4,
            "guidance_scale": 2.0,
            "temperature": 1.0,
            "sampling_temperature": 0.8,
            "history": "keep",
            "history_mask_ratio": 0.5,
            **settings,
        }
    )
    generator = FrameGenerator(model, VOCABULARY, chosen, use_cache=use_cache, page_size=page_size, num_pages=num_pages)
    noise = PhiloxNoise(keys or [(0, sample) for sample in range(len(prompts))])
    frames = generator.frames(
        prompts,
        HEADER,
        height=HEIGHT,
        width=WIDTH,
        num_frames=num_frames,
        noise=noise,
        given=given,
        callback=None if reports is None else reports.append,
    )
    return torch.stack([frame.clone() for frame in frames], dim=1)


@pytest.mark.parametrize("given_frames", [0, 2])
@pytest.mark.parametrize("history", ["mask", "drop", "keep"])
@pytest.mark.parametrize("official", [False, True])
def test_cached_equals_recomputed(model: LumosModel, history: str, given_frames: int, official: bool) -> None:
    """Codes and confidences, in every history mode, with and without given frames, for prompts of different lengths."""
    given = (
        torch.randint(VISUAL_SIZE, (3, given_frames, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(3))
        if given_frames
        else None
    )
    options = {
        "history": history,
        "given": given,
        "num_frames": 4,
        "quirks": OfficialQuirks.all() if official else OfficialQuirks(),
    }
    cached, recomputed = [], []
    first = generate(model, PROMPTS, reports=cached, page_size=16, **options)
    second = generate(model, PROMPTS, reports=recomputed, use_cache=False, **options)
    assert torch.equal(first, second)
    for a, b in zip(cached, recomputed, strict=True):
        torch.testing.assert_close(a.confidence, b.confidence, rtol=0, atol=tolerances.REORDERED["atol"])
    if given is not None:
        assert torch.equal(first[:, :2], given)


def test_history_modes_differ_from_one_another(model: LumosModel) -> None:
    """Later frames change with what they see of earlier ones; the first frame, which has no history, does not."""
    made = {history: generate(model, PROMPTS, history=history, num_frames=4) for history in ("mask", "drop", "keep")}
    for a, b in (("mask", "drop"), ("mask", "keep"), ("drop", "keep")):
        assert torch.equal(made[a][:, 0], made[b][:, 0])
        assert not torch.equal(made[a], made[b])


@pytest.mark.parametrize("newlines", [False, True])
def test_masked_history_is_the_pattern(model: LumosModel, newlines: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the model is fed when a frame is committed, token by token."""
    fed: list[Tensor] = []
    original = CachedForward.commit

    def commit(self: CachedForward, frame: int) -> None:
        fed.append(self._canvas.tokens[self._canvas.content_slots(frame)].clone())
        original(self, frame)

    monkeypatch.setattr(CachedForward, "commit", commit)
    codes = generate(model, PROMPTS, history="mask", quirks=OfficialQuirks(newlines_in_history=newlines))
    assert len(fed) == 2  # no work after the last of three frames
    row_end = torch.arange(CONTENT) % (WIDTH + 1) == WIDTH
    pattern = TubePattern.history(CONTENT, 0.5, 1).masked[0]
    pattern = pattern if newlines else pattern & ~row_end
    assert bool((pattern & row_end).any()) == newlines
    for frame, tokens in enumerate(fed):
        clean = torch.full((3, HEIGHT, WIDTH + 1), VOCABULARY.newline)
        clean[:, :, :WIDTH] = codes[:, frame] + VOCABULARY.visual_begin
        expected = clean.view(3, CONTENT).masked_fill(pattern, VOCABULARY.mask)
        assert torch.equal(tokens, expected.repeat(2, 1))  # both branches


def test_drop_keeps_only_visible_slots(model: LumosModel) -> None:
    canvas = TokenCanvas(PROMPTS, HEADER, height=HEIGHT, width=WIDTH, num_frames=3, vocabulary=VOCABULARY, guided=True)
    dropped = TubePattern.history(CONTENT, 0.5, 1).masked[0]
    with torch.inference_mode():
        forward = CachedForward(model, canvas, dropped=dropped, first=0, clean_frames=0, page_size=16, num_pages=None)
        for frame in range(2):
            forward.hidden(frame)
            forward.commit(frame)
        for sequence, text in enumerate(canvas.text_tokens):
            assert forward.cache.committed(sequence) == text + 2 * FRAME
            assert forward.cache.read(0, sequence)[0].shape[0] == text + 2 * (FRAME - int(dropped.sum()))


def test_given_frames_are_history_like_any_other_unless_kept_clean(model: LumosModel) -> None:
    """One frame after two given ones: what it sees of them is told apart by the confidences of its first step."""
    given = torch.randint(VISUAL_SIZE, (3, 2, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(3))

    def confidence(history: str, clean: bool) -> Tensor:
        reports: list[StepReport] = []
        generate(
            model,
            PROMPTS,
            given=given,
            history=history,
            quirks=OfficialQuirks(clean_given_frames=clean),
            reports=reports,
        )
        return reports[0].confidence

    keep = confidence("keep", False)
    torch.testing.assert_close(confidence("mask", True), keep, rtol=0, atol=tolerances.REORDERED["atol"])
    torch.testing.assert_close(confidence("drop", True), keep, rtol=0, atol=tolerances.REORDERED["atol"])
    masked, dropped = confidence("mask", False), confidence("drop", False)
    for a, b in ((masked, keep), (dropped, keep), (masked, dropped)):
        assert not torch.allclose(a, b, rtol=0, atol=1e-2)


@pytest.mark.parametrize("compounding", [False, True])
def test_temperature_is_reset_for_each_frame_unless_compounding(model: LumosModel, compounding: bool) -> None:
    given = torch.zeros(3, 1, HEIGHT, WIDTH, dtype=torch.int64)
    reports: list[StepReport] = []
    generate(
        model,
        PROMPTS,
        given=given,
        temperature=2.0,
        quirks=OfficialQuirks(compounding_temperature=compounding),
        reports=reports,
    )
    temperatures = [[report.temperature for report in reports if report.frame == frame] for frame in (1, 2)]
    assert temperatures == ([[1.5, 0.75, 0.1875, 0.0], [0.0] * 4] if compounding else [[1.5, 1.0, 0.5, 0.0]] * 2)


@pytest.mark.parametrize("quirks", [OfficialQuirks(), OfficialQuirks.all()])
def test_replayed_ids_and_noise_decide_everything(model: LumosModel, quirks: OfficialQuirks) -> None:
    """Recorded ids are taken; masked again are the codes with the least log confidence + temperature * recorded noise."""
    steps, record = 5, torch.Generator().manual_seed(8)
    ids = torch.randint(VISUAL_SIZE, (3, 2, steps, CODES), generator=record) + VOCABULARY.visual_begin
    gumbel = -torch.log(-torch.log(torch.rand(3, 2, steps, CODES, generator=record).clamp(min=1e-6)))
    settings = SamplingSettings(steps=steps, guidance_scale=2.0, temperature=3.0, history="mask", quirks=quirks)
    reports: list[StepReport] = []
    frames = FrameGenerator(model, VOCABULARY, settings).frames(
        PROMPTS,
        HEADER,
        height=HEIGHT,
        width=WIDTH,
        num_frames=3,
        given=torch.zeros(3, 1, HEIGHT, WIDTH, dtype=torch.int64),
        noise=ReplayNoise(ids, gumbel, first_frame=1),
        callback=reports.append,
    )
    assert len(list(frames)) == 3
    assert [(report.frame, report.step) for report in reports] == [
        (1 + i // steps, i % steps) for i in range(2 * steps)
    ]
    for report in reports:
        assert torch.equal(report.ids[report.unknown], ids[:, report.frame - 1, report.step][report.unknown])
        if report.step == steps - 1:
            continue
        noise = gumbel[:, report.frame - 1, report.step]
        score = report.confidence.log() + report.temperature * noise
        for sample in range(3):
            unknown = report.unknown[sample].nonzero().flatten().tolist()
            lowest = sorted(unknown, key=lambda code: float(score[sample, code]))[: report.num_masked]
            assert report.masked[sample].nonzero().flatten().tolist() == sorted(lowest)


def test_denoising_leaves_the_history_as_it_was(model: LumosModel) -> None:
    """Keys and values of committed tokens do not change a bit while a frame is written over and over."""
    canvas = TokenCanvas(PROMPTS, HEADER, height=HEIGHT, width=WIDTH, num_frames=3, vocabulary=VOCABULARY, guided=True)
    generator = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        forward = CachedForward(model, canvas, dropped=None, first=0, clean_frames=0, page_size=16, num_pages=None)

        def contents() -> list[Tensor]:
            return [part for layer in range(2) for sequence in range(6) for part in forward.cache.read(layer, sequence)]

        for frame in range(3):
            forward.hidden(frame)
            before = contents()
            assert sum(len(part) for part in before[::2]) == 2 * sum(canvas.frame_begin(frame))
            for _ in range(3):
                canvas.write(
                    frame, torch.randint(VISUAL_SIZE, (3, CODES), generator=generator) + VOCABULARY.visual_begin
                )
                forward.hidden(frame)
            assert all(torch.equal(a, b) for a, b in zip(before, contents(), strict=True))
            if frame < 2:
                forward.commit(frame)


def test_unconditional_branch_is_the_sequence_without_text() -> None:
    canvas = TokenCanvas(PROMPTS, HEADER, height=HEIGHT, width=WIDTH, num_frames=2, vocabulary=VOCABULARY, guided=True)
    assert canvas.text_tokens == [8, 6, 11, 3, 3, 3]
    starts = canvas.layout.cu_seqlens.tolist()
    for sample in range(3):
        conditional = canvas.tokens[starts[sample] : starts[sample + 1]]
        unconditional = canvas.tokens[starts[3 + sample] : starts[4 + sample]]
        assert torch.equal(conditional[len(PROMPTS[sample]) :], unconditional)
    content = canvas.layout.positions[canvas.content_slots(0)[3]]
    assert content[0].tolist() == [6, 6, 6]
    assert content[WIDTH + 1].tolist() == [6, 14, 6]


def test_guidance_of_one_runs_one_branch(model: LumosModel) -> None:
    for scale, sequences in ((None, 3), (1.0, 3), (2.0, 6)):
        reports: list[StepReport] = []
        generate(model, PROMPTS, guidance_scale=scale, reports=reports)
        assert {len(report.query_tokens) for report in reports} == {sequences}
    assert torch.equal(generate(model, PROMPTS, guidance_scale=None), generate(model, PROMPTS, guidance_scale=1.0))
    assert not torch.equal(generate(model, PROMPTS, guidance_scale=4.0), generate(model, PROMPTS, guidance_scale=1.0))


@pytest.mark.parametrize("history", ["mask", "drop", "keep"])
def test_a_sample_does_not_depend_on_its_batch(model: LumosModel, history: str) -> None:
    together = generate(model, PROMPTS, history=history)
    for sample, prompt in enumerate(PROMPTS):
        assert torch.equal(generate(model, [prompt], history=history, keys=[(0, sample)])[0], together[sample])
    reversed_ = generate(model, PROMPTS[::-1], history=history, keys=[(0, 2), (0, 1), (0, 0)])
    assert torch.equal(reversed_.flip(0), together)


def test_seed_and_sample_number_change_the_result(model: LumosModel) -> None:
    base = generate(model, PROMPTS[:1], keys=[(5, 0)])
    assert torch.equal(base, generate(model, PROMPTS[:1], keys=[(5, 0)]))
    assert not torch.equal(base, generate(model, PROMPTS[:1], keys=[(6, 0)]))
    assert not torch.equal(base, generate(model, PROMPTS[:1], keys=[(5, 1)]))


def test_only_unknown_rows_and_visual_columns_are_projected(model: LumosModel, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, ...]] = []
    original = model.logits

    def logits(hidden: Tensor, columns: slice | None = None) -> Tensor:
        result = original(hidden, columns)
        shapes.append(tuple(result.shape))
        return result

    monkeypatch.setattr(model, "logits", logits)
    reports: list[StepReport] = []
    generate(model, PROMPTS, num_frames=1, reports=reports)
    assert shapes == [(2, 3, int(report.unknown[0].sum()), VISUAL_SIZE) for report in reports]
    assert shapes[0][2] == CODES > shapes[1][2]


def test_known_codes_never_change_and_every_code_is_known_in_the_end(model: LumosModel) -> None:
    reports: list[StepReport] = []
    codes = generate(model, PROMPTS, steps=6, reports=reports)
    assert 0 <= int(codes.min()) <= int(codes.max()) < VISUAL_SIZE
    for report in reports:
        fixed = ~report.masked
        final = codes[:, report.frame].flatten(1) + VOCABULARY.visual_begin
        assert torch.equal(report.ids[fixed], final[fixed])
        if report.step == 5:
            assert not report.masked.any()


def test_equal_confidences_finish_early(model: LumosModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """All probabilities equal and no noise: nothing lies below the cut-off, so the frame is done after one step."""
    monkeypatch.setattr(model, "logits", lambda hidden, columns: torch.zeros(*hidden.shape[:-1], VISUAL_SIZE))
    reports: list[StepReport] = []
    codes = generate(model, PROMPTS, temperature=0.0, reports=reports)
    assert [report.step for report in reports] == [0, 0, 0]
    assert codes.shape == (3, 3, HEIGHT, WIDTH)


def test_samples_with_different_numbers_of_unknown_codes(model: LumosModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties that finish one sample early leave the others as they would be alone."""
    original = model.logits

    def logits(hidden: Tensor, columns: slice) -> Tensor:
        result = original(hidden, columns).clone()
        if result.shape[1] == 3:
            result[:, 1] = 0.0
        return result

    alone = [generate(model, [prompt], temperature=0.0, sampling_temperature=0.0) for prompt in PROMPTS]
    monkeypatch.setattr(model, "logits", logits)
    reports: list[StepReport] = []
    together = generate(model, PROMPTS, temperature=0.0, sampling_temperature=0.0, reports=reports)
    assert int(reports[0].masked[1].sum()) == 0 < int(reports[0].masked[0].sum())
    assert torch.equal(together[0], alone[0][0])
    assert torch.equal(together[2], alone[2][0])


def test_one_image_needs_one_frame_and_no_commit(model: LumosModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: object, frame: int) -> None:
        raise AssertionError("the last frame is not committed")

    monkeypatch.setattr(CachedForward, "commit", refuse)
    monkeypatch.setattr(RecomputedForward, "commit", refuse)
    assert generate(model, PROMPTS, num_frames=1).shape == (3, 1, HEIGHT, WIDTH)


def test_all_frames_given_generates_nothing(model: LumosModel) -> None:
    given = torch.zeros(3, 2, HEIGHT, WIDTH, dtype=torch.int64)
    reports: list[StepReport] = []
    assert torch.equal(generate(model, PROMPTS, num_frames=2, given=given, reports=reports), given)
    assert not reports


def test_page_pool_exhausted_says_so(model: LumosModel) -> None:
    with pytest.raises(CacheFull, match="pages"):
        generate(model, PROMPTS, page_size=16, num_pages=10)
    needed = sum(-(-text // 16) + 3 * 2 for text in (8, 6, 11, 3, 3, 3))
    generate(model, PROMPTS, page_size=16, num_pages=needed)


def test_bad_input_is_refused_before_anything_runs(model: LumosModel) -> None:
    def frames(**changes: object) -> None:
        arguments = {
            "prompts": PROMPTS,
            "header": HEADER,
            "height": HEIGHT,
            "width": WIDTH,
            "num_frames": 2,
            "noise": PhiloxNoise([(0, 0)] * 3),
        }
        FrameGenerator(model, VOCABULARY, SamplingSettings()).frames(**{**arguments, **changes})

    frames()
    with pytest.raises(ValueError, match="at least one sample"):
        frames(prompts=[])
    with pytest.raises(
        ValueError, match=r"sample 2 needs 275 tokens \(11 of text and header, 264 of 11 latent frames\).*256"
    ):
        frames(num_frames=11)
    with pytest.raises(ValueError, match="given must be int64"):
        frames(given=torch.zeros(3, 1, HEIGHT, WIDTH))
    with pytest.raises(ValueError, match=r"given must be int64 \[3, frames, 4, 4\]"):
        frames(given=torch.zeros(2, 1, HEIGHT, WIDTH, dtype=torch.int64))
    with pytest.raises(ValueError, match="more than num_frames=2"):
        frames(given=torch.zeros(3, 3, HEIGHT, WIDTH, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"0\.\.23"):
        frames(given=torch.full((3, 1, HEIGHT, WIDTH), VISUAL_SIZE))


@pytest.mark.parametrize(("field", "value", "message"), [
    ("steps", 0, "steps must be an integer of at least 1, got 0"),
    ("steps", 2.5, "steps must be an integer"),
    ("history", "forget", "one of mask, drop, keep, got 'forget'"),
    ("temperature", -1.0, "temperature must be a finite number of at least 0"),
    ("sampling_temperature", float("nan"), "sampling_temperature must be a finite"),
    ("guidance_scale", float("inf"), "guidance_scale must be None or a finite"),
    ("history_mask_ratio", 1.5, "at most 1, got 1.5"),
])  # fmt: skip
def test_settings_name_what_is_wrong(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingSettings(**{"history": "mask", field: value})


def test_portions_of_logits_change_nothing(monkeypatch: pytest.MonkeyPatch, model: LumosModel) -> None:
    """Rows are projected and sampled in portions of LOGITS_BYTES: a few at a time give what all at once give."""
    whole = generate(model, PROMPTS)
    rows: list[int] = []
    project = model.logits

    def spied(hidden: Tensor, columns: slice) -> Tensor:
        rows.append(hidden.shape[2])
        return project(hidden, columns)

    monkeypatch.setattr(model, "logits", spied)
    monkeypatch.setattr(generator_module, "LOGITS_BYTES", 4 * 2 * len(PROMPTS) * VISUAL_SIZE * 5)
    assert torch.equal(generate(model, PROMPTS), whole)
    assert max(rows) == 5
