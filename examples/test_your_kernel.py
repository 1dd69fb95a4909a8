"""Test an attention kernel of your own against ``lumos_engine``: five lines for one that is right, and what a wrong one gets.

Run by ``pytest examples/test_your_kernel.py`` or by ``python examples/test_your_kernel.py``.
"""

from __future__ import annotations

import re
import sys
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from lumos_engine import Frame, SequenceLayout
from lumos_engine.testing import check_backend


def dense_mask(layout: SequenceLayout) -> Tensor:
    """Who sees whom, bool [tokens, tokens]."""
    return torch.block_diag(*(layout.visible(sequence) for sequence in range(layout.num_sequences)))


def masked_sdpa(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float | None) -> tuple[Tensor, None]:
    k, v = (x.masked_fill(~mask.any(0)[:, None, None], 0.0) for x in (k, v))  # 0 times NaN is NaN
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    out = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale, enable_gqa=True)
    return out[0].transpose(0, 1), None  # it does not give lse


def sdpa(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, scale: float | None = None) -> tuple[Tensor, None]:
    return masked_sdpa(q, k, v, dense_mask(layout), scale)


def flex(q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, scale: float | None = None) -> tuple[Tensor, None]:
    mask = dense_mask(layout)
    tokens = layout.num_tokens
    blocks = create_block_mask(lambda b, h, query, key: mask[query, key], None, None, tokens, tokens, device="cpu")
    k, v = (x.masked_fill(~mask.any(0)[:, None, None], 0.0) for x in (k, v))
    q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))
    return flex_attention(q, k, v, block_mask=blocks, scale=scale, enable_gqa=True)[0].transpose(0, 1), None


def peeking(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, scale: float | None = None
) -> tuple[Tensor, None]:
    """Wrong: a frame sees the first token behind it."""
    mask = dense_mask(layout)
    for sequence in range(layout.num_sequences):
        first = int(layout.cu_seqlens[sequence])
        for segment, begin, end in layout.segments(sequence):
            if isinstance(segment, Frame):
                mask[first + begin : first + end, first + end : first + end + 1] = True
    return masked_sdpa(q, k, v, mask, scale)


def short_sighted(
    q: Tensor, k: Tensor, v: Tensor, layout: SequenceLayout, *, scale: float | None = None
) -> tuple[Tensor, None]:
    """Wrong: the last key of the packed sequences is missing."""
    mask = dense_mask(layout)
    mask[:, -1] = False
    return masked_sdpa(q, k, v, mask, scale)


def test_sdpa_with_a_mask_is_right_and_promises_the_same_bits_from_run_to_run() -> None:
    report = check_backend("block_attention", sdpa, promises=["run_to_run"], max_examples=20)
    print(report)
    assert set(report.num_examples.values()) == {20}


def test_sdpa_has_right_gradients_in_bf16() -> None:
    """In fp32 they miss by up to 1.6 times the bound: SDPA keeps nothing but lse, whose rounding grows with the scores."""
    bf16 = (torch.bfloat16,)
    print(check_backend("block_attention", sdpa, backward=True, dtypes=bf16, max_examples=20))


def test_flex_attention_is_right() -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it asks to be compiled, which takes longer than this test
            print(check_backend("block_attention", flex, head_dims=(32,), max_examples=5))
    except (ImportError, NotImplementedError) as reason:
        pytest.skip(f"FlexAttention does not run here: {reason}")


@pytest.mark.parametrize(("kernel", "property_name"), [(peeking, "values"), (short_sighted, "values")])
def test_an_off_by_one_is_found_and_shown_small(kernel: Callable[..., tuple[Tensor, None]], property_name: str) -> None:
    with pytest.raises(AssertionError, match=f"block_attention: {property_name} does not hold") as failure:
        check_backend("block_attention", kernel, max_examples=50)
    message = str(failure.value)
    print(message)
    assert "out misses the fp64 reference by" in message
    (segments,) = re.findall(r"layout: (\[\[.*?\]\])", message)
    assert segments.count("(") <= 8, "the layout that is shown has few segments"


if __name__ == "__main__":
    sys.exit(pytest.main([__file__, "-s", "-q"]))
