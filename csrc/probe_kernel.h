// Scores of a few probe queries against all keys, summed along columns and diagonals.
//
// Here vector lanes are keys, so that both kinds of sums stay inside their lanes: a
// diagonal moves by one lane from query to query, which costs one shuffle.
#pragma once

#include "products.h"
#include "softmax.h"

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

// Weights are kept in bf16 for bf16 inputs, else in float.
template <Type T>
constexpr Type stored() {
  return T == Type::bf16 ? Type::bf16 : Type::f32;
}

template <Type T>
inline void keep(char* weights, Vec p) {
#if defined(__AVX512BF16__)
  if constexpr (stored<T>() == Type::bf16) {
    const __m256i rounded = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(p));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights), rounded);
    return;
  }
#endif
  narrow<stored<T>()>(weights, p);
}

// How many of the tile's keys the probe's query `row` sees.
inline int keys_seen(const Probe& probe, Tile tile, int row) {
  const int64_t seen = probe.position + row - tile.first + 1;
  return static_cast<int>(seen < 0 ? 0 : seen < tile.count ? seen : tile.count);
}

// Call visit(row, vector, raw scores, keys seen) for every query of a probe.
template <Type T, typename Visit>
inline void visit_scores(const Maths& maths, const Probe& probe, Tile tile, const float* keys,
                         float* widened, const Visit& visit) {
  constexpr bool DOT = dots<T>();
  const int d = maths.d;
  for (int row = 0; row < probe.queries; row += ROWS) {
    const char* rows[ROWS];
    int seen[ROWS];
    for (int r = 0; r < ROWS; r++) {
      const int own = row + r < probe.queries ? row + r : probe.queries - 1;
      rows[r] = probe.q + own * probe.q_row;
      seen[r] = keys_seen(probe, tile, own);
      if constexpr (!DOT && T != Type::f32) {
        widen_row<T>(rows[r], d, widened + r * (d + W));
        rows[r] = reinterpret_cast<const char*>(widened + r * (d + W));
      }
    }
    for (int group = 0; group < VECTORS / GROUP; group++) {
      Accumulators sum = {};
      multiply_rows<DOT, 0>(rows, keys + group * GROUP * W, units_of<T>(d), sum);
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++) {
        if (row + r >= probe.queries) break;
#pragma GCC unroll 4
        for (int v = 0; v < GROUP; v++) visit(row + r, group * GROUP + v, sum[r][v], seen[r]);
      }
    }
  }
}

inline Vec only_seen(Vec x, Vec otherwise, int vector, int seen) {
  return iota() + splat_int(vector * W) < splat_int(seen) ? x : otherwise;
}

template <Type T>
void score_tile(const Maths& maths, const Probe* probes, int count, Tile tile,
                const float* reference, float* sums, char* weights, char* scratch) {
  float* keys = reinterpret_cast<float*>(scratch);
  float* widened = keys + units_of<T>(maths.d) * TILE;
  const Exponent exponent(maths);
  pack_tile<T>(probes[0].k + tile.first * probes[0].k_row, probes[0].k_row, tile.count, maths.d,
               maths.scale < 0, keys);
  for (int i = 0; i < count; i++) {
    const float* minus = reference + i * TILE;
    float* own = sums + i * TILE * MAX_LANES;
    char* kept = weights + static_cast<int64_t>(i) * TILE * TILE * size_of<stored<T>()>;
    const bool whole = keys_seen(probes[i], tile, 0) == TILE;
    visit_scores<T>(maths, probes[i], tile, keys, widened, [&](int row, int v, Vec s, int seen) {
      // At most 2^127: beyond that exp2 wraps, and the caller could not see the overflow.
      const Vec x = -max(splat(minus[row]) - exponent(s), splat(-127.0f));
      Vec p = exp2<degree<dots<T>()>()>(x);
      if (!whole) p = only_seen(p, Vec{}, v, seen);
      store(own + row * MAX_LANES, load(own + row * MAX_LANES) + p);
      if (weights != nullptr) keep<T>(kept + (row * TILE + v * W) * size_of<stored<T>()>, p);
    });
  }
}

template <Type T>
void score_top(const Maths& maths, const Probe& probe, Tile tile, float* top, char* scratch) {
  float* keys = reinterpret_cast<float*>(scratch);
  float* widened = keys + units_of<T>(maths.d) * TILE;
  const Exponent exponent(maths);
  pack_tile<T>(probe.k + tile.first * probe.k_row, probe.k_row, tile.count, maths.d,
               maths.scale < 0, keys);
  visit_scores<T>(maths, probe, tile, keys, widened, [&](int row, int v, Vec s, int seen) {
    const float here = largest(only_seen(exponent(s), splat(LOWEST), v, seen));
    top[row] = here > top[row] ? here : top[row];
  });
}

inline void multiply(const Maths& maths, const Probe& probe, Tile tile, float* scores,
                     int64_t stride, char* scratch) {
  float* keys = reinterpret_cast<float*>(scratch);
  pack_tile<Type::f32>(probe.k + tile.first * probe.k_row, probe.k_row, tile.count, maths.d,
                       maths.scale < 0, keys);
  visit_scores<Type::f32>(maths, probe, tile, keys, nullptr, [&](int row, int v, Vec s, int) {
    store(scores + row * stride + v * W, s);
  });
}

template <Type T>
size_t score_scratch(int d) {
  return sizeof(float) * (static_cast<size_t>(units_of<T>(d)) * TILE + ROWS * (d + W));
}

// Rows group * W + (0 ... W - 1): row A moves up by W - 1 - A lanes to stand on its diagonals.
template <Type T, int A>
inline void add_row(const char* weights, const float* factors, int row, Vec* columns,
                    Vec* diagonals) {
  const Vec factor = splat(factors[row + A]);
  Vec before = {};
#pragma GCC unroll 16
  for (int v = 0; v < VECTORS; v++) {
    const int place = (row + A) * TILE + v * W;
    const Vec x = factor * widen<stored<T>()>(weights + place * size_of<stored<T>()>);
    columns[v] += x;
    diagonals[v] += shift_lanes<W - 1 - A>(before, x);
    before = x;
  }
  if constexpr (A != W - 1) diagonals[VECTORS] += shift_lanes<W - 1 - A>(before, Vec{});
}

template <Type T, int... A>
inline void add_rows_of(const char* weights, const float* factors, int row, int queries,
                        Vec* columns, Vec* diagonals, Lanes<A...>) {
  const auto exists = [&](int a) { return row + a < queries; };
  ((exists(A) ? add_row<T, A>(weights, factors, row, columns, diagonals) : void()), ...);
}

// columns[j] and diagonals[j - row + TILE - 1] gain factors[row] * weights[row][j].
template <Type T>
void add_lines(const char* weights, const float* factors, int queries, float* columns,
               float* diagonals) {
  Vec column[VECTORS] = {};
  for (int group = 0; group * W < queries; group++) {
    Vec diagonal[VECTORS + 1] = {};
    add_rows_of<T>(weights, factors, group * W, queries, column, diagonal, AllLanes{});
    float* to = diagonals + (VECTORS - 1 - group) * W;
    for (int v = 0; v <= VECTORS; v++) store(to + v * W, load(to + v * W) + diagonal[v]);
  }
  for (int v = 0; v < VECTORS; v++) store(columns + v * W, load(columns + v * W) + column[v]);
}

template <Type T>
void add_rows(const char* rows, int64_t stride, int64_t count, int d, float* total) {
  for (int64_t r = 0; r < count; r++) {
    const char* row = rows + r * stride;
    int c = 0;
    for (; c + W <= d; c += W) store(total + c, load(total + c) + widen<T>(row + c * size_of<T>));
    if (c == d) continue;
    float tail[MAX_LANES] = {};
    char raw[4 * W] = {};
    memcpy(raw, row + c * size_of<T>, static_cast<size_t>(d - c) * size_of<T>);
    store(tail, widen<T>(raw));
    for (int i = 0; c + i < d; i++) total[c + i] += tail[i];
  }
}

}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill
