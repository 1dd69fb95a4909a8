// Bindings of block_attention, its backward, and paged_attention.
#include "lumos/attention.h"

#include "bindings/tensor.h"

namespace lumos {
namespace {

lumos_tokens tokens(const Tensor& tensor) { return {tensor.data, tensor.strides[0], tensor.strides[1], 0}; }

lumos_tokens pages(const Tensor& tensor) {
  return {tensor.data, tensor.strides[1], tensor.strides[2], tensor.strides[0]};
}

lumos_tiles tiles(const Tensor& tensor, const char* name) {
  expect(tensor, name, LUMOS_INT32, {-1, 4});
  return {tensor.as<int32_t>(), tensor.shape[0]};
}

lumos_tile_runs runs(const Tensor& offsets, const Tensor& rows, int64_t num_tiles) {
  expect(offsets, "offsets", LUMOS_INT32, {num_tiles + 1});
  expect(rows, "runs", LUMOS_INT32, {-1, 3});
  return {offsets.as<int32_t>(), rows.as<int32_t>(), rows.shape[0]};
}

// rows, keys: of packed and of paged keys
lumos_key_splits key_splits(const Tensor& split_tiles, const lumos_tile_runs& rows, const Tensor& keys,
                            const Tensor& merges, int64_t num_partials, const Tensor& workspace) {
  lumos_key_splits splits{};
  splits.tiles = tiles(split_tiles, "split_tiles");
  splits.rows = rows;
  splits.keys = keys.as<int32_t>();
  expect(merges, "merges", LUMOS_INT32, {-1, 3});
  splits.merges = merges.as<int32_t>();
  splits.num_merges = merges.shape[0];
  splits.num_partials = num_partials;
  expect(workspace, "partials", LUMOS_FLOAT32, {-1});
  splits.workspace = workspace.data;
  splits.workspace_bytes = 4 * workspace.shape[0];
  return splits;
}

// What packed and paged attention have in common: queries, results, the mask.
lumos_attention_params query_side(const Tensor& q, const Tensor& intervals, const Tensor& query_tiles,
                                  const Tensor& out, const Tensor& lse, double scale) {
  expect(q, "q", q.dtype, {-1, -1, -1}, true);
  expect(out, "out", q.dtype, q.shape);
  if (lse.data) expect(lse, "lse", LUMOS_FLOAT32, {q.shape[0], q.shape[1]});
  expect(intervals, "intervals", LUMOS_INT32, {q.shape[0], 5});
  lumos_attention_params params{};
  params.dtype = q.dtype;
  params.num_query_tokens = q.shape[0];
  params.num_heads = q.shape[1];
  params.head_dim = q.shape[2];
  params.scale = static_cast<float>(scale);
  params.q = tokens(q);
  params.out = out.data;
  params.lse = lse.as<float>();
  params.intervals = intervals.as<int32_t>();
  params.query_tiles = tiles(query_tiles, "tiles");
  return params;
}

lumos_attention_params block_params(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& intervals,
                                    const Tensor& hidden, const Tensor& tile_rows, const Tensor& row_offsets,
                                    const Tensor& row_runs, double scale, const Tensor& out, const Tensor& lse,
                                    const Tensor& row_state) {
  lumos_attention_params params = query_side(q, intervals, tile_rows, out, lse, scale);
  expect(k, "k", q.dtype, {q.shape[0], -1, q.shape[2]}, true);
  expect(v, "v", q.dtype, k.shape, true);
  if (hidden.data) expect(hidden, "hidden", LUMOS_BOOL, {q.shape[0]});
  params.num_key_tokens = k.shape[0];
  params.num_kv_heads = k.shape[1];
  params.k = tokens(k);
  params.v = tokens(v);
  if (row_state.data) expect(row_state, "row_state", LUMOS_FLOAT32, {q.shape[0], q.shape[1], 2});
  params.row_state = row_state.as<float>();
  params.hidden = hidden.as<uint8_t>();
  params.key_tiles = params.query_tiles;
  params.rows = runs(row_offsets, row_runs, params.query_tiles.num_tiles);
  return params;
}

void block_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& intervals, const Tensor& hidden,
                     const Tensor& tile_rows, const Tensor& row_offsets, const Tensor& row_runs, double scale,
                     const Tensor& out, const Tensor& lse, const Tensor& row_state, const Tensor& split_tiles,
                     const Tensor& split_offsets, const Tensor& split_runs, const Tensor& merges, int64_t num_partials,
                     const Tensor& partials, const Device& device) {
  lumos_attention_params params =
      block_params(q, k, v, intervals, hidden, tile_rows, row_offsets, row_runs, scale, out, lse, row_state);
  if (split_tiles.data) {
    params.splits = key_splits(split_tiles, runs(split_offsets, split_runs, split_tiles.shape[0]), {}, merges,
                               num_partials, partials);
  }
  call_on(device, params, LUMOS_LAUNCHERS(block_attention));
}

void block_attention_backward(const Tensor& grad_out, const Tensor& q, const Tensor& k, const Tensor& v,
                              const Tensor& out, const Tensor& row_state, const Tensor& intervals, const Tensor& hidden,
                              const Tensor& tile_rows, const Tensor& row_offsets, const Tensor& row_runs,
                              const Tensor& col_offsets, const Tensor& col_runs, double scale, const Tensor& grad_q,
                              const Tensor& grad_k, const Tensor& grad_v, const Tensor& workspace,
                              const Device& device) {
  lumos_attention_backward_params params{};
  params.forward =
      block_params(q, k, v, intervals, hidden, tile_rows, row_offsets, row_runs, scale, out, {}, row_state);
  expect(row_state, "row_state", LUMOS_FLOAT32, {q.shape[0], q.shape[1], 2});
  expect(grad_out, "grad_out", q.dtype, q.shape, true);
  expect(grad_q, "grad_q", q.dtype, q.shape);
  expect(grad_k, "grad_k", q.dtype, k.shape);
  expect(grad_v, "grad_v", q.dtype, k.shape);
  params.grad_out = tokens(grad_out);
  params.grad_q = grad_q.data;
  params.grad_k = grad_k.data;
  params.grad_v = grad_v.data;
  params.columns = runs(col_offsets, col_runs, params.forward.key_tiles.num_tiles);
  if (workspace.data) expect(workspace, "workspace", LUMOS_FLOAT32, {-1});
  params.forward.workspace = workspace.data;
  params.forward.workspace_bytes = workspace.data ? 4 * workspace.shape[0] : 0;
  set_device(params.forward, device);
  launch_on(device, params, LUMOS_LAUNCHERS(block_attention_backward));
}

void paged_attention(const Tensor& q, const Tensor& k_pages, const Tensor& v_pages, const Tensor& page_table,
                     const Tensor& key_tiles, const Tensor& intervals, const Tensor& query_tiles, double scale,
                     const Tensor& out, const Tensor& lse, const Tensor& workspace, const Tensor& split_tiles,
                     const Tensor& split_keys, const Tensor& merges, int64_t num_partials, const Tensor& partials,
                     const Device& device) {
  lumos_attention_params params = query_side(q, intervals, query_tiles, out, lse, scale);
  expect(k_pages, "k_pages", q.dtype, {-1, -1, -1, q.shape[2]}, true);
  expect(v_pages, "v_pages", q.dtype, k_pages.shape, true);
  expect(page_table, "page_table", LUMOS_INT32, {-1, -1});
  params.num_kv_heads = k_pages.shape[2];
  params.k = pages(k_pages);
  params.v = pages(v_pages);
  params.key_tiles = tiles(key_tiles, "key_tiles");
  params.page_table = page_table.as<int32_t>();
  params.num_sequences = page_table.shape[0];
  params.max_pages = page_table.shape[1];
  params.num_pages = k_pages.shape[0];
  params.page_size = k_pages.shape[1];
  if (workspace.data) expect(workspace, "workspace", LUMOS_INT32, {-1});
  params.workspace = workspace.data;
  params.workspace_bytes = workspace.data ? 4 * workspace.shape[0] : 0;
  if (split_tiles.data) {
    expect(split_keys, "split_keys", LUMOS_INT32, {split_tiles.shape[0], 2});
    params.splits = key_splits(split_tiles, {}, split_keys, merges, num_partials, partials);
  }
  call_on(device, params, LUMOS_LAUNCHERS(paged_attention));
}

}  // namespace

void register_attention(pybind11::module_& module) {
  module.def("block_attention", &block_attention);
  module.def("block_attention_backward", &block_attention_backward);
  module.def("block_attention_backward_workspace", &lumos_block_attention_backward_workspace);
  module.def("key_splits_workspace", &lumos_key_splits_workspace);
  module.def("paged_attention", &paged_attention);
  module.def("paged_attention_workspace", &lumos_paged_attention_workspace);
}

}  // namespace lumos
