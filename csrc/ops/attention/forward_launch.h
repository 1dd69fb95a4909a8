// The forward kernels by element type, head_dim and place of the keys. Each is compiled in a file of its own, in
// instances/.
#pragma once

#include "cuda/alignment.h"
#include "cuda/dtype.h"
#include "lumos/attention.h"

namespace lumos {

struct PackedKeys;
struct PagedKeys;

// On checked params, whose device is the current one.
template <class T, int kHeadDim, class Keys>
void launch_forward(const lumos_attention_params& params);
template <class Keys>
void launch_forward_float(const lumos_attention_params& params);
void launch_key_splits_merge(const lumos_attention_params& params);

inline void check_forward(const char* op, const lumos_attention_params& p) {
  const auto wide = [](int64_t value) { return static_cast<long long>(value); };
  require(p.num_kv_heads > 0 && p.num_heads > 0 && p.num_heads % p.num_kv_heads == 0,
          "%lld query heads cannot share %lld key heads evenly", wide(p.num_heads), wide(p.num_kv_heads));
  require(p.num_heads <= 65535, "%lld heads are more than a grid holds; the most are 65535", wide(p.num_heads));
  const int64_t bytes = p.dtype == LUMOS_FLOAT32 ? 4 : 2;
  const struct {
    const char* name;
    const lumos_tokens& tokens;
  } inputs[] = {{"q", p.q}, {"k", p.k}, {"v", p.v}};
  for (const auto& [name, x] : inputs) {
    require_aligned(op, name, x.data, x.stride_token * bytes, x.stride_head * bytes);
    require_aligned(op, name, x.data, x.stride_page * bytes, x.stride_head * bytes);
  }
}

// What the kernels read: with key splits, their tiles and runs in place of the call's.
inline lumos_attention_params with_split_tiles(const lumos_attention_params& p) {
  const lumos_key_splits& splits = p.splits;
  lumos_attention_params read = p;
  if (splits.tiles.num_tiles == 0) {
    read.splits = {};
    return read;
  }
  const auto wide = [](int64_t value) { return static_cast<long long>(value); };
  require(0 <= splits.num_partials && splits.num_partials <= splits.tiles.num_tiles,
          "%lld partial results are more than the %lld tiles", wide(splits.num_partials), wide(splits.tiles.num_tiles));
  const int64_t bytes = lumos_key_splits_workspace(splits.num_partials, p.num_heads, p.head_dim);
  require(splits.workspace_bytes >= bytes, "the workspace of the key splits has %lld bytes; it must have %lld",
          wide(splits.workspace_bytes), wide(bytes));
  read.query_tiles = splits.tiles;
  read.rows = splits.rows;
  return read;
}

template <class Keys>
void select_forward(const char* op, const lumos_attention_params& p) {
  if (p.dtype == LUMOS_BFLOAT16) {
    switch (p.head_dim) {
      case 32: return launch_forward<__nv_bfloat16, 32, Keys>(p);
      case 64: return launch_forward<__nv_bfloat16, 64, Keys>(p);
      case 96: return launch_forward<__nv_bfloat16, 96, Keys>(p);
      case 128: return launch_forward<__nv_bfloat16, 128, Keys>(p);
      default: break;
    }
  } else if (p.dtype == LUMOS_FLOAT16) {
    switch (p.head_dim) {
      case 64: return launch_forward<__half, 64, Keys>(p);
      case 128: return launch_forward<__half, 128, Keys>(p);
      default: break;
    }
  } else if (p.dtype == LUMOS_FLOAT32) {
    if (p.head_dim > 0 && p.head_dim % 32 == 0 && p.head_dim <= LUMOS_MAX_HEAD_DIM)
      return launch_forward_float<Keys>(p);
  } else {
    throw Error(LUMOS_UNSUPPORTED_TYPE, std::string(op) + " on CUDA takes float32, bfloat16 and float16");
  }
  require(false,
          "%s: head_dim is %lld; on CUDA bfloat16 has 32, 64, 96 and 128, float16 has 64 and 128, float32 has all "
          "multiples of 32 up to 256: convert q, k and v, or pass backend='reference'",
          op, static_cast<long long>(p.head_dim));
}

}  // namespace lumos
