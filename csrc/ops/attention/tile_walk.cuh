// The tiles that one or several tiles of the other side meet, in increasing order: what a block iterates over.
#pragma once

#include <climits>

#include "lumos/attention.h"

namespace lumos {

struct Tile {
  int slot_begin, num_tokens, index_begin, sequence;
};

__device__ inline Tile load_tile(const lumos_tiles& tiles, int i) {
  const int4 row = __ldg(reinterpret_cast<const int4*>(tiles.rows) + i);
  return {row.x, row.y, row.z, row.w};
}

enum TileState { kUnseen, kPartial, kFull };

// The runs of one tile.
struct RunCursor {
  const int32_t* run = nullptr;  // the next one
  const int32_t* end_run = nullptr;
  int first = INT_MAX, end = INT_MAX, full = 0;  // of the current one; behind the last: INT_MAX

  __device__ void start(const int32_t* runs, int begin, int end_index) {
    run = runs + 3 * int64_t(begin);
    end_run = runs + 3 * int64_t(end_index);
    next();
  }
  __device__ void next() {
    const bool some = run < end_run;
    first = some ? run[0] : INT_MAX;
    end = some ? run[1] : INT_MAX;
    full = some ? run[2] : 0;
    run += 3;
  }
};

// Walks the runs of `kSides` tiles together: `tile` is one that some of them meet.
template <int kSides>
struct TileWalk {
  RunCursor cursors[kSides];
  int tile, end;  // all tiles from `tile` to `end` have the same states
  TileState states[kSides];

  // Every cursor is started, or left as it is: it meets nothing.
  __device__ void start() { stretch(0); }
  __device__ bool done() const { return tile == INT_MAX; }
  __device__ void next() {
    if (++tile == end) stretch(tile);
  }

 private:
  // To the first tile from `from` on that some cursor meets.
  __device__ void stretch(int from) {
    tile = INT_MAX;
#pragma unroll
    for (int i = 0; i < kSides; ++i) {
      if (cursors[i].end <= from) cursors[i].next();
      tile = min(tile, max(cursors[i].first, from));
    }
    end = INT_MAX;
#pragma unroll
    for (int i = 0; i < kSides; ++i) {
      const bool meets = cursors[i].first <= tile && tile != INT_MAX;
      states[i] = !meets ? kUnseen : cursors[i].full ? kFull : kPartial;
      end = min(end, meets ? cursors[i].end : cursors[i].first);
    }
  }
};

}  // namespace lumos
