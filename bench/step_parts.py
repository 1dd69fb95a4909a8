"""Where the time of a step goes: seconds by part, by torch's profiler."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence

from torch.profiler import ProfilerActivity, profile

__all__ = ["parts"]

_PARTS: Sequence[tuple[str, Sequence[str]]] = (  # the first whose word is in the operation's name takes its time
    ("compiled kernels", ("cpp_fused",)),  # named after all that they hold, so before the others
    ("attention", ("block_attention", "paged_attention", "scaled_dot_product", "flash_attention")),
    ("loss", ("cross_entropy", "log_softmax", "nll_loss")),
    ("sampling", ("sample_codes", "remask", "multinomial", "sort")),
    ("norm and rotation of q and k", ("qk_norm", "mm_rope", "layer_norm")),
    ("optimizer", ("adamw", "Optimizer")),
    ("SwiGLU", ("swiglu",)),
    ("matrix products", ("aten::mm", "aten::addmm", "aten::bmm", "linear", "mkldnn")),
    ("compiled", ("graph_", "Torch-Compiled", "CompiledFunction")),
    ("RMSNorm", ("rms_norm",)),
    ("copies, casts, fills", ("copy_", "aten::cat", "zero_", "fill_", "clone", "index", "embedding")),
    ("elementwise", ("mul", "add", "silu", "sub", "neg", "exp", "softmax", "where", "rsqrt", "mean", "div", "pow")),
)


def parts(step: Callable[[], object]) -> dict[str, float]:
    """Seconds of one step by part, and the slowest operations of "other" by name."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        step()
    seconds: dict[str, float] = defaultdict(float)
    for event in profiler.key_averages():
        name = next((part for part, words in _PARTS if any(word in event.key for word in words)), "other")
        seconds[name] += event.self_cpu_time_total / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))
