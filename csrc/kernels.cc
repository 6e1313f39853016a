// The kernels of one instruction set: this file is compiled once for each.
#include "kernels.h"

#include "attend_kernel.h"
#include "finite_kernel.h"
#include "probe_kernel.h"

#define SPARSEFILL_TEXT_OF(x) #x
#define SPARSEFILL_TEXT(x) SPARSEFILL_TEXT_OF(x)

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

void attend(Type type, const Maths& maths, const RowBlock& block, const RowBlock* next,
            char* scratch) {
  if (type == Type::f32) attend_block<Type::f32>(maths, block, next, scratch);
  if (type == Type::bf16) {
#if defined(SPARSEFILL_AMX)
    const TileRegisters registers;
#endif
    attend_block<Type::bf16>(maths, block, next, scratch);
  }
  if (type == Type::f16) attend_block<Type::f16>(maths, block, next, scratch);
}

size_t attend_bytes(Type type, int d, int heads) {
  return type == Type::bf16 ? attend_scratch<Type::bf16>(d, heads)
                            : attend_scratch<Type::f32>(d, heads);
}

int shared_heads(Type type, int d) {
  const size_t budget = 384 * 1024;  // bytes of a core's L2 cache that heads may fill
  const size_t one = 4 * (type == Type::bf16 ? head_floats<Type::bf16>(d) : head_floats<Type::f32>(d));
  const size_t heads = budget / one;
  return static_cast<int>(heads < 1 ? 1 : heads < MAX_SHARED ? heads : MAX_SHARED);
}

void score(Type type, const Maths& maths, const Probe* probes, int count, Tile tile,
           const float* reference, float* sums, char* weights, char* scratch) {
  const auto of = type == Type::f32    ? score_tile<Type::f32>
                  : type == Type::bf16 ? score_tile<Type::bf16>
                                       : score_tile<Type::f16>;
  of(maths, probes, count, tile, reference, sums, weights, scratch);
}

size_t score_bytes(Type, int d) { return score_scratch<Type::f32>(d); }

void top(Type type, const Maths& maths, const Probe& probe, Tile tile, float* top, char* scratch) {
  const auto of = type == Type::f32    ? score_top<Type::f32>
                  : type == Type::bf16 ? score_top<Type::bf16>
                                       : score_top<Type::f16>;
  of(maths, probe, tile, top, scratch);
}

void lines(Type type, const char* weights, const float* factors, int queries, float* columns,
           float* diagonals) {
  const auto of = type == Type::bf16 ? add_lines<Type::bf16> : add_lines<Type::f32>;
  of(weights, factors, queries, columns, diagonals);
}

void pool(Type type, const char* rows, int64_t stride, int64_t count, int d, float* total) {
  const auto of = type == Type::f32    ? add_rows<Type::f32>
                  : type == Type::bf16 ? add_rows<Type::bf16>
                                       : add_rows<Type::f16>;
  of(rows, stride, count, d, total);
}

bool finite(Type type, const char* data, int64_t count) {
  const auto of = type == Type::f32    ? all_finite<Type::f32>
                  : type == Type::bf16 ? all_finite<Type::bf16>
                                       : all_finite<Type::f16>;
  return of(data, count);
}

template <bool DOT>
double burn_registers(int64_t rounds) {
  constexpr int chains = W == 16 ? 24 : 12;
  volatile float unknown = 0.25f;  // so that no two chains are known to be the same
  Vec sum[chains];
  for (int c = 0; c < chains; c++) sum[c] = splat(unknown);
  const Vec a = splat(unknown), b = splat(unknown);
#pragma GCC unroll 1
  for (int64_t i = 0; i < rounds; i++) {
#pragma GCC unroll 24
    for (int c = 0; c < chains; c++) sum[c] = multiply_add<DOT>(a, b, sum[c]);
  }
  Vec total = sum[0];
  for (int c = 1; c < chains; c++) total += sum[c];
  unknown = total[0];
  return static_cast<double>(rounds) * chains * W * (DOT ? 4 : 2);
}

double burn(Type type, int64_t rounds) {
  if (type != Type::bf16) return burn_registers<false>(rounds);
  return dots<Type::bf16>() ? burn_registers<dots<Type::bf16>()>(rounds) : 0;
}

const Kernels table = {SPARSEFILL_TEXT(SPARSEFILL_ISA),
                       attend,
                       attend_bytes,
                       shared_heads,
                       score,
                       score_bytes,
                       top,
                       lines,
                       multiply,
                       pool,
                       finite,
                       burn};

}  // namespace

const Kernels* kernels() { return &table; }

}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill
