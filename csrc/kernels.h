// What the instruction-set objects offer to the rest of the library.
//
// kernels.cc is compiled once per instruction set. Such an object may contain
// instructions that another CPU lacks, so it exports nothing but its `kernels()`, which
// the dispatcher calls only where the CPU fits, and it uses no part of the C++ standard
// library: an inline function that leaked out of it could be chosen by the linker for
// everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace sparsefill {

constexpr int TILE = 64;        // queries of a row block, keys of a tile
constexpr int MAX_HEAD_DIM = 256;
constexpr int MAX_LANES = 16;  // floats in the widest vector

enum class Type : int { f32 = 0, bf16 = 1, f16 = 2 };

// Keys first, first + 1, ..., first + count - 1; count <= TILE.
struct Tile {
  int32_t first;
  int32_t count;
};

// The maths of one attention call.
struct Maths {
  int d;          // a multiple of 8, at most MAX_HEAD_DIM
  float scale;    // what scores are multiplied by
  float softcap;  // scores are bounded to softcap * tanh(score / softcap); none when 0
};

// One row block of the query heads that read the same keys, and where its results go.
struct RowBlock {
  const char* q;  // first query of the first head
  const char* k;
  const char* v;
  char* out;
  float* lse;
  int64_t q_head, q_row, k_row, v_row, out_head, out_row, lse_head;  // bytes
  int heads;
  int queries;         // rows that exist, 1 to TILE
  int64_t position;    // key position of the first query; may be negative
  const Tile* tiles;   // disjoint
  int64_t tile_count;
  const int32_t* columns;  // ascending, apart from the tiles
  int64_t column_count;
};

// The last queries of one head (at most TILE), scored against all keys.
struct Probe {
  const char* q;  // first probe query
  const char* k;
  int64_t q_row, k_row;  // bytes
  int queries;
  int64_t position;  // key position of the first probe query
  int64_t keys;
};

struct Kernels {
  const char* name;

  // Attend one row block; `next` may be null and is only used to fetch memory early.
  void (*attend)(Type type, const Maths& maths, const RowBlock& block, const RowBlock* next,
                 char* scratch);
  size_t (*attend_scratch)(Type type, int d, int heads);  // bytes, 64-byte aligned

  // How many heads share what a tile of keys costs to load; more would not fit the cache.
  int (*shared_heads)(Type type, int d);

  // Score a tile of keys against some probes that share them, and add to each probe query's
  // sums (TILE x MAX_LANES floats a probe, to be added up) of 2^(score - reference), which
  // is a TILE for each probe. The weights are stored too when `weights` is not null.
  void (*score_tile)(Type type, const Maths& maths, const Probe* probes, int count, Tile tile,
                     const float* reference, float* sums, char* weights, char* scratch);
  size_t (*score_scratch)(Type type, int d);
  // Highest score, in powers of two, of each probe query over a tile.
  void (*score_top)(Type type, const Maths& maths, const Probe& probe, Tile tile, float* top,
                    char* scratch);
  // Add a tile's stored weights, times each query's factor, along columns and diagonals.
  void (*add_lines)(Type type, const char* weights, const float* factors, int queries,
                    float* columns, float* diagonals);

  // Raw float scores of a probe's rows against a tile: scores[row * stride + key].
  void (*multiply)(const Maths& maths, const Probe& probe, Tile tile, float* scores,
                   int64_t stride, char* scratch);

  // Add `rows` rows of d elements to d floats.
  void (*add_rows)(Type type, const char* rows, int64_t row, int64_t count, int d, float* total);

  // Whether elements that lie side by side are all finite.
  bool (*finite)(Type type, const char* data, int64_t count);

  // Run multiply-adds on registers only and return how many floating-point operations.
  double (*burn)(Type type, int64_t rounds);
};

namespace baseline {
const Kernels* kernels();
}
namespace avx2 {
const Kernels* kernels();
}
namespace avx512 {
const Kernels* kernels();
}
namespace avx512bf16 {
const Kernels* kernels();
}
namespace amx {
const Kernels* kernels();
}

}  // namespace sparsefill
