// The two matrix products of attention, register tile by register tile.
//
// Vector lanes are queries: a register tile is ROWS key (or value) rows times four vectors
// of queries, rows are read in place as scalar broadcasts, and softmax needs no sum or
// maximum across lanes. With bf16 dot products a "unit" is a pair of neighbours in 32 bits,
// else it is one float.
#pragma once

#include "simd.h"

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

constexpr int VECTORS = TILE / W;           // vectors that hold the queries of a row block
constexpr int GROUP = 4;                    // vectors of a register tile
constexpr int ROWS = W == 16 ? 4 : 2;       // GROUP * ROWS accumulators fit the registers
constexpr float LOWEST = -1e30f;            // the score of a masked cell; finite on purpose

template <Type T>
constexpr bool dots() {
#if defined(__AVX512BF16__)
  return T == Type::bf16;
#else
  return false;
#endif
}

template <Type T>
inline int units_of(int d) {
  return dots<T>() ? d / 2 : d;
}

template <bool DOT>
inline Vec broadcast(const char* unit) {
  if constexpr (DOT) {
    const uint32_t pair = *reinterpret_cast<const LooseWord*>(unit);
    return reinterpret_cast<Vec>(static_cast<uint32_t>(pair) - Words{});
  } else {
    return splat(*reinterpret_cast<const LooseFloat*>(unit));
  }
}

template <bool DOT>
inline Vec multiply_add(Vec a, Vec b, Vec sum) {
#if defined(__AVX512BF16__)
  if constexpr (DOT)
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b));
#endif
  return fma(a, b, sum);
}

typedef Vec Accumulators[ROWS][GROUP];

// sum[r][v] += rows[r][u] * packed[u][v] over all units u, for vectors v >= FIRST.
template <bool DOT, int FIRST>
inline void multiply_rows(const char* const* rows, const float* packed, int units,
                          Accumulators& sum) {
  const char* row[ROWS];
#pragma GCC unroll 4
  for (int r = 0; r < ROWS; r++) row[r] = rows[r];
  const auto step = [&](int u) __attribute__((always_inline)) {
    Vec p[GROUP];
#pragma GCC unroll 4
    for (int v = FIRST; v < GROUP; v++) p[v] = load(packed + u * TILE + v * W);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      const Vec x = broadcast<DOT>(row[r] + 4 * u);
#pragma GCC unroll 4
      for (int v = FIRST; v < GROUP; v++) sum[r][v] = multiply_add<DOT>(x, p[v], sum[r][v]);
    }
  };
  for (int u = 0; u < units; u += 4) {  // a head has a multiple of 4 units
    step(u);
    step(u + 1);
    step(u + 2);
    step(u + 3);
  }
}

// sum[r][v] += values[u][r] * weights[u][v] over units [from, to), for vectors v >= FIRST.
template <bool DOT, int FIRST>
inline void multiply_columns(const char* const* values, int64_t offset, const float* weights,
                             int from, int to, Accumulators& sum) {
  for (int u = from; u < to; u++) {
    const char* value = values[u] + offset;
    Vec p[GROUP];
#pragma GCC unroll 4
    for (int v = FIRST; v < GROUP; v++) p[v] = load(weights + u * TILE + v * W);
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) {
      const Vec x = broadcast<DOT>(value + 4 * r);
#pragma GCC unroll 4
      for (int v = FIRST; v < GROUP; v++) sum[r][v] = multiply_add<DOT>(x, p[v], sum[r][v]);
    }
  }
}

// Gather `count` (at most W) rows of a head into units-major order, zeros where no row is:
// packed[u * TILE + lane] is unit u of row `lane`. Elements are negated if `negate`.
template <Type T>
inline void pack_rows(const char* first, int64_t stride, int count, int d, bool negate,
                      float* packed) {
  constexpr bool DOT = dots<T>();
  constexpr int per_vector = DOT ? 2 * W : W;  // elements that W units hold
  const Vec sign = reinterpret_cast<Vec>(Words{} + (negate ? (DOT ? 0x80008000u : 0x80000000u) : 0));
  const int units = units_of<T>(d);
  for (int u = 0; u < units; u += W) {
    const int element = DOT ? 2 * u : u;
    const int there = d - element < per_vector ? d - element : per_vector;
    Vec rows[W];
#pragma GCC unroll 16
    for (int r = 0; r < W; r++) {
      rows[r] = Vec{};
      if (r >= count) continue;
      const char* from = first + r * stride + static_cast<int64_t>(element) * size_of<T>;
      char tail[4 * W] = {};
      if (there < per_vector) {
        memcpy(tail, from, static_cast<size_t>(there) * size_of<T>);
        from = tail;
      }
      rows[r] = DOT ? load(from) : widen<T>(from);
      rows[r] = reinterpret_cast<Vec>(reinterpret_cast<Words>(rows[r]) ^
                                      reinterpret_cast<Words>(sign));
    }
    transpose(rows);
    const int last = units - u < W ? units - u : W;
    for (int i = 0; i < last; i++) store(packed + (u + i) * TILE, rows[i]);
  }
}

// Widen one row of d elements; reads nothing beyond it. Writes up to W - 1 floats more.
template <Type T>
inline void widen_row(const char* row, int d, float* out) {
  int c = 0;
  for (; c + W <= d; c += W) store(out + c, widen<T>(row + c * size_of<T>));
  if (c == d) return;
  char tail[4 * W] = {};
  memcpy(tail, row + c * size_of<T>, static_cast<size_t>(d - c) * size_of<T>);
  store(out + c, widen<T>(tail));
}

// Pack up to TILE rows that stand a fixed stride apart.
template <Type T>
inline void pack_tile(const char* first, int64_t stride, int count, int d, bool negate,
                      float* packed) {
  for (int r = 0; r < TILE; r += W) {
    const int here = count - r < W ? count - r : W;
    pack_rows<T>(first + r * stride, stride, here < 0 ? 0 : here, d, negate, packed + r);
  }
}

}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill
