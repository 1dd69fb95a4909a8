"""Guided logits that the original computed without a cache, for a run that is also recorded with one."""

from __future__ import annotations

import torch

from lumos_engine.testing.tolerances import GOLDEN

from .files import GoldenFile
from .runs import RecordedRun
from .test_infer import guided_logits

FILES = r"infer_.*_nocache_logits\.npz"


def test_logits_and_sequences(golden: GoldenFile) -> None:
    recorded = RecordedRun(GoldenFile(golden.folder, golden.name.replace("_nocache_logits", "")))
    arrays = golden.arrays()
    amplified = 2 * recorded.meta["cfg"] - 1  # errors of both branches, through g * (cond - uncond) + uncond
    torch.testing.assert_close(
        guided_logits(recorded), arrays["cfg_logits_visual"], rtol=0, atol=amplified * GOLDEN["logits"]
    )
    last = recorded.arrays["output_tokens"][:-1]  # without video_end
    clean = torch.cat((torch.tensor(recorded.prompt, dtype=torch.int32), last))
    assert torch.equal(clean, arrays["final_full_sequence"])
    frame_tokens = recorded.height * (recorded.width + 1) + 4
    commits = [call[0][-frame_tokens:] for call in recorded.calls[recorded.steps :: recorded.steps + 1]]
    start = recorded.calls[0][0][:-frame_tokens]
    assert torch.equal(torch.cat([start, *commits]).int(), arrays["final_history_masked_sequence"])


def test_probabilities_of_our_run(golden: GoldenFile) -> None:
    """Cached and recomputed, the codes that we sample have the probabilities of the original's logits."""
    recorded = RecordedRun(GoldenFile(golden.folder, golden.name.replace("_nocache_logits", "")))
    p = golden.arrays()["cfg_logits_visual"].softmax(-1)
    for use_cache in (True, False):
        run = recorded.replay(use_cache=use_cache)
        unknown, ids = run.stacked("unknown"), run.stacked("ids") - recorded.vocabulary.visual_begin
        expected = p.gather(-1, ids.clamp(min=0)[..., None])[..., 0]
        torch.testing.assert_close(
            run.stacked("confidence")[unknown], expected[unknown], rtol=0, atol=GOLDEN["probabilities"]
        )
