// Vectors of floats, as wide as the instruction set of the object being compiled.
//
// Everything here has internal linkage: an object built for one instruction set must not
// export code that the linker could choose for another (see kernels.h).
#pragma once

#include <string.h>

#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>
#elif defined(__SSE2__)
#include <emmintrin.h>
#elif defined(__ARM_NEON)
#include <arm_neon.h>
#endif

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

#if defined(__AVX512F__)
constexpr int W = 16;
#elif defined(__AVX2__)
constexpr int W = 8;
#else
constexpr int W = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * W)));
typedef int32_t Ints __attribute__((vector_size(4 * W)));
typedef uint32_t Words __attribute__((vector_size(4 * W)));
typedef float LooseVec __attribute__((vector_size(4 * W), aligned(1), may_alias));
typedef uint32_t LooseWord __attribute__((aligned(1), may_alias));
typedef float LooseFloat __attribute__((aligned(1), may_alias));

inline Vec load(const void* p) { return *static_cast<const LooseVec*>(p); }
inline void store(void* p, Vec x) { *static_cast<LooseVec*>(p) = x; }
inline Vec splat(float x) { return x - Vec{}; }
inline Ints splat_int(int32_t x) { return x - Ints{}; }

inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(__ARM_NEON)
  return vfmaq_f32(c, a, b);
#else
  return a * b + c;
#endif
}

inline Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_max_ps(a, b);
#elif defined(__AVX2__)
  return _mm256_max_ps(a, b);
#elif defined(__SSE2__)
  return _mm_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}

inline bool any_greater(Vec a, Vec b) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ) != 0;
#elif defined(__AVX2__)
  return _mm256_movemask_ps(_mm256_cmp_ps(a, b, _CMP_GT_OQ)) != 0;
#elif defined(__SSE2__)
  return _mm_movemask_ps(_mm_cmpgt_ps(a, b)) != 0;
#else
  Ints greater = a > b;
  int32_t any = 0;
  for (int i = 0; i < W; i++) any |= greater[i];
  return any != 0;
#endif
}

inline float largest(Vec x) {
  float top = x[0];
  for (int i = 1; i < W; i++) top = x[i] > top ? x[i] : top;
  return top;
}

// ---- lanes ----------------------------------------------------------------------------

template <int...>
struct Lanes {};
#if defined(__AVX512F__)
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15>;
#elif defined(__AVX2__)
using AllLanes = Lanes<0, 1, 2, 3, 4, 5, 6, 7>;
#else
using AllLanes = Lanes<0, 1, 2, 3>;
#endif

template <int... L>
inline Ints iota_of(Lanes<L...>) {
  return Ints{L...};
}
inline Ints iota() { return iota_of(AllLanes{}); }

template <int S, int... L>
inline void swap_blocks(Vec& a, Vec& b, Lanes<L...>) {
  const Vec low = __builtin_shufflevector(a, b, ((L & S) ? L - S + W : L)...);
  b = __builtin_shufflevector(a, b, ((L & S) ? L + W : L + S)...);
  a = low;
}

template <int S>
inline void transpose_step(Vec* rows) {
#pragma GCC unroll 16
  for (int i = 0; i < W; i++)
    if (!(i & S)) swap_blocks<S>(rows[i], rows[i + S], AllLanes{});
}

// Transpose a W x W block of 32-bit units held in registers.
inline void transpose(Vec* rows) {
  transpose_step<1>(rows);
  transpose_step<2>(rows);
  if constexpr (W >= 8) transpose_step<4>(rows);
  if constexpr (W >= 16) transpose_step<8>(rows);
}

template <int BY, int... L>
inline Vec shift_lanes_of(Vec before, Vec x, Lanes<L...>) {
  return __builtin_shufflevector(before, x, (W - BY + L)...);
}

// Move lanes up by BY places; the last BY lanes of `before` come in below.
template <int BY>
inline Vec shift_lanes(Vec before, Vec x) {
  if constexpr (BY == 0) return x;
  return shift_lanes_of<BY>(before, x, AllLanes{});
}

// ---- exp2 -----------------------------------------------------------------------------

// 2^x for x <= 127; below -126 the result is 2^-126. Minimax polynomials of the relative
// error on [-0.5, 0.5]: 7.5e-5 for degree 3; for degree 5, of those that give 2^0 = 1, so
// that what does not move is not rescaled: 9.2e-8, and 2e-7 with rounding.
template <int DEGREE>
inline Vec exp2(Vec x) {
  static_assert(DEGREE == 3 || DEGREE == 5, "no polynomial of this degree");
  const Vec magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer
  x = max(x, splat(-126.0f));
  const Vec rounded = x + magic;
  const Vec f = x - (rounded - magic);
  Vec p;
  if constexpr (DEGREE == 3) {
    p = fma(splat(0.05517166909f), f, splat(0.24261112222f));
    p = fma(p, f, splat(0.69326098545f));
    p = fma(p, f, splat(0.99992807354f));
  } else {
    p = fma(splat(0.00132647272f), f, splat(0.00967151269f));
    p = fma(p, f, splat(0.05550733744f));
    p = fma(p, f, splat(0.24022242085f));
    p = fma(p, f, splat(0.69314697760f));
    p = fma(p, f, splat(1.0f));
  }
  const Words exponent = reinterpret_cast<Words>(rounded) << 23;
  return reinterpret_cast<Vec>(reinterpret_cast<Words>(p) + exponent);
}

// tanh(x), relative error below 5e-7: its series near 0, exp2 elsewhere.
inline Vec tanh(Vec x) {
  const float twice_log2_e = 2.8853900817779268f;
  const Vec limit = splat(-20.0f);
  const Vec e = exp2<5>(max(-max(-x, limit), limit) * splat(twice_log2_e));
  const Vec far = (e - splat(1.0f)) / (e + splat(1.0f));
  const Vec square = x * x;
  Vec series = fma(splat(62.0f / 2835), square, splat(-17.0f / 315));
  series = fma(series, square, splat(2.0f / 15));
  series = fma(series, square, splat(-1.0f / 3));
  series = fma(series * square, x, x);
  return square < splat(0.09f) ? series : far;
}

// ---- element types --------------------------------------------------------------------

inline float f16_to_float(uint16_t h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000) << 16;
  const uint32_t magnitude = h & 0x7fff;
  float value;
  if (magnitude >= 0x0400) {
    const uint32_t bits = (magnitude << 13) + (112u << 23);
    memcpy(&value, &bits, 4);
    if (magnitude >= 0x7c00) value = magnitude == 0x7c00 ? __builtin_inff() : __builtin_nanf("");
  } else {
    value = static_cast<float>(magnitude) * 0x1p-24f;
  }
  return sign ? -value : value;
}

inline uint16_t float_to_f16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000);
  const float a = __builtin_fabsf(x);
  uint16_t magnitude;
  if (!(a < 65520.0f)) {
    magnitude = a != a ? 0x7e00 : 0x7c00;
  } else if (a < 0x1p-14f) {
    const float shifted = a + 0.5f;  // the 24 bits of 0.5 + a end at 2^-24: rounds to a subnormal
    uint32_t low;
    memcpy(&low, &shifted, 4);
    magnitude = static_cast<uint16_t>(low - 0x3f000000u);
  } else {
    memcpy(&bits, &a, 4);
    bits += 0x0fff + ((bits >> 13) & 1);  // round to nearest, ties to even
    magnitude = static_cast<uint16_t>((bits >> 13) - (112u << 10));
  }
  return sign | magnitude;
}

template <Type T>
constexpr int size_of = T == Type::f32 ? 4 : 2;

// Widen W elements to float.
template <Type T>
inline Vec widen(const void* p) {
  if constexpr (T == Type::f32) {
    return load(p);
  } else if constexpr (T == Type::bf16) {
    typedef uint16_t Halves __attribute__((vector_size(2 * W)));
    Halves h;
    memcpy(&h, p, sizeof h);
    return reinterpret_cast<Vec>(__builtin_convertvector(h, Words) << 16);
  } else {
#if defined(__AVX512F__)
    return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
#elif defined(__AVX2__)
    return _mm256_cvtph_ps(_mm_loadu_si128(static_cast<const __m128i*>(p)));
#else
    uint16_t h[W];
    memcpy(h, p, sizeof h);
    Vec x{};
    for (int i = 0; i < W; i++) x[i] = f16_to_float(h[i]);
    return x;
#endif
  }
}

// Round W floats to elements (to nearest, ties to even).
template <Type T>
inline void narrow(void* p, Vec x) {
  if constexpr (T == Type::f32) {
    store(p, x);
  } else if constexpr (T == Type::bf16) {
    typedef uint16_t Halves __attribute__((vector_size(2 * W)));
    Words bits = reinterpret_cast<Words>(x);
    bits += 0x7fff + ((bits >> 16) & 1);
    const Halves h = __builtin_convertvector(bits >> 16, Halves);
    memcpy(p, &h, sizeof h);
  } else {
#if defined(__AVX512F__)
    _mm256_storeu_si256(static_cast<__m256i*>(p),
                        _mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#elif defined(__AVX2__)
    _mm_storeu_si128(static_cast<__m128i*>(p),
                     _mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    uint16_t h[W];
    for (int i = 0; i < W; i++) h[i] = float_to_f16(x[i]);
    memcpy(p, h, sizeof h);
#endif
  }
}

}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill
