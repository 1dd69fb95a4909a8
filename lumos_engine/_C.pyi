"""The compiled extension. Call it through lumos_engine.ops, which checks arguments.

A tensor is ``(data_ptr, dtype code, shape, strides in elements)``; see ``lumos_engine.ops._registry.view``. A device is
``(index of the GPU or -1 for the CPU, CUDA stream, threads of the CPU)``.
"""

Tensor = tuple[int, int, tuple[int, ...], tuple[int, ...]] | None
Device = tuple[int, int, int]

def available_isas() -> list[str]: ...
def cuda_kernels() -> list[str]: ...
def cpu_isa() -> str: ...
def set_cpu_isa(name: str) -> None: ...
def linear_cross_entropy(
    logits: Tensor,
    targets: Tensor,
    column_begin: int,
    is_last: bool,
    loss: Tensor,
    row_max: Tensor,
    row_sum: Tensor,
    device: Device,
) -> None: ...
def linear_cross_entropy_backward(
    grad: Tensor,
    logits: Tensor,
    targets: Tensor,
    column_begin: int,
    row_max: Tensor,
    row_sum: Tensor,
    grad_logits: Tensor,
    device: Device,
) -> None: ...
def merge_attention(
    out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor, out: Tensor, lse: Tensor, device: Device
) -> None: ...
def block_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    intervals: Tensor,
    hidden: Tensor,
    tiles: Tensor,
    row_offsets: Tensor,
    row_runs: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor,
    row_state: Tensor,
    split_tiles: Tensor,
    split_offsets: Tensor,
    split_runs: Tensor,
    merges: Tensor,
    num_partials: int,
    partials: Tensor,
    device: Device,
) -> None: ...
def block_attention_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    row_state: Tensor,
    intervals: Tensor,
    hidden: Tensor,
    tiles: Tensor,
    row_offsets: Tensor,
    row_runs: Tensor,
    col_offsets: Tensor,
    col_runs: Tensor,
    scale: float,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_v: Tensor,
    workspace: Tensor,
    device: Device,
) -> None: ...
def block_attention_backward_workspace(num_query_tokens: int, num_heads: int) -> int: ...
def paged_attention(
    q: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    page_table: Tensor,
    key_tiles: Tensor,
    intervals: Tensor,
    query_tiles: Tensor,
    scale: float,
    out: Tensor,
    lse: Tensor,
    workspace: Tensor,
    split_tiles: Tensor,
    split_keys: Tensor,
    merges: Tensor,
    num_partials: int,
    partials: Tensor,
    device: Device,
) -> None: ...
def key_splits_workspace(num_partials: int, num_heads: int, head_dim: int) -> int: ...
def paged_attention_workspace(num_query_tiles: int, num_key_tiles: int) -> int: ...
def mm_rope(
    x: Tensor, positions: Tensor, inv_freq: Tensor, out: Tensor, inverse: bool, parity: bool, device: Device
) -> None: ...
def paged_write(k: Tensor, v: Tensor, k_pages: Tensor, v_pages: Tensor, slots: Tensor, device: Device) -> None: ...
def qk_norm_mm_rope(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    q_out: Tensor,
    k_out: Tensor,
    eps: float,
    parity: bool,
    device: Device,
) -> None: ...
def qk_norm_mm_rope_backward(
    grad_q_out: Tensor,
    grad_k_out: Tensor,
    q: Tensor,
    k: Tensor,
    q_weight: Tensor,
    k_weight: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    grad_q: Tensor,
    grad_k: Tensor,
    grad_q_weight: Tensor,
    grad_q_bias: Tensor,
    grad_k_weight: Tensor,
    grad_k_bias: Tensor,
    workspace: Tensor,
    eps: float,
    parity: bool,
    device: Device,
) -> None: ...
def qk_norm_mm_rope_backward_workspace_bytes(
    q: Tensor, k: Tensor, q_weight: Tensor, k_weight: Tensor, device: Device
) -> int: ...
def qk_norm_mm_rope_paged_write(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_weight: Tensor,
    q_bias: Tensor,
    k_weight: Tensor,
    k_bias: Tensor,
    positions: Tensor,
    inv_freq: Tensor,
    k_pages: Tensor,
    v_pages: Tensor,
    slots: Tensor,
    q_out: Tensor,
    eps: float,
    parity: bool,
    device: Device,
) -> None: ...
def remask(
    confidence: Tensor,
    known: Tensor,
    num_masked: Tensor,
    num_masked_of_all: int,
    temperature: float,
    gumbel: Tensor,
    masked: Tensor,
    device: Device,
) -> None: ...
def rms_norm(x: Tensor, weight: Tensor, out: Tensor, eps: float, device: Device) -> None: ...
def rms_norm_backward(
    grad_out: Tensor, x: Tensor, weight: Tensor, grad_x: Tensor, grad_weight: Tensor, eps: float, device: Device
) -> None: ...
def sample_codes(
    cond: Tensor,
    uncond: Tensor,
    known: Tensor,
    given: Tensor,
    uniforms: Tensor,
    guidance_scale: float,
    temperature: float,
    codes: Tensor,
    confidence: Tensor,
    device: Device,
) -> None: ...
def swiglu(gate: Tensor, up: Tensor, out: Tensor, device: Device) -> None: ...
def swiglu_backward(
    grad_out: Tensor, gate: Tensor, up: Tensor, out: Tensor, grad_gate: Tensor, grad_up: Tensor, device: Device
) -> None: ...
def transpose(x: Tensor, out: Tensor, device: Device) -> None: ...
def tube_mask(
    tokens: Tensor,
    rank_uniforms: Tensor,
    starts: Tensor,
    spans: Tensor,
    num_masked: Tensor,
    mask_id: int,
    order: Tensor,
    longest_draw: int,
    out: Tensor,
    mask: Tensor,
    device: Device,
) -> None: ...
