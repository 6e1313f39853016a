// attend_tile for bf16 with both matrix products in tile registers (AMX-BF16).
//
// Checked by emulation (tests/amx_emulation.h), never run on hardware, not tuned.
//
// Keys are read in place if they come in evenly spaced 32s of whole 32 dimensions, else
// copied; values are transposed; both once for the heads of a group. Softmax between the
// products is that of attend_kernel.h.
//
// What a full 64x64xd tile takes per head, d being padded to whole 32s: d TDPBF16PS, half of
// them for scores, half for values: 16 cycles each, so 1024 for d = 64. With 2x2 blocks of
// registers (four accumulators, two of keys or values, two of queries or weights) each costs
// one TILELOADD: d of them, and d/4 more for the output so far, except in the first tile.
// TILESTORED: 16 for scores, d/4 for the output. Masked tiles skip the 32x32 blocks of scores
// that no query sees, and the products of 32 keys that none of 32 queries sees.
#pragma once

#if defined(SPARSEFILL_EMULATE_AMX)
#include "tests/amx_emulation.h"
#endif

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

constexpr int EDGE = 16;                // rows of a tile register, and its columns of 32 bits
constexpr int SIDE = 2 * EDGE;          // of a block: keys, queries or dimensions
constexpr int64_t LINE = 4 * TILE;      // bytes of a row of packed queries, scores, weights, output
constexpr int64_t VALUE_LINE = 2 * TILE;  // bytes of a row of transposed values

struct alignas(64) TileConfig {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};
constexpr TileConfig WHOLE_TILES = {1, 0, {}, {64, 64, 64, 64, 64, 64, 64, 64},
                                    {EDGE, EDGE, EDGE, EDGE, EDGE, EDGE, EDGE, EDGE}};
static_assert(sizeof(TileConfig) == 64, "what LDTILECFG reads");

// Holds the thread's tile registers; leaves them released, for whoever uses them next.
struct TileRegisters {
  TileRegisters() { _tile_loadconfig(&WHOLE_TILES); }
  ~TileRegisters() { _tile_release(); }
  TileRegisters(const TileRegisters&) = delete;
  TileRegisters& operator=(const TileRegisters&) = delete;
};

// A block's accumulators are registers 0 to 3, its first factor 4 and 5, its second 6 and 7.
// GCC does not know that tile loads read memory: a block begins with what makes it finish
// its stores, and ends with tile stores, which it knows to write memory.
inline void start_block(const float* sums) {
  __asm__ volatile("" ::: "memory");
  if (sums == nullptr) {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  } else {
    _tile_loadd(0, sums, LINE);
    _tile_loadd(1, sums + EDGE, LINE);
    _tile_loadd(2, sums + EDGE * TILE, LINE);
    _tile_loadd(3, sums + EDGE * TILE + EDGE, LINE);
  }
}

// sums += left right, over 32 elements of 32 rows of `left`, for 32 queries.
inline void multiply_block(const char* left, int64_t left_line, const float* right) {
  _tile_loadd(4, left, left_line);
  _tile_loadd(6, right, LINE);
  _tile_loadd(7, right + EDGE, LINE);
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  _tile_loadd(5, left + EDGE * left_line, left_line);
  _tile_dpbf16ps(2, 5, 6);
  _tile_dpbf16ps(3, 5, 7);
}

inline void finish_block(float* sums) {
  _tile_stored(0, sums, LINE);
  _tile_stored(1, sums + EDGE, LINE);
  _tile_stored(2, sums + EDGE * TILE, LINE);
  _tile_stored(3, sums + EDGE * TILE + EDGE, LINE);
}

// Elements c to c + 31 of a row of d, zeros behind its end.
inline __m512i row_part(const char* row, int c, int d) {
  const __mmask32 there = d - c >= SIDE ? ~__mmask32{0} : (__mmask32{1} << (d - c)) - 1;
  return _mm512_maskz_loadu_epi16(there, row + 2 * c);
}

// Where a tile's keys are for the registers to load, and how many bytes apart.
struct Lines {
  const char* first;
  int64_t apart;
};

// The keys in place if they can be, else a copy with zeros up to whole blocks.
inline Lines place_keys(const Rows& rows, int d, float* buffer) {
  const int64_t apart = rows.k[1] - rows.k[0];
  if (rows.count % SIDE == 0 && d % SIDE == 0) {
    int64_t uneven = 0;
    for (int j = 1; j < rows.count; j++) uneven |= (rows.k[j] - rows.k[j - 1]) ^ apart;
    if (uneven == 0) return {rows.k[0], apart};
  }
  const int64_t line = 2 * room_of<Type::bf16>(d);
  char* copy = reinterpret_cast<char*>(buffer);
  for (int j = 0; j < (rows.count + SIDE - 1) / SIDE * SIDE; j++) {
    for (int c = 0; c < d; c += SIDE) {
      const __m512i part = j < rows.count ? row_part(rows.k[j], c, d) : __m512i{};
      store(copy + j * line + 2 * c, reinterpret_cast<Vec>(part));
    }
  }
  return {copy, line};
}

// Row c of the result is dimension c of all keys, with zeros up to whole blocks.
inline const char* transpose_values(const Rows& rows, int d, float* buffer) {
  char* lines = reinterpret_cast<char*>(buffer);
  for (int key = 0; key < rows.count; key += SIDE) {
    for (int c = 0; c < d; c += SIDE) {
      const auto part = [&](int j) __attribute__((always_inline)) {
        return j < rows.count ? row_part(rows.v[j], c, d) : __m512i{};
      };
      Vec pairs[W];  // of neighbouring keys: of dimensions 0-3, 8-11, 16-19 and 24-27
#pragma GCC unroll 16
      for (int i = 0; i < W; i++)
        pairs[i] = reinterpret_cast<Vec>(
            _mm512_unpacklo_epi16(part(key + 2 * i), part(key + 2 * i + 1)));
      transpose(pairs);
      char* to = lines + c * VALUE_LINE + 2 * key;
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) store(to + (i / 4 * 8 + i % 4) * VALUE_LINE, pairs[i]);
#pragma GCC unroll 16
      for (int i = 0; i < W; i++)
        pairs[i] = reinterpret_cast<Vec>(
            _mm512_unpackhi_epi16(part(key + 2 * i), part(key + 2 * i + 1)));
      transpose(pairs);
#pragma GCC unroll 16
      for (int i = 0; i < W; i++) store(to + (i / 4 * 8 + i % 4 + 4) * VALUE_LINE, pairs[i]);
    }
  }
  return lines;
}

// Mask the scores that some query of their vector sees, and raise `top` to the highest.
template <bool MASKED>
inline void raise_top(const Rows& rows, const int* seen, float* scores, float* top) {
  for (int v = 0; v < VECTORS; v++) {
    Vec own[ROWS];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; r++) own[r] = load(top + v * W);
    for (int row = 0; row < seen[v]; row += ROWS) {
#pragma GCC unroll 4
      for (int r = 0; r < ROWS; r++) {
        float* at = scores + (row + r) * TILE + v * W;
        Vec s = load(at);
        if constexpr (MASKED) {
          s = sees(rows.ahead[row + r], s, splat(LOWEST), v);
          store(at, s);
        }
        own[r] = max(own[r], s);
      }
    }
    store(top + v * W, max(max(own[0], own[1]), max(own[2], own[3])));
  }
}

template <bool MASKED>
inline void score_blocks(const Rows& rows, const Rows* fetch, int row_bytes, Lines keys,
                         const float* q, int units, const int* seen, float* scores, float* top) {
  for (int key = 0; key < rows.count; key += SIDE) {
    if (fetch != nullptr) {
      for (int r = key; r < key + SIDE && r < fetch->count; r++) {
        fetch_row(fetch->k[r], row_bytes);
        fetch_row(fetch->v[r], row_bytes);
      }
    }
    for (int query = 0; query < TILE; query += SIDE) {
      if (MASKED && rows.ahead[key] >= query + SIDE) continue;
      start_block(nullptr);
      for (int u = 0; u < units; u += EDGE)
        multiply_block(keys.first + key * keys.apart + 4 * u, keys.apart, q + u * TILE + query);
      finish_block(scores + key * TILE + query);
    }
  }
  raise_top<MASKED>(rows, seen, scores, top);
}

// Multiply the output so far of 32 dimensions and 32 queries.
inline void rescale_block(float* out, const float* alpha) {
  const Vec left = load(alpha), right = load(alpha + W);
  for (int c = 0; c < SIDE; c++) {
    store(out + c * TILE, load(out + c * TILE) * left);
    store(out + c * TILE + W, load(out + c * TILE + W) * right);
  }
}

// out = alpha * out + V^T P. Weights that are not seen become zeros up to whole blocks.
inline void weigh_blocks(const char* values, const int* seen, int d, bool first, bool moved,
                         float* weights, const Head& head) {
  for (int v = 0; v < VECTORS; v += 2) {
    const int most = seen[v] > seen[v + 1] ? seen[v] : seen[v + 1];
    const int units = (most + SIDE - 1) / SIDE * EDGE;
    if (units == 0 && !first) continue;  // nothing is added, so no top moved either
    for (int w = v; w < v + 2; w++)
      for (int u = seen[w] / 2; u < units; u++) store(weights + u * TILE + w * W, Vec{});
    const float* alpha = head.alpha + v * W;
    const bool rescale = moved && (any_greater(splat(1.0f), load(alpha)) ||
                                   any_greater(splat(1.0f), load(alpha + W)));
    for (int row = 0; row < d; row += SIDE) {
      float* out = head.out + row * TILE + v * W;
      if (rescale) rescale_block(out, alpha);
      start_block(first ? nullptr : out);
      for (int u = 0; u < units; u += EDGE)
        multiply_block(values + row * VALUE_LINE + 4 * u, VALUE_LINE, weights + u * TILE + v * W);
      finish_block(out);
    }
  }
}

template <bool MASKED>
inline void attend_blocks(const Rows& rows, const Rows* fetch, const Maths& maths,
                          const Exponent& exponent, const Head* heads, int count, bool first,
                          float* scores, float* weights, float* key_buffer, float* value_buffer) {
  const int d = maths.d;
  const int wide = room_of<Type::bf16>(d);
  int seen[VECTORS];
  for (int v = 0; v < VECTORS; v++) seen[v] = rows_seen(rows, v);
  const Lines keys = place_keys(rows, d, key_buffer);
  const char* values = transpose_values(rows, d, value_buffer);
  for (int i = 0; i < count; i++) {
    alignas(64) float raised[TILE];
    memcpy(raised, heads[i].top, sizeof raised);
    score_blocks<MASKED>(rows, i == 0 ? fetch : nullptr, 2 * d, keys, heads[i].q, wide / 2, seen,
                         scores, raised);
    const bool moved =
        soften<true, MASKED>(rows, seen, exponent, heads[i], raised, scores, weights) && !first;
    weigh_blocks(values, seen, wide, first, moved, weights, heads[i]);
  }
}

template <>
inline void attend_tile<Type::bf16, false>(Rows& rows, const Rows* fetch, const Maths& maths,
                                           const Exponent& exponent, const Head* heads, int count,
                                           bool first, float* scores, float* weights, float* keys,
                                           float* buffer) {
  attend_blocks<false>(rows, fetch, maths, exponent, heads, count, first, scores, weights, keys,
                       buffer);
}

template <>
inline void attend_tile<Type::bf16, true>(Rows& rows, const Rows* fetch, const Maths& maths,
                                          const Exponent& exponent, const Head* heads, int count,
                                          bool first, float* scores, float* weights, float* keys,
                                          float* buffer) {
  attend_blocks<true>(rows, fetch, maths, exponent, heads, count, first, scores, weights, keys,
                      buffer);
}

}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill
