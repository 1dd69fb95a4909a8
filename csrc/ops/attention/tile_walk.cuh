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

// The runs of one tile. May lie in shared memory: it has no gaps that a wide load would touch.
struct RunCursor {
  const int32_t* run;  // the next one
  int num_left;
  int first, end;  // of the current one; behind the last: INT_MAX
  TileState state;

  // runs: those of all tiles, of which it takes begin .. end_index - 1
  __device__ void start(const int32_t* runs, int begin, int end_index) {
    run = runs + 3 * int64_t(begin);
    num_left = end_index - begin;
    next();
  }
  __device__ void start_empty() { start(nullptr, 0, 0); }
  __device__ void next() {
    const bool some = num_left > 0;
    first = some ? run[0] : INT_MAX;
    end = some ? run[1] : INT_MAX;
    state = !some ? kUnseen : run[2] ? kFull : kPartial;
    run += 3;
    --num_left;
  }
};

// Walks the runs of `kSides` tiles together: `tile` is one that some of them meet.
template <int kSides>
struct TileWalk {
  RunCursor cursors[kSides];
  int tile, end;  // all tiles from `tile` to `end` have the same states
  TileState states[kSides];

  // Every cursor is started.
  __device__ void start() { stretch(0); }
  __device__ bool done() const { return tile == INT_MAX; }
  __device__ void next() { advance(1); }
  // By count <= end - tile tiles.
  __device__ void advance(int count) {
    tile += count;
    if (tile == end) stretch(tile);
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
      states[i] = meets ? cursors[i].state : kUnseen;
      end = min(end, meets ? cursors[i].end : cursors[i].first);
    }
  }
};

}  // namespace lumos
