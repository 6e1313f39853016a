// Attention of one row block over its tiles and columns, with a running softmax.
//
//     for each tile of at most 64 keys:
//         S = K Q^T                          # (keys, queries); K read in place
//         top' = max(top, S); P = 2^(c S - c top')
//         O^T = 2^(c top - c top') O^T + V^T P; sum = ... + sum over keys of P
//     out = O / sum, lse = scale * top + ln(sum)
//
// Only tiles that reach beyond the first query are masked, and of those the vectors of
// queries that stand before all of a group's keys are not computed at all.
#pragma once

#include "products.h"
#include "softmax.h"

#if defined(__AMX_BF16__) || defined(SPARSEFILL_EMULATE_AMX)
#define SPARSEFILL_AMX
#endif

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

// The rows of one tile: where they lie, and how far each key stands after the first query.
struct Rows {
  const char* k[TILE];
  const char* v[TILE];
  int32_t ahead[TILE];
  int count;  // keys; entries up to the next multiple of 4 repeat the last one, never seen
  bool masked;
};

struct Cursor {
  int64_t tile = 0;
  int64_t column = 0;
};

inline int32_t clamp_ahead(int64_t ahead) {
  return static_cast<int32_t>(ahead < -1 ? -1 : ahead > TILE ? TILE : ahead);
}

// Take the next tile, or up to TILE columns; false when nothing is left.
inline bool next_rows(const RowBlock& block, Cursor& at, Rows& rows) {
  rows.count = 0;
  if (at.tile < block.tile_count) {
    const Tile tile = block.tiles[at.tile++];
    rows.count = tile.count;
    for (int j = 0; j < tile.count; j++) {
      const int64_t key = static_cast<int64_t>(tile.first) + j;
      rows.k[j] = block.k + key * block.k_row;
      rows.v[j] = block.v + key * block.v_row;
      rows.ahead[j] = clamp_ahead(key - block.position);
    }
  } else {
    const int64_t left = block.column_count - at.column;
    rows.count = static_cast<int>(left < TILE ? left : TILE);
    for (int j = 0; j < rows.count; j++) {
      const int64_t key = block.columns[at.column++];
      rows.k[j] = block.k + key * block.k_row;
      rows.v[j] = block.v + key * block.v_row;
      rows.ahead[j] = clamp_ahead(key - block.position);
    }
  }
  if (rows.count == 0) return false;
  for (int j = rows.count; j % 4; j++) {
    rows.k[j] = rows.k[rows.count - 1];
    rows.v[j] = rows.v[rows.count - 1];
    rows.ahead[j] = TILE;
  }
  rows.masked = rows.count % 4 || rows.ahead[rows.count - 1] > 0;
  return true;
}

inline void fetch_row(const char* row, int bytes) {
  for (int i = 0; i < bytes; i += 64) __builtin_prefetch(row + i, 0, 2);
}

// First vector with a query that sees a key `ahead` of the first query.
inline int first_vector(int32_t ahead) { return ahead <= 0 ? 0 : ahead / W; }

inline Vec sees(int32_t ahead, Vec yes, Vec no, int vector) {
  const Ints query = iota() + splat_int(vector * W);
  return query >= splat_int(ahead) ? yes : no;
}

constexpr int HALF = 128;  // units that one chain of sums takes: a longer one would err too much

template <bool DOT, bool MASKED, int FIRST>
inline void score_group(const Rows& rows, int row, const float* q, int units, int group,
                        float* scores, Vec* top) {
  Accumulators sum = {};
  const float* packed = q + group * GROUP * W;
  multiply_rows<DOT, FIRST>(rows.k + row, packed, units < HALF ? units : HALF, sum);
  if (units > HALF) {
    const char* far[ROWS];
    for (int r = 0; r < ROWS; r++) far[r] = rows.k[row + r] + HALF * 4;
    Accumulators rest = {};
    multiply_rows<DOT, FIRST>(far, packed + HALF * TILE, units - HALF, rest);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
      for (int v = FIRST; v < GROUP; v++) sum[r][v] += rest[r][v];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
    for (int v = FIRST; v < GROUP; v++) {
      Vec s = sum[r][v];
      if constexpr (MASKED) s = sees(rows.ahead[row + r], s, splat(LOWEST), group * GROUP + v);
      store(scores + (row + r) * TILE + (group * GROUP + v) * W, s);
      top[v] = max(top[v], s);
    }
  }
}

// Score all rows against all queries and raise `top`. Vectors before the first that sees
// a group of rows are left unwritten.
template <bool DOT, bool MASKED>
inline void score(const Rows& rows, const Rows* fetch, int row_bytes, const float* q, int units,
                  float* scores, float* top) {
  for (int group = 0; group < VECTORS / GROUP; group++) {
    Vec own[GROUP];
#pragma GCC unroll 4
    for (int v = 0; v < GROUP; v++) own[v] = load(top + (group * GROUP + v) * W);
    for (int row = 0; row < rows.count; row += ROWS) {
      if (group == 0 && fetch != nullptr) {
        for (int r = row; r < row + ROWS && r < fetch->count; r++) {
          fetch_row(fetch->k[r], row_bytes);
          fetch_row(fetch->v[r], row_bytes);
        }
      }
      const int first = MASKED ? first_vector(rows.ahead[row]) - group * GROUP : 0;
      if (!MASKED || first <= 0)
        score_group<DOT, MASKED, 0>(rows, row, q, units, group, scores, own);
      else if (first == 1)
        score_group<DOT, MASKED, 1>(rows, row, q, units, group, scores, own);
      else if (first == 2)
        score_group<DOT, MASKED, 2>(rows, row, q, units, group, scores, own);
      else if (first == 3)
        score_group<DOT, MASKED, 3>(rows, row, q, units, group, scores, own);
    }
#pragma GCC unroll 4
    for (int v = 0; v < GROUP; v++) store(top + (group * GROUP + v) * W, own[v]);
  }
}

// How many of the rows, in whole groups of ROWS, a vector's queries see at all.
inline int rows_seen(const Rows& rows, int vector) {
  const int all = (rows.count + ROWS - 1) / ROWS * ROWS;
  if (!rows.masked) return all;
  int seen = 0;
  while (seen < all && first_vector(rows.ahead[seen]) <= vector) seen += ROWS;
  return seen;
}

#if defined(__AVX512BF16__)
// Interleave two vectors of weights, rounded to bf16: the first in the low halves.
inline Vec pair_up(Vec low, Vec high) {
  const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24,
                                         8, 23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  return reinterpret_cast<Vec>(_mm512_permutexvar_epi16(order, both));
}
#else
inline Vec pair_up(Vec low, Vec) { return low; }
#endif

// Turn the scores of one vector of queries into weights 2^(x - top); return their sum. Raw
// scores are subtracted first: rounding x and top apart would err by more than 2^127 when
// scores are about 10^10.
template <bool DOT, bool MASKED, bool CAPPED>
inline Vec weights_of(const Rows& rows, int seen, int vector, const Exponent& exponent, Vec top,
                      float* scores, float* weights) {
  Vec total[2] = {Vec{}, Vec{}};
  for (int row = 0; row < seen; row += 2) {
    Vec p[2];
#pragma GCC unroll 2
    for (int r = 0; r < 2; r++) {
      const Vec s = load(scores + (row + r) * TILE + vector * W);
      const Vec x = exponent.below<CAPPED>(s, top);
      p[r] = exp2<degree<DOT>()>(x);
      if constexpr (MASKED) p[r] = sees(rows.ahead[row + r], p[r], Vec{}, vector);
      total[r] += p[r];
      if constexpr (!DOT) store(weights + (row + r) * TILE + vector * W, p[r]);
    }
    if constexpr (DOT) store(weights + row / 2 * TILE + vector * W, pair_up(p[0], p[1]));
  }
  return total[0] + total[1];
}

// State of one head's row block: packed queries, running softmax, output so far.
struct Head {
  float* q;      // [units][TILE]
  float* out;    // [d][TILE]
  float* top;    // [TILE] highest raw score
  float* sum;    // [TILE]
  float* alpha;  // [TILE] what the output so far is multiplied by
};

// Softmax of a tile's scores against the running state; true if some alpha is not 1.
template <bool DOT, bool MASKED>
inline bool soften(const Rows& rows, const int* seen, const Exponent& exponent, const Head& head,
                   const float* raised, float* scores, float* weights) {
  bool moved = false;
  for (int v = 0; v < VECTORS; v++) {
    const Vec before = load(head.top + v * W);
    const Vec raw = load(raised + v * W);
    const Vec top = exponent.capped ? exponent(raw) : raw;
    Vec sum = load(head.sum + v * W);
    Vec alpha = splat(1.0f);
    if (any_greater(raw, before)) {
      moved = true;
      alpha = exp2<5>(exponent.capped ? exponent.below<true>(before, top)
                                      : exponent.below<false>(before, top));
      store(head.top + v * W, raw);
      sum = sum * alpha;
    }
    store(head.alpha + v * W, alpha);
    const Vec added =
        exponent.capped
            ? weights_of<DOT, MASKED, true>(rows, seen[v], v, exponent, top, scores, weights)
            : weights_of<DOT, MASKED, false>(rows, seen[v], v, exponent, top, scores, weights);
    store(head.sum + v * W, sum + added);
  }
  return moved;
}

// out = alpha * out + V^T P, ROWS rows of V^T at a time.
template <bool DOT, bool MASKED>
inline void weigh(const char* const* values, const int* seen, int d, bool first, bool moved,
                  const float* weights, const Head& head) {
  constexpr int per_unit = DOT ? 2 : 1;
  for (int group = 0; group < VECTORS / GROUP; group++) {
    int end[GROUP];  // units that each vector of queries sees
    for (int v = 0; v < GROUP; v++) end[v] = seen[group * GROUP + v] / per_unit;
    const float* p = weights + group * GROUP * W;
    for (int row = 0; row < d; row += ROWS) {
      float* out = head.out + row * TILE + group * GROUP * W;
      Accumulators sum;
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < GROUP; v++) {
          sum[r][v] = first || !DOT ? Vec{} : load(out + r * TILE + v * W);
          if (DOT && moved) sum[r][v] = sum[r][v] * load(head.alpha + (group * GROUP + v) * W);
        }
      }
      const int64_t offset = static_cast<int64_t>(row) * 4;
      multiply_columns<DOT, 0>(values, offset, p, 0, end[0], sum);
      if constexpr (MASKED) {
        multiply_columns<DOT, 1>(values, offset, p, end[0], end[1], sum);
        multiply_columns<DOT, 2>(values, offset, p, end[1], end[2], sum);
        multiply_columns<DOT, 3>(values, offset, p, end[2], end[3], sum);
      }
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < GROUP; v++) {
          float* place = out + r * TILE + v * W;
          // In float a tile is summed by itself first: one long sum would err four times more.
          if (!DOT && !first) {
            const Vec alpha = moved ? load(head.alpha + (group * GROUP + v) * W) : splat(1.0f);
            sum[r][v] = fma(load(place), alpha, sum[r][v]);
          }
          store(place, sum[r][v]);
        }
      }
    }
  }
}

// Make the tile's values readable as units: pairs of neighbouring keys, or floats.
template <Type T>
inline void prepare_values(const Rows& rows, int d, float* buffer, const char** values) {
  if constexpr (T == Type::f32) {
    for (int j = 0; j < (rows.count + 3) / 4 * 4; j++) values[j] = rows.v[j];
  } else if constexpr (dots<T>()) {
#if defined(__AVX512BF16__)
    for (int j = 0; j < rows.count; j += 2) {
      float* pairs = buffer + j / 2 * d;
      values[j / 2] = reinterpret_cast<const char*>(pairs);
      for (int c = 0; c < d; c += 16) {
        const __mmask16 there = d - c >= 16 ? 0xffff : 0x00ff;
        const __m256i low = _mm256_maskz_loadu_epi16(there, rows.v[j] + 2 * c);
        const __m256i high = _mm256_maskz_loadu_epi16(there, rows.v[j + 1] + 2 * c);
        const __m512i pair = _mm512_or_si512(
            _mm512_cvtepu16_epi32(low), _mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
        _mm512_mask_storeu_epi32(pairs + c, there, pair);
      }
    }
    for (int j = rows.count + (rows.count & 1); j % 4; j += 2) values[j / 2] = values[j / 2 - 1];
#endif
  } else {
    for (int j = 0; j < (rows.count + 3) / 4 * 4; j++) {
      values[j] = reinterpret_cast<const char*>(buffer + j * d);
      widen_row<T>(rows.v[j], d, buffer + j * d);
    }
  }
}

// Make the tile's keys readable as units.
template <Type T>
inline void prepare_keys(Rows& rows, int d, float* buffer) {
  if constexpr (T != Type::f32 && !dots<T>()) {
    for (int j = 0; j < (rows.count + 3) / 4 * 4; j++) {
      widen_row<T>(rows.k[j], d, buffer + j * d);
      rows.k[j] = reinterpret_cast<const char*>(buffer + j * d);
    }
  }
}

// One vector of queries: scale, transpose back to one row per query, and write.
template <Type T>
inline void write_queries(const float* from, Vec factor, int d, char* to, int64_t row_bytes,
                          int queries) {
  constexpr bool DOT = dots<T>();
  constexpr int per_unit = DOT ? 2 : 1;        // elements that a 32-bit unit holds
  constexpr int unit_bytes = DOT ? 4 : size_of<T>;  // of the output
  const int units = d / per_unit;
  for (int u = 0; u < units; u += W) {
    Vec rows[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) {
      const float* own = from + (u + r) * per_unit * TILE;
      if (u + r >= units) {
        rows[r] = Vec{};
      } else if constexpr (DOT) {
        rows[r] = pair_up(load(own) * factor, load(own + TILE) * factor);
      } else {
        rows[r] = load(own) * factor;
      }
    }
    transpose(rows);
    const int there = units - u < W ? units - u : W;
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) {
      if (r >= queries) continue;
      char* place = to + r * row_bytes + static_cast<int64_t>(u) * unit_bytes;
      char tail[4 * W];
      char* written = there == W ? place : tail;
      if constexpr (DOT)
        store(written, rows[r]);
      else
        narrow<T>(written, rows[r]);
      if (there < W) memcpy(place, tail, static_cast<size_t>(there) * unit_bytes);
    }
  }
}

// Divide by the sums and write the results of one head.
template <Type T>
inline void finish(const RowBlock& block, int number, const Exponent& exponent, int d,
                   const Head& head) {
  float lse[TILE];
  char* out = block.out + number * block.out_head;
  for (int v = 0; v < VECTORS; v++) {
    const Vec sum = load(head.sum + v * W);  // 0 where a query sees no key
    const auto none = sum <= Vec{};
    const Vec inverse = none ? Vec{} : splat(1.0f) / sum;
    const Vec natural = fma(exponent(load(head.top + v * W)), splat(LN_2), ln(sum));
    store(lse + v * W, none ? splat(-__builtin_inff()) : natural);
    const int queries = block.queries - v * W < W ? block.queries - v * W : W;
    write_queries<T>(head.out + v * W, inverse, d, out + v * W * block.out_row,
                     block.out_row, queries);
  }
  char* to = reinterpret_cast<char*>(block.lse) + number * block.lse_head;
  memcpy(to, lse, static_cast<size_t>(block.queries) * sizeof(float));
}

// Head dimension that a head's queries and output have room for; zeros fill up the queries.
template <Type T>
inline int room_of(int d) {
#if defined(SPARSEFILL_AMX)
  if (dots<T>()) return (d + 31) / 32 * 32;  // whole blocks of tile registers
#endif
  return d;
}

// Floats that one head's state takes.
template <Type T>
inline size_t head_floats(int d) {
  return static_cast<size_t>(units_of<T>(room_of<T>(d)) + room_of<T>(d) + 3) * TILE;
}

template <Type T>
inline size_t attend_scratch(int d, int heads) {
  const size_t tile = static_cast<size_t>(TILE) * TILE;
  const size_t widened = static_cast<size_t>(TILE) * (d + W);
  return sizeof(float) * (head_floats<T>(d) * heads + 2 * tile + TILE + 2 * widened);
}

template <Type T, bool MASKED>
inline void attend_tile(Rows& rows, const Rows* fetch, const Maths& maths, const Exponent& exponent,
                        const Head* heads, int count, bool first, float* scores, float* weights,
                        float* keys, float* buffer) {
  constexpr bool DOT = dots<T>();
  const int d = maths.d;
  int seen[VECTORS];
  for (int v = 0; v < VECTORS; v++) seen[v] = rows_seen(rows, v);
  const char* values[TILE];
  prepare_keys<T>(rows, d, keys);
  prepare_values<T>(rows, d, buffer, values);
  for (int i = 0; i < count; i++) {
    alignas(64) float raised[TILE];
    memcpy(raised, heads[i].top, sizeof raised);
    score<DOT, MASKED>(rows, i == 0 ? fetch : nullptr, d * size_of<T>, heads[i].q, units_of<T>(d),
                       scores, raised);
    const bool moved =
        soften<DOT, MASKED>(rows, seen, exponent, heads[i], raised, scores, weights) && !first;
    weigh<DOT, MASKED>(values, seen, d, first, moved, weights, heads[i]);
  }
}

constexpr int MAX_SHARED = 16;

template <Type T>
void attend_block(const Maths& maths, const RowBlock& block, const RowBlock* next, char* scratch) {
  constexpr bool DOT = dots<T>();
  const int d = maths.d;
  const Exponent exponent(maths);
  float* at = reinterpret_cast<float*>(scratch);
  const auto take = [&](size_t floats) {
    float* taken = at;
    at += floats;
    return taken;
  };
  float* scores = take(static_cast<size_t>(TILE) * TILE);
  float* weights = DOT ? take(static_cast<size_t>(TILE) * TILE) : scores;
  float* keys = take(static_cast<size_t>(TILE) * (d + W));
  float* buffer = take(static_cast<size_t>(TILE) * (d + W));
  Head heads[MAX_SHARED];
  for (int i = 0; i < block.heads; i++) {
    const int filled = units_of<T>(d) * TILE, room = units_of<T>(room_of<T>(d)) * TILE;
    heads[i].q = take(static_cast<size_t>(room));
    heads[i].out = take(static_cast<size_t>(room_of<T>(d)) * TILE);
    memset(heads[i].q + filled, 0, static_cast<size_t>(room - filled) * sizeof(float));
    heads[i].top = take(TILE);
    heads[i].sum = take(TILE);
    heads[i].alpha = take(TILE);
    pack_tile<T>(block.q + i * block.q_head, block.q_row, block.queries, d, maths.scale < 0,
                 heads[i].q);
    for (int j = 0; j < TILE; j++) {
      heads[i].top[j] = LOWEST;
      heads[i].sum[j] = 0;
    }
  }

  Rows buffers[2];
  Rows* rows = &buffers[0];
  Rows* following = &buffers[1];
  Cursor cursor;
  bool first = true;
  bool more = next_rows(block, cursor, *rows);
  while (more) {
    more = next_rows(block, cursor, *following);
    const Rows* fetch = more ? following : nullptr;
    if (!more && next != nullptr) {
      Cursor start;
      if (next_rows(*next, start, *following)) fetch = following;
      for (int r = 0; r < next->queries; r++)
        fetch_row(next->q + r * next->q_row, d * size_of<T>);
    }
    if (rows->ahead[0] < TILE) {  // else all its keys lie beyond the last query
      if (rows->masked)
        attend_tile<T, true>(*rows, fetch, maths, exponent, heads, block.heads, first, scores,
                             weights, keys, buffer);
      else
        attend_tile<T, false>(*rows, fetch, maths, exponent, heads, block.heads, first, scores,
                              weights, keys, buffer);
      first = false;
    }
    Rows* done = rows;
    rows = following;
    following = done;
  }
  for (int i = 0; i < block.heads; i++) {
    if (first) memset(heads[i].out, 0, static_cast<size_t>(d) * TILE * sizeof(float));
    finish<T>(block, i, exponent, d, heads[i]);
  }
}

}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill

#if defined(SPARSEFILL_AMX)
#include "amx_kernel.h"  // attend_tile for bf16
#endif
