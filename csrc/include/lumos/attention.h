// Attention under a SequenceLayout, over packed or paged keys.
//
//   p[q, :] = softmax of scale <q, k> over the keys k that q sees
//   out[q] = sum_k p[q, k] v[k]
//   lse[q] = log sum_k exp(scale <q, k>)
//
// A query that sees nothing gets out = 0, lse = -inf and gradients 0. Keys that a query does not see have no influence
// on it, even where k or v holds NaN. Heads are grouped: query head h reads key head h / (num_heads / num_kv_heads).
//
// Queries and keys are cut into tiles of at most 64 tokens that lie inside one segment of one sequence. Results per
// token depend on the tiles of its own sequence alone, never on packing, page placement or the number of threads.
#pragma once

#include <stdint.h>

#include "lumos/dtype.h"
#include "lumos/status.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { LUMOS_TILE_TOKENS = 64, LUMOS_MAX_HEAD_DIM = 256 };

// Strides are in elements; the last dimension is contiguous.
typedef struct lumos_tokens {
  const void*
      data;  // [tokens, heads, head_dim]; keys in pages: [pages, page_size, heads, head_dim], page = page_size tokens
  int64_t stride_token, stride_head;
  int64_t stride_page;  // keys in pages only
} lumos_tokens;

// Row of `tiles`: slot_begin, num_tokens, index_begin (in its sequence), sequence.
typedef struct lumos_tiles {
  const int32_t* rows;  // [num_tiles, 4]
  int64_t num_tiles;
} lumos_tiles;

// For tile i the runs offsets[i] .. offsets[i + 1] - 1 of (first tile, end tile, full); full = every pair visible.
typedef struct lumos_tile_runs {
  const int32_t* offsets;  // [tiles + 1]
  const int32_t* runs;     // [num_runs, 3], increasing within a tile
  int64_t num_runs;
} lumos_tile_runs;

// Key splits: a query tile whose keys are cut into splits stands in `tiles` once for each of them, and has partial
// results, which are merged in the order of the splits. Bits do not depend on splits in which it meets no key.
typedef struct lumos_key_splits {
  lumos_tiles tiles;      // what query_tiles holds, in any order, with repetitions; num_tokens 0: none
  lumos_tile_runs rows;   // packed keys: key tiles of each of them
  const int32_t* keys;    // paged keys: [tiles, 2], the first and the end of the key tiles that each may meet
  int64_t num_partials;   // so many of `tiles`, the first ones, have partial results
  const int32_t* merges;  // [num_merges, 3], for a query tile: its first partial, their number, distance of neighbours
  int64_t num_merges;
  void* workspace;  // lumos_key_splits_workspace bytes, aligned to 16; may hold anything
  int64_t workspace_bytes;
} lumos_key_splits;

typedef struct lumos_attention_params {
  lumos_dtype dtype;  // of q, k, v, out and the gradients: LUMOS_FLOAT32 or LUMOS_BFLOAT16, CUDA: LUMOS_FLOAT16 too;
                      // sums are float32
  int64_t num_query_tokens, num_key_tokens;
  int64_t num_heads, num_kv_heads, head_dim;
  float scale;
  lumos_tokens q, k, v;
  void* out;         // [query tokens, heads, head_dim], contiguous
  float* lse;        // [query tokens, heads], contiguous, natural logarithm
  float* row_state;  // [query tokens, heads, 2]: m in base 2 (float32 on CUDA: in base e), and sum of the exponentials
                     // of score - m; no score of the row is greater than m + 8, and m is none of them or the greatest;
                     // NULL if there is no backward

  const int32_t* intervals;  // [query tokens, 5]: the mask rule, lumos/visibility.h
  const uint8_t* hidden;     // [key tokens] or NULL: keys hidden as history; packed keys only
  lumos_tiles query_tiles, key_tiles;
  lumos_tile_runs rows;     // key tiles of each query tile
  lumos_key_splits splits;  // CUDA, forward: unless it has no tiles, read instead of query_tiles and rows

  const int32_t*
      page_table;  // [sequences, max_pages] or NULL: slot s of a sequence lies in page page_table[s / page_size]
  int64_t num_sequences, max_pages, page_size, num_pages;

  int num_threads;  // of the CPU
  int device;       // CUDA: index of the GPU that holds the tensors
  void* stream;     // CUDA: cudaStream_t of that device
  void* workspace;  // CUDA: for paged keys lumos_paged_attention_workspace bytes, for the backward
                    // lumos_block_attention_backward_workspace, aligned to 16; may hold anything
  int64_t workspace_bytes;
} lumos_attention_params;

typedef struct lumos_attention_backward_params {
  lumos_attention_params forward;  // out and row_state are read; lse is not
  lumos_tokens grad_out;           // [tokens, heads, head_dim]
  void* grad_q;                    // [tokens, heads, head_dim], contiguous
  void* grad_k;                    // [tokens, kv_heads, head_dim], contiguous
  void* grad_v;                    // [tokens, kv_heads, head_dim], contiguous
  lumos_tile_runs columns;         // query tiles of each key tile: the transpose of forward.rows
} lumos_attention_backward_params;

// Packed keys: query and key tiles are the same tiles; page_table is NULL.
LUMOS_API lumos_status lumos_cpu_block_attention(const lumos_attention_params* params);
LUMOS_API lumos_status lumos_cpu_block_attention_backward(const lumos_attention_backward_params* params);

// Paged keys: key_tiles hold virtual slots and are sorted by sequence; `rows` is not read.
LUMOS_API lumos_status lumos_cpu_paged_attention(const lumos_attention_params* params);

// On CUDA all tensors, tiles, runs and the page table are in memory of the device; base, token, head and page strides
// of q, k and v in bytes are multiples of 16. What the device memory holds is not checked: nobody waits for it.
LUMOS_API lumos_status lumos_cuda_block_attention(const lumos_attention_params* params);
LUMOS_API lumos_status lumos_cuda_paged_attention(const lumos_attention_params* params);

// Of params.workspace, in bytes. num_query_tiles: those of params.splits, if it has any
static inline int64_t lumos_paged_attention_workspace(int64_t num_query_tiles, int64_t num_key_tiles) {
  return 4 * num_query_tiles * (1 + 3 * num_key_tiles);
}

// Of params.splits.workspace, in bytes: values and row_state of the rows of each partial.
static inline int64_t lumos_key_splits_workspace(int64_t num_partials, int64_t num_heads, int64_t head_dim) {
  return 4 * num_partials * num_heads * LUMOS_TILE_TOKENS * (head_dim + 2);
}

// grad_out too is aligned; out, row_state and the gradients begin at multiples of 16 bytes.
LUMOS_API lumos_status lumos_cuda_block_attention_backward(const lumos_attention_backward_params* params);

enum { LUMOS_ROW_TERMS_BYTES = 16 };

// Of params.forward.workspace, in bytes: the terms of every query and head.
static inline int64_t lumos_block_attention_backward_workspace(int64_t num_query_tokens, int64_t num_heads) {
  return LUMOS_ROW_TERMS_BYTES * num_query_tokens * num_heads;
}

#ifdef __cplusplus
}
#endif
