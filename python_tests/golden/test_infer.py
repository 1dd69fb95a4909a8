"""Runs of the original's inference loop, step by step: greedy ones made again, seeded ones with their noise replayed."""

from __future__ import annotations

import pytest
import torch

from lumos_engine import SequenceLayout
from lumos_engine.diffusion.settings import OfficialQuirks
from lumos_engine.testing.tolerances import GOLDEN
from lumos_engine.tubes import TubePattern

from .files import GoldenFile
from .runs import OurRun, RecordedRun

FILES = r"infer_(?!.*_nocache_logits).*\.npz"
KNOWN = 1e30  # confidences of known codes are above


def close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether probabilities agree."""
    return torch.allclose(actual.double(), expected.double(), rtol=0, atol=GOLDEN["probabilities"])


@pytest.mark.parametrize("use_cache", [True, False], ids=["cached", "recomputed"])
@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_every_step(golden: GoldenFile, use_cache: bool, backend: str) -> None:
    recorded = RecordedRun(golden)
    run = recorded.replay(use_cache=use_cache, backend=backend)
    arrays, unknown = recorded.arrays, run.stacked("unknown")
    assert len(run.reports) == len(arrays["sampled"])
    assert torch.equal(unknown, arrays["sel_prob"] < KNOWN)
    assert torch.equal(run.stacked("ids")[unknown], arrays["sampled"].long()[unknown])
    assert close(run.stacked("confidence")[unknown], arrays["sel_prob"][unknown])
    for row, report in enumerate(run.reports):
        assert report.temperature == float(arrays["temperature"][row])
        if report.step == recorded.steps - 1:
            assert not report.masked.any()
            continue
        num_unknown = int(report.unknown.sum())
        assert max(1, min(report.num_masked, num_unknown - 1)) == int(arrays["mask_len"][row])
        assert torch.equal(report.masked[0], arrays["masking"][row])
    assert torch.equal(run.frames, recorded.codes)


def test_calls(golden: GoldenFile) -> None:
    """Ids, query length, cached length and number of masks of every call, both branches packed in one of ours."""
    recorded = RecordedRun(golden)
    run = recorded.replay()
    assert recorded.meta["n_forward"] == 2 * len(recorded.calls)
    assert len(run.calls) == len(recorded.calls) - 1  # nothing reads what the original commits after its last frame
    for ours, branches in zip(run.calls, recorded.calls, strict=False):
        assert torch.equal(ours, torch.cat(branches))
    sizes = recorded.calls_of_steps(recorded.arrays["calls_q_past_nmask"])
    for report, call in zip(run.reports, sizes, strict=True):
        assert report.query_tokens == tuple(call[:, 0].tolist())
        assert report.cached_tokens == tuple(call[:, 1].tolist())
        assert [int(report.unknown.sum())] * 2 == call[:, 2].tolist()


def test_probabilities_of_the_recorded_sequences(golden: GoldenFile) -> None:
    """The model alone, on the sequences that the record's calls add up to: all probabilities that are stored."""
    recorded = RecordedRun(golden)
    logits = guided_logits(recorded)
    p = torch.zeros(*logits.shape[:2], recorded.model.config.vocab_size)
    visual = slice(recorded.vocabulary.visual_begin, recorded.vocabulary.visual_end)
    p[..., visual] = logits.softmax(-1)
    arrays = recorded.arrays
    assert close(p.amax(-1), arrays["pmax"])
    assert close(p[:, : arrays["p_first4"].shape[1]], arrays["p_first4"])
    unknown = arrays["sel_prob"] < KNOWN
    of_sampled = p.gather(-1, arrays["sampled"].long()[..., None])[..., 0]
    assert close(of_sampled[unknown], arrays["sel_prob"][unknown])


def guided_logits(recorded: RecordedRun) -> torch.Tensor:
    """fp32 [steps, codes, visual codes], each step computed from its whole sequences."""
    visual = slice(recorded.vocabulary.visual_begin, recorded.vocabulary.visual_end)
    frame_tokens = recorded.height * (recorded.width + 1) + 4
    history = [branch[:-frame_tokens] for branch in recorded.calls[0]]
    out = []
    for number, call in enumerate(recorded.calls):
        frames = [branch[-frame_tokens:] for branch in call]
        sequences = [torch.cat(parts) for parts in zip(history, frames, strict=True)]
        if number % (recorded.steps + 1) == recorded.steps:
            history = sequences
            continue
        layout = SequenceLayout.from_tokens(
            torch.cat(sequences), recorded.vocabulary, [len(sequence) for sequence in sequences]
        )
        with torch.no_grad():
            logits = recorded.model(torch.cat(sequences), layout)[:, visual]
        latest = recorded.given + number // (recorded.steps + 1)
        rows = (layout.frame_id == latest) & layout.content & ~layout.newline
        cond, uncond = logits[rows].view(2, recorded.num_codes, -1)
        out.append(recorded.meta["cfg"] * (cond - uncond) + uncond)
    return torch.stack(out)


def test_replay_of_what_is_recorded(golden: GoldenFile) -> None:
    """Recorded ids and noise lead to the recorded clip, in a greedy run too."""
    recorded = RecordedRun(golden)
    assert torch.equal(recorded.replay(noise=recorded.recorded_noise()).frames, recorded.codes)


@pytest.mark.parametrize("left_out", ["compounding_temperature", "clean_given_frames", "newlines_in_history"])
def test_each_quirk_acts_where_it_can(golden: GoldenFile, left_out: str) -> None:
    """Without one of the original's quirks the run stays the recorded one exactly where that quirk has nothing to act on."""
    recorded = RecordedRun(golden)
    quirks = OfficialQuirks(**{name: name != left_out for name in vars(OfficialQuirks())})
    acts = {
        "compounding_temperature": recorded.meta["temperature"] > 0,
        "clean_given_frames": recorded.given > 0,
        "newlines_in_history": recorded.meta["frames_generated"] > 1,
    }[left_out]
    assert same_steps(recorded, recorded.replay(quirks=quirks)) != acts


def same_steps(recorded: RecordedRun, run: OurRun) -> bool:
    arrays, unknown = recorded.arrays, run.stacked("unknown")
    return torch.equal(unknown, arrays["sel_prob"] < KNOWN) and close(
        run.stacked("confidence")[unknown], arrays["sel_prob"][unknown]
    )


def test_history_pattern_in_the_calls(golden: GoldenFile) -> None:
    """Frames that the original commits are masked by the pattern of the ratio."""
    recorded = RecordedRun(golden)
    content = recorded.height * (recorded.width + 1)
    ratio = recorded.settings(OfficialQuirks.all()).history_mask_ratio
    pattern = TubePattern.history(content, ratio).masked[0]
    for commit in recorded.calls[recorded.steps :: recorded.steps + 1]:
        for branch in commit:
            assert torch.equal(branch[-1 - content : -1] == recorded.vocabulary.mask, pattern)
