// The AMX-BF16 intrinsics in software, for tests on CPUs without AMX (SPARSEFILL_EMULATE_AMX).
//
// Follows the operation sections of Intel's manual: what would fault there, and what only a
// mistake explains, ends the process with a message. Registers are those of a thread.
#pragma once

#include <stdio.h>
#include <stdlib.h>

#include "../simd.h"

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {
namespace emulated {

constexpr int REGISTERS = 8, MAX_ROWS = 16, MAX_BYTES = 64;

struct Registers {
  bool configured;
  int rows[REGISTERS], row_bytes[REGISTERS];
  alignas(64) char data[REGISTERS][MAX_ROWS][MAX_BYTES];
};

thread_local Registers registers;

inline void require(bool holds, const char* what) {
  if (holds) return;
  fprintf(stderr, "AMX emulation: %s\n", what);
  abort();
}

inline void require_register(int t) {
  require(t >= 0 && t < REGISTERS, "there are tile registers 0 to 7 only");
  require(registers.configured, "tile registers used without a configuration");
  require(registers.rows[t] > 0, "tile register used that the configuration leaves out");
}

inline void load_config(const void* from) {
  unsigned char bytes[64];
  memcpy(bytes, from, sizeof bytes);
  uint16_t row_bytes[16];
  memcpy(row_bytes, bytes + 16, sizeof row_bytes);
  const unsigned char* rows = bytes + 48;
  require(!registers.configured, "configuration loaded before the last one was released");
  require(bytes[0] == 1, "configuration of another palette than 1");
  for (int i = 1; i < 16; i++) require(bytes[i] == 0, "reserved bytes or start row not zero");
  for (int t = 0; t < 16; t++) {
    const bool empty = rows[t] == 0 && row_bytes[t] == 0;
    require(t < REGISTERS || empty, "configuration of registers beyond 7");
    require(rows[t] <= MAX_ROWS, "more than 16 rows configured");
    require(row_bytes[t] <= MAX_BYTES, "rows of more than 64 bytes configured");
    require((rows[t] == 0) == (row_bytes[t] == 0), "rows without bytes, or bytes without rows");
  }
  for (int t = 0; t < REGISTERS; t++) {
    registers.rows[t] = rows[t];
    registers.row_bytes[t] = row_bytes[t];
  }
  memset(registers.data, 0, sizeof registers.data);
  registers.configured = true;
}

inline void release() {
  require(registers.configured, "released without a configuration");
  registers.configured = false;
}

inline void zero(int t) {
  require_register(t);
  memset(registers.data[t], 0, sizeof registers.data[t]);
}

inline void load(int t, const void* base, int64_t stride) {
  require_register(t);
  const int bytes = registers.row_bytes[t];
  require(stride == 0 || stride >= bytes, "tile loaded from rows that overlap");
  memset(registers.data[t], 0, sizeof registers.data[t]);
  for (int r = 0; r < registers.rows[t]; r++)
    memcpy(registers.data[t][r], static_cast<const char*>(base) + r * stride,
           static_cast<size_t>(bytes));
}

inline void store(int t, void* base, int64_t stride) {
  require_register(t);
  const int bytes = registers.row_bytes[t];
  require(stride >= bytes, "tile stored to rows that overlap");
  for (int r = 0; r < registers.rows[t]; r++)
    memcpy(static_cast<char*>(base) + r * stride, registers.data[t][r], static_cast<size_t>(bytes));
}

// Zeros for denormals, the sign kept.
inline Vec flush(Vec x) {
  const Words bits = reinterpret_cast<Words>(x);
  const Words sign = bits & 0x80000000u;
  return reinterpret_cast<Vec>((bits & 0x7f800000u) == 0 ? sign : bits);
}
inline Vec low_half(Words pairs) { return flush(reinterpret_cast<Vec>(pairs << 16)); }
inline Vec high_half(Words pairs) { return flush(reinterpret_cast<Vec>(pairs & 0xffff0000u)); }

// c += a b. A row's sums of even and of odd elements grow apart, each by fused multiply-adds,
// and are added to each other and then to c; every step rounds to nearest and flushes.
inline void multiply(int c, int a, int b) {
  require_register(c);
  require_register(a);
  require_register(b);
  const int* rows = registers.rows;
  const int* bytes = registers.row_bytes;
  require(a != b && a != c && b != c, "product of registers that are not three");
  require(bytes[a] % 4 == 0 && bytes[b] % 4 == 0 && bytes[c] % 4 == 0, "rows not of whole pairs");
  require(rows[c] == rows[a], "product and first factor differ in rows");
  require(bytes[c] == bytes[b], "product and second factor differ in columns");
  require(bytes[a] / 4 == rows[b], "first factor's pairs are not the second one's rows");
  static_assert(W * 4 == MAX_BYTES, "a vector holds a row");
  for (int m = 0; m < rows[a]; m++) {
    Vec even{}, odd{};
    for (int k = 0; k < rows[b]; k++) {
      uint32_t pair;
      memcpy(&pair, registers.data[a][m] + 4 * k, sizeof pair);
      const Words left = Words{} + pair;
      Words right;
      memcpy(&right, registers.data[b][k], sizeof right);
      even = flush(fma(low_half(left), low_half(right), even));
      odd = flush(fma(high_half(left), high_half(right), odd));
    }
    Vec sum;
    memcpy(&sum, registers.data[c][m], sizeof sum);
    sum = flush(flush(sum) + flush(even + odd));
    memcpy(registers.data[c][m], &sum, static_cast<size_t>(bytes[c]));
  }
}

}  // namespace emulated
}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill

#undef _tile_loadconfig
#undef _tile_release
#undef _tile_zero
#undef _tile_loadd
#undef _tile_stored
#undef _tile_dpbf16ps
#define _tile_loadconfig(config) emulated::load_config(config)
#define _tile_release() emulated::release()
#define _tile_zero(t) emulated::zero(t)
#define _tile_loadd(t, base, stride) emulated::load(t, base, stride)
#define _tile_stored(t, base, stride) emulated::store(t, base, stride)
#define _tile_dpbf16ps(c, a, b) emulated::multiply(c, a, b)
