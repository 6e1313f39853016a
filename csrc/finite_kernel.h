// Whether numbers are finite, from their bits: an exponent of ones only means NaN or infinity.
#pragma once

#include "simd.h"

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

// The unsigned integers of an element type, and the bits of its exponent.
template <Type T>
struct Pattern {
  typedef uint16_t Bits __attribute__((vector_size(4 * W)));
  static constexpr uint16_t exponent = T == Type::bf16 ? 0x7f80 : 0x7c00;
};
template <>
struct Pattern<Type::f32> {
  typedef Words Bits;
  static constexpr uint32_t exponent = 0x7f800000;
};

template <Type T>
bool all_finite(const char* data, int64_t count) {
  using Bits = typename Pattern<T>::Bits;
  constexpr int lanes = 4 * W / size_of<T>;
  const Bits exponent = Bits{} + Pattern<T>::exponent;
  Bits broken{};
  const auto look = [&](const char* from, size_t bytes) __attribute__((always_inline)) {
    Bits x{};
    memcpy(&x, from, bytes);
    broken |= reinterpret_cast<Bits>((x & exponent) == exponent);
  };
  int64_t i = 0;
  for (; i + lanes <= count; i += lanes) look(data + i * size_of<T>, sizeof(Bits));
  if (i < count) look(data + i * size_of<T>, static_cast<size_t>((count - i) * size_of<T>));
  bool any = false;
  for (int lane = 0; lane < lanes; lane++) any |= broken[lane] != 0;
  return !any;
}

}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill
