"""The shipped model generates with every CUDA kernel in its path, token by token as on the CPU."""

from __future__ import annotations

import pytest
import torch

from lumos_engine import LumosPipeline
from lumos_engine.pipeline import shipped_model_folder
from lumos_engine.testing import backends, emulation

KERNELS = {
    "qk_norm_kernel",
    "attention_forward_float_kernel",
    "paged_runs_kernel",
    "sample_codes_kernel",
    "remask_kernel",
}


@pytest.mark.parametrize("backend", ["cuda"])  # skipped where there are no kernels
def test_a_clip_is_that_of_the_cpu(backend: str) -> None:
    if backends.has_gpu():
        pytest.skip("the kernels run on the GPU here, which the machine's counters do not see")
    pipeline = LumosPipeline.from_pretrained(shipped_model_folder())
    expected = pipeline("a 7 moving right", num_frames=5, seed=0)
    with emulation.ptxvm(count_traffic=False) as machine:
        clip = pipeline("a 7 moving right", num_frames=5, seed=0)
        names = " ".join(launch["kernel"] for launch in machine.launches)
    assert {name for name in KERNELS if name in names} == KERNELS
    for a, b in zip(clip.tokens, expected.tokens, strict=True):
        assert torch.equal(torch.as_tensor(a), torch.as_tensor(b))
