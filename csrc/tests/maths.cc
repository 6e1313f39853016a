// The vector maths of one instruction set against the standard library's double precision.
//
// Compiled once per instruction set with SPARSEFILL_ISA; run by itself only where the CPU has it.
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <initializer_list>

#include "../softmax.h"
#include "../sparsefill.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace sparsefill {
namespace SPARSEFILL_ISA {
namespace {

int failures = 0;

// Report the first few places where something does not hold.
void expect(bool holds, const char* what, double at, double got, double expected) {
  if (holds || ++failures > 20) return;
  std::fprintf(stderr, "%s: %s at %.9g: got %.9g, expected %.9g\n", TEXT(SPARSEFILL_ISA), what, at, got,
               expected);
}

float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

// Call check(x, f(x)) for every `step`-th float from `least` up to `most`, both of one sign.
template <typename Function, typename Check>
void sweep(float least, float most, uint32_t step, const Function& f, const Check& check) {
  const bool negative = least < 0 || std::signbit(least);
  const uint32_t first = bits_of(negative ? most : least), last = bits_of(negative ? least : most);
  for (uint64_t bits = first; bits <= last; bits += static_cast<uint64_t>(step) * W) {
    float in[W], out[W];
    for (uint64_t i = 0; i < W; i++) {
      const uint64_t own = bits + i * step;
      in[i] = float_of(static_cast<uint32_t>(own < last ? own : last));
    }
    store(out, f(load(in)));
    for (int i = 0; i < W; i++) check(in[i], out[i]);
  }
}

// Where the polynomial is below 1 just above -126 the result is subnormal, and its last place
// is 2^-149: hence the absolute term, which elsewhere is far below the relative one.
template <int DEGREE>
void check_exp2(double bound) {
  const auto f = [](Vec x) { return exp2<DEGREE>(x); };
  const char* name = DEGREE == 3 ? "exp2<3>" : "exp2<5>";
  const auto close = [&](float x, float got) {
    const double expected = std::exp2(static_cast<double>(x));
    expect(std::fabs(got - expected) <= bound * expected, name, x, got, expected);
  };
  sweep(0.0f, 127.0f, 97, f, close);
  sweep(-125.5f, -0.0f, 97, f, close);
  const auto tiny = [&](float x, float got) {
    const double expected = std::exp2(x < -126.0f ? -126.0 : static_cast<double>(x));
    expect(got >= 0 && std::fabs(got - expected) <= 2 * bound * expected, name, x, got, expected);
  };
  sweep(-140.0f, -125.5f, 1, f, tiny);
  sweep(-FLT_MAX, -140.0f, 9973, f, tiny);
}

void check_tanh() {
  const auto close = [](float x, float got) {
    const double expected = std::tanh(static_cast<double>(x));
    expect(std::fabs(got - expected) <= 5e-7 * std::fabs(expected), "tanh", x, got, expected);
  };
  const auto f = [](Vec x) { return tanh(x); };
  sweep(FLT_MIN, 1e30f, 211, f, close);
  sweep(-1e30f, -FLT_MIN, 211, f, close);
  float out[W];
  store(out, tanh(Vec{}));
  for (int i = 0; i < W; i++) expect(out[i] == 0, "tanh", 0, out[i], 0);
}

void check_ln() {
  const auto close = [](float x, float got) {
    const double expected = std::log(static_cast<double>(x));
    expect(std::fabs(got - expected) <= 1.2e-7 * (std::fabs(expected) + 1), "ln", x, got, expected);
  };
  sweep(FLT_MIN, FLT_MAX, 211, [](Vec x) { return ln(x); }, close);
  sweep(0.5f, 2.0f, 1, [](Vec x) { return ln(x); }, close);
}

// Every half, both ways. The expected values come from ldexp and the definition of binary16.
void check_f16() {
  for (uint32_t first = 0; first < 0x10000; first += W) {
    uint16_t halves[W], back[W];
    float wide[W];
    for (uint32_t i = 0; i < W; i++) halves[i] = static_cast<uint16_t>(first + i);
    const Vec x = widen<Type::f16>(halves);
    store(wide, x);
    narrow<Type::f16>(back, x);
    for (int i = 0; i < W; i++) {
      const int exponent = halves[i] >> 10 & 31, mantissa = halves[i] & 1023;
      const double size = exponent == 31 ? (mantissa ? NAN : INFINITY)
                          : exponent     ? std::ldexp(1024 + mantissa, exponent - 25)
                                         : std::ldexp(mantissa, -24);
      const double expected = halves[i] & 0x8000 ? -size : size;
      for (const float got : {wide[i], f16_to_float(halves[i])}) {
        const bool same = std::isnan(expected) ? std::isnan(got)
                                               : got == expected && std::signbit(got) == std::signbit(expected);
        expect(same, "f16 to float", halves[i], got, expected);
      }
      for (const uint16_t got : {back[i], float_to_f16(wide[i])}) {
        const bool nan = (got & 0x7c00) == 0x7c00 && (got & 1023);
        expect(std::isnan(expected) ? nan : got == halves[i], "float to f16", wide[i], got, halves[i]);
      }
    }
  }
  // Between two neighbours: below, at and above the middle, which goes to the even one.
  for (uint32_t half = 0; half < 0x7c00; half++) {
    const double low = f16_to_float(static_cast<uint16_t>(half));
    const double high = half == 0x7bff ? 65536.0 : f16_to_float(static_cast<uint16_t>(half + 1));
    const float middle = static_cast<float>((low + high) / 2);  // exact
    const struct {
      float x;
      uint32_t expected;
    } ways[] = {{std::nextafter(middle, 0.0f), half},
                {middle, half + (half & 1)},
                {std::nextafter(middle, INFINITY), half + 1}};
    for (const auto& way : ways)
      for (const uint32_t sign : {0u, 1u}) {
        const float x = sign ? -way.x : way.x;
        uint16_t lanes[W];
        narrow<Type::f16>(lanes, splat(x));
        for (const uint16_t got : {lanes[0], lanes[W - 1], float_to_f16(x)})
          expect(got == (way.expected | sign << 15), "float to f16", x, got, way.expected | sign << 15);
      }
  }
}

// Every bf16 and what lies around the middle between it and the next.
void check_bf16() {
  for (uint32_t half = 0; half < 0x7f80; half++)
    for (const uint32_t sign : {0u, 0x80000000u}) {
      const uint32_t bits = sign | half << 16;
      const struct {
        uint32_t bits, expected;
      } ways[] = {{bits, bits >> 16},
                  {bits + 0x7fff, bits >> 16},
                  {bits + 0x8000, (bits >> 16) + (half & 1)},
                  {bits + 0x8001, (bits >> 16) + 1}};
      for (const auto& way : ways) {
        uint16_t lanes[W];
        narrow<Type::bf16>(lanes, reinterpret_cast<Vec>(Words{} + way.bits));
        for (const uint16_t got : {lanes[0], lanes[W - 1]})
          expect(got == way.expected, "float to bf16", float_of(way.bits), got, way.expected);
      }
      uint16_t halves[W];
      float wide[W];
      for (uint16_t& h : halves) h = static_cast<uint16_t>(bits >> 16);
      store(wide, widen<Type::bf16>(halves));
      for (const float got : wide) expect(bits_of(got) == bits, "bf16 to float", bits, got, float_of(bits));
    }
}

template <int BY>
void check_shift(Vec before, Vec x) {
  float out[W];
  store(out, shift_lanes<BY>(before, x));
  for (int i = 0; i < W; i++) {
    const float expected = i < BY ? before[W - BY + i] : x[i - BY];
    expect(out[i] == expected, "shift_lanes", BY, out[i], expected);
  }
  if constexpr (BY + 1 < W) check_shift<BY + 1>(before, x);
}

void check_lanes() {
  Vec rows[W], before, x;
  for (int r = 0; r < W; r++)
    for (int i = 0; i < W; i++) rows[r][i] = static_cast<float>(100 * r + i);
  for (int i = 0; i < W; i++) before[i] = static_cast<float>(i), x[i] = static_cast<float>(1000 + i);
  transpose(rows);
  for (int r = 0; r < W; r++)
    for (int i = 0; i < W; i++) {
      const float expected = static_cast<float>(100 * i + r);
      expect(rows[r][i] == expected, "transpose", r, rows[r][i], expected);
    }
  check_shift<0>(before, x);
  for (int i = 0; i < W; i++) {
    expect(iota()[i] == i, "iota", i, iota()[i], i);
    Vec one{};
    one[i] = 1;
    expect(any_greater(one, Vec{}) && !any_greater(Vec{}, one), "any_greater", i, 0, 1);
    expect(largest(one) == 1 && largest(-one) == (W > 1 ? 0 : -1), "largest", i, largest(one), 1);
  }
}

int run() {
  check_exp2<3>(7.5e-5);
  check_exp2<5>(2e-7);
  check_tanh();
  check_ln();
  check_f16();
  check_bf16();
  check_lanes();
  std::printf("%s: %s\n", TEXT(SPARSEFILL_ISA), failures ? "FAILED" : "passed");
  return failures != 0;
}

}  // namespace
}  // namespace SPARSEFILL_ISA
}  // namespace sparsefill

int main() {
  int available = 0;
  for (int i = 0; const char* name = sparsefill_isa(i, &available); i++)
    if (std::strcmp(name, TEXT(SPARSEFILL_ISA)) == 0 && available)
      return sparsefill::SPARSEFILL_ISA::run();
  std::printf("%s: skipped, not on this CPU\n", TEXT(SPARSEFILL_ISA));
  return 0;
}
