"""Packing, autocast, recomputation, tied heads and bad input of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
import torch._dynamo
from torch import Tensor

from lumos_engine import LumosConfig, LumosModel, PagedKVCache, SequenceLayout, TubePattern, Vocabulary
from lumos_engine.kv_cache import CacheStep
from lumos_engine.testing import tolerances

RandomModel = Callable[[LumosConfig], LumosModel]
BASE = LumosConfig(vocab_size=320, hidden_size=128, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
                   num_key_value_heads=2)  # fmt: skip


def test_packed_sequences_are_independent(
    random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor
) -> None:
    model = random_model(BASE)
    start = int((video_tokens == vocabulary.video_start).nonzero()[0, 0])
    parts = [video_tokens, video_tokens[start:], video_tokens[: start + 3]]
    packed = torch.cat(parts)
    with torch.no_grad():
        together = model(packed, SequenceLayout.from_tokens(packed, vocabulary, lengths=[len(part) for part in parts]))
        alone = [model(part, SequenceLayout.from_tokens(part, vocabulary)) for part in parts]
    torch.testing.assert_close(together, torch.cat(alone), **tolerances.MODEL)


def test_logits_of_chosen_rows_and_columns(
    random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor
) -> None:
    model = random_model(BASE)
    layout = SequenceLayout.from_tokens(video_tokens, vocabulary)
    with torch.no_grad():
        hidden = model.hidden_states(video_tokens, layout)
        part = model.logits(hidden[5:9], columns=slice(192, 320))
        torch.testing.assert_close(part, model(video_tokens, layout)[5:9, 192:320], **tolerances.REORDERED)


@pytest.mark.parametrize("tube", [False, True])
@pytest.mark.parametrize("swin_norm", [False, True])
def test_chosen_rows_are_those_of_the_whole(
    random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor, swin_norm: bool, tube: bool
) -> None:
    model = random_model(dataclasses.replace(BASE, swin_norm=swin_norm))
    layout = SequenceLayout.from_tokens(video_tokens, vocabulary)
    if tube:
        layout = layout.with_tube(TubePattern.sample(2, 36, generator=torch.Generator().manual_seed(0)))
    rows = torch.tensor([60, 3, 3, 41])
    whole = model.hidden_states(video_tokens, layout)
    for model.gradient_checkpointing in (False, True):
        chosen = model.hidden_states(video_tokens, layout, rows=rows)
        torch.testing.assert_close(chosen, whole[rows], **tolerances.REORDERED)
    assert model.hidden_states(video_tokens, layout, rows=rows[:0]).shape == (0, BASE.hidden_size)


def test_tokens_and_logits_keep_their_order_under_a_tube(
    random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor
) -> None:
    layout = SequenceLayout.from_tokens(video_tokens, vocabulary)
    pattern = TubePattern.sample(2, 36, generator=torch.Generator().manual_seed(0))
    results = []
    for kind in (layout.with_tube(pattern), layout.with_hidden(pattern.token_mask(layout, 0))):
        model = random_model(BASE)
        logits = model(video_tokens, kind)
        logits.logsumexp(-1).square().mean().backward()
        results.append([logits.detach(), *(parameter.grad for parameter in model.parameters())])
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, **tolerances.of_gradient(theirs))
    assert not torch.equal(results[0][0], model(video_tokens, layout))


def test_gradient_checkpointing_changes_no_gradient(
    random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor
) -> None:
    layout = SequenceLayout.from_tokens(video_tokens, vocabulary)
    grads = []
    for recompute in (False, True):
        model = random_model(BASE)
        model.gradient_checkpointing = recompute
        model(video_tokens, layout).square().mean().backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # the tracer looks at every input
@pytest.mark.parametrize("autocast", [False, True])
def test_blocks_compile_whole_and_for_every_length(
    random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor, autocast: bool
) -> None:
    """Each block is one graph, and sequences of other lengths do not need another one; results are those of eager mode."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled, eager = random_model(BASE), random_model(BASE)
    for block in compiled.model.layers:
        block.compile(backend="aot_eager", fullgraph=True, dynamic=True)
    for cut in (0, 2, 5):
        tokens = video_tokens[cut:]
        results = []
        for model in (compiled, eager):
            model.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = model(tokens, SequenceLayout.from_tokens(tokens, vocabulary)).logsumexp(-1).mean()
            loss.backward()
            results.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
        for ours, theirs in zip(*results, strict=True):
            torch.testing.assert_close(ours, theirs, **tolerances.of_gradient(theirs))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_bf16_autocast_and_bf16_weights_stay_close(vocabulary: Vocabulary, video_tokens: Tensor) -> None:
    layout = SequenceLayout.from_tokens(video_tokens, vocabulary)
    model = LumosModel(BASE).eval()
    with torch.no_grad():
        exact = model(video_tokens, layout)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast = model(video_tokens, layout)
        half = model.to(torch.bfloat16)(video_tokens, layout)
    assert cast.dtype == half.dtype == torch.float32
    for other in (cast, half):
        assert not torch.equal(other, exact)
        torch.testing.assert_close(other, exact, rtol=0, atol=tolerances.BF16_MODEL * float(exact.abs().max()))


def test_cached_steps_equal_the_whole_forward(
    random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor
) -> None:
    """Prompt and first frame in one call, the frame again alone, then the second: two guidance branches side by side."""
    model = random_model(BASE)
    start = int((video_tokens == vocabulary.video_start).nonzero()[0, 0])
    tokens = torch.cat((video_tokens, video_tokens[start:]))
    layout = SequenceLayout.from_tokens(tokens, vocabulary, lengths=[len(video_tokens), len(video_tokens) - start])
    cache = PagedKVCache(layout, BASE.num_hidden_layers, BASE.num_key_value_heads, BASE.head_dim, page_size=8)
    first = start + 3  # where the first frame begins in the longer sequence; a frame has 40 tokens

    def run(begin: int, end: int) -> tuple[CacheStep, Tensor]:
        """Tokens begin..end of the longer sequence, and those that correspond to them in the shorter one."""
        step = layout.step([0, 1], [begin, max(begin - start, 0)], [end, end - start])
        cache_step = cache.begin(step)
        hidden = model.hidden_states(tokens[step.slots_in_layout], step, cache=cache, cache_step=cache_step)
        torch.testing.assert_close(hidden, whole[step.slots_in_layout], **tolerances.REORDERED)
        return cache_step, hidden

    with torch.no_grad():
        whole = model.hidden_states(tokens, layout)
        cache.commit(run(0, first + 40)[0], end=[first, 3])
        cache.commit(run(first, first + 40)[0])
        cache.commit(run(first + 40, first + 80)[0])
    with pytest.raises(ValueError, match="cache and cache_step must be given together"):
        model.hidden_states(tokens, layout, cache=cache)
    with pytest.raises(ValueError, match="a LayoutStep needs a cache"):
        model.hidden_states(tokens[:3], layout.step([0], [0], [3]))
    step = layout.step([0], [first + 80], [len(video_tokens)])
    again = layout.step([0], [first + 80], [len(video_tokens)])
    with pytest.raises(ValueError, match="begun with another step"):
        model.hidden_states(tokens[step.slots_in_layout], again, cache=cache, cache_step=cache.begin(step))


def test_filling_the_cache_writes_the_keys_of_a_whole_run(
    random_model: RandomModel, vocabulary: Vocabulary, video_tokens: Tensor
) -> None:
    model, layout = random_model(BASE), SequenceLayout.from_tokens(video_tokens, vocabulary)
    step = layout.step([0], [0], [layout.num_tokens])
    caches = [PagedKVCache(layout, BASE.num_hidden_layers, BASE.num_key_value_heads, BASE.head_dim) for _ in range(2)]
    for cache, run in zip(caches, (model.hidden_states, model.fill_cache), strict=True):
        cache_step = cache.begin(step)
        with torch.no_grad():
            run(video_tokens, step, cache=cache, cache_step=cache_step)
        cache.commit(cache_step)
    for layer in range(BASE.num_hidden_layers):
        whole, filled = (cache.read(layer, 0) for cache in caches)
        for name, expected, actual in zip(("keys", "values"), whole, filled, strict=True):
            tolerances.assert_bitwise_equal(actual, expected, f"{name} of layer {layer}")


def test_tied_head_is_one_parameter() -> None:
    model = LumosModel(dataclasses.replace(BASE, tie_word_embeddings=True))
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert "lm_head.weight" not in model.weights()


def test_bad_tokens_are_refused(vocabulary: Vocabulary, video_tokens: Tensor) -> None:
    model, layout = LumosModel(BASE), SequenceLayout.from_tokens(video_tokens, vocabulary)
    with pytest.raises(TypeError, match=r"tokens must be int64, got torch\.int32"):
        model(video_tokens.int(), layout)
    with pytest.raises(ValueError, match=rf"\[{len(video_tokens)}\] for this layout, got \[{len(video_tokens) - 1}\]"):
        model(video_tokens[1:], layout)
    for wrong in (-1, 320):
        tokens = video_tokens.clone()
        tokens[4] = wrong
        with pytest.raises(ValueError, match=rf"0\.\.319, got {wrong}"):
            model(tokens, layout)


@pytest.mark.parametrize(
    ("rows", "error", "text"),
    [
        (torch.tensor([0], dtype=torch.int32), TypeError, r"rows must be int64, got torch\.int32"),
        (torch.tensor([[0]]), ValueError, r"rows must have shape \[n\], got \[1, 1\]"),
        (torch.tensor([0, -1]), ValueError, r"rows must lie in 0\.\.\d+, got -1"),
        (torch.tensor([0, 10**6]), ValueError, r"rows must lie in 0\.\.\d+, got 1000000"),
    ],
)
def test_bad_rows_are_refused(
    vocabulary: Vocabulary, video_tokens: Tensor, rows: Tensor, error: type[Exception], text: str
) -> None:
    layout = SequenceLayout.from_tokens(video_tokens, vocabulary)
    with pytest.raises(error, match=text):
        LumosModel(BASE).hidden_states(video_tokens, layout, rows=rows)
