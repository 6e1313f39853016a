// The exponentials and logarithms of softmax, in powers of two.
#pragma once

#include "simd.h"

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr float LN_2 = 0.6931471805599453f;

// A score in powers of two: what softmax exponentiates.
struct Exponent {
  float factor;   // of the score
  float inside;   // 1 / softcap, times the scale; used when capped
  float outside;  // softcap in powers of two
  bool capped;

  explicit Exponent(const Maths& maths) {
    const float scale = maths.scale < 0 ? -maths.scale : maths.scale;  // queries carry the sign
    capped = maths.softcap != 0;
    factor = scale * LOG2_E;
    inside = capped ? scale / maths.softcap : 0;
    outside = maths.softcap * LOG2_E;
  }
  Vec operator()(Vec score) const {
    return capped ? tanh(score * splat(inside)) * splat(outside) : score * splat(factor);
  }
  // How far a score lies below `top`, which is an exponent if capped, else a score.
  template <bool CAPPED>
  Vec below(Vec score, Vec top) const {
    return CAPPED ? (*this)(score) - top : (score - top) * splat(factor);
  }
};

template <bool DOT>
constexpr int degree() {
  return DOT ? 3 : 5;  // weights rounded to bf16 gain nothing from a better polynomial
}

// Natural logarithm of x >= 2^-126, error below 1.2e-7 of its size plus 1.2e-7.
inline Vec ln(Vec x) {
  const Words bits = reinterpret_cast<Words>(x);
  const Words moved = bits - 0x3f400000u;  // so that the mantissa lies in [0.75, 1.5)
  const Ints exponent = reinterpret_cast<Ints>(moved) >> 23;
  const Vec mantissa = reinterpret_cast<Vec>(bits - reinterpret_cast<Words>(exponent << 23));
  const Vec s = (mantissa - splat(1.0f)) / (mantissa + splat(1.0f));
  const Vec square = s * s;
  Vec series = fma(splat(1.0f / 9), square, splat(1.0f / 7));
  series = fma(series, square, splat(1.0f / 5));
  series = fma(series, square, splat(1.0f / 3));
  series = fma(series, square, splat(1.0f));
  return fma(__builtin_convertvector(exponent, Vec), splat(LN_2), splat(2.0f) * s * series);
}

}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill
