// What the parts of the fuzz program share: random numbers, element types, guarded memory.
//
// Uses nothing of the library but its C interface, so that no mistake is made twice.
#pragma once

#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <exception>
#include <initializer_list>
#include <string>
#include <vector>

#include "../sparsefill.h"

// The double-precision references are trusted, and slow enough already.
#define FUZZ_UNCHECKED __attribute__((no_sanitize("address", "undefined", "thread")))

namespace fuzz {

constexpr int64_t TILE = 64;  // of the format, see SparseIndex

// What a case did wrong.
class Failure : public std::exception {
 public:
  __attribute__((format(printf, 2, 3))) explicit Failure(const char* format, ...) {
    va_list arguments;
    va_start(arguments, format);
    std::vsnprintf(text_, sizeof text_, format, arguments);
    va_end(arguments);
  }
  const char* what() const noexcept override { return text_; }

 private:
  char text_[512];
};

// splitmix64 (Steele et al. 2014): the same numbers everywhere.
class Rng {
 public:
  Rng(uint64_t seed, uint64_t number) : state_(seed * 0x9e3779b97f4a7c15 ^ number * 0xd1342543de82ef95) {
    next();
  }
  uint64_t next() {
    uint64_t z = (state_ += 0x9e3779b97f4a7c15);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return z ^ (z >> 31);
  }
  // Between `least` and `most`, both possible.
  int64_t range(int64_t least, int64_t most) {
    return least + static_cast<int64_t>(next() % static_cast<uint64_t>(most - least + 1));
  }
  double uniform() { return (static_cast<double>(next() >> 11) + 0.5) * 0x1p-53; }
  bool chance(double p) { return uniform() < p; }
  double normal() { return std::sqrt(-2 * std::log(uniform())) * std::cos(6.283185307 * uniform()); }
  template <typename T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[next() % choices.size()];
  }

 private:
  uint64_t state_;
};

inline int64_t size_of(int type) { return type == 0 ? 4 : 2; }
inline const char* name_of(int type) {
  return type == 0 ? "f32" : type == 1 ? "bf16" : type == 2 ? "f16" : "?";
}
// Half the distance between 1 and the next number.
inline double rounding_of(int type) { return type == 0 ? 0x1p-24 : type == 1 ? 0x1p-8 : 0x1p-11; }

FUZZ_UNCHECKED inline double read_element(int type, const char* from) {
  if (type == 0) {
    float x;
    std::memcpy(&x, from, 4);
    return x;
  }
  uint16_t half;
  std::memcpy(&half, from, 2);
  if (type == 1) {
    const uint32_t bits = static_cast<uint32_t>(half) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double x = exponent == 31 ? (mantissa ? NAN : INFINITY)
                   : exponent     ? std::ldexp(1024 + mantissa, exponent - 25)
                                  : std::ldexp(mantissa, -24);
  return half & 0x8000 ? -x : x;
}

// Write some element near x; which one does not matter, because references read it back.
FUZZ_UNCHECKED inline void write_element(int type, double x, char* to) {
  const float f = static_cast<float>(x);
  if (type == 0) {
    std::memcpy(to, &f, 4);
    return;
  }
  uint32_t bits;
  std::memcpy(&bits, &f, 4);
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (type == 2) {
    int exponent;
    const double mantissa = std::frexp(std::fabs(x), &exponent);  // in [0.5, 1)
    const int shift = exponent < -13 ? 24 : 11 - exponent;        // subnormal below 2^-14
    const auto units = static_cast<uint16_t>(std::ldexp(mantissa, exponent + shift));
    half = exponent < -13 ? units : static_cast<uint16_t>(units + ((exponent + 13) << 10));
    if (x < 0) half |= 0x8000;
  }
  std::memcpy(to, &half, 2);
}

// Memory full of 0xff, which is NaN in every type, between two guards of the same. With
// AddressSanitizer there are none: the memory then ends where nothing may be touched.
class Guarded {
 public:
  explicit Guarded(int64_t bytes) : bytes_(bytes), memory_(static_cast<size_t>(bytes + 2 * GUARD)) {
    memory_.shrink_to_fit();
    clear();
  }
  void clear() { memory_.assign(memory_.size(), static_cast<char>(0xff)); }
  char* data() { return memory_.data() + GUARD; }
  const char* data() const { return memory_.data() + GUARD; }
  int64_t size() const { return bytes_; }
  bool guards_intact() const {
    for (int64_t i = 0; i < GUARD; i++) {
      const size_t after = static_cast<size_t>(GUARD + bytes_ + i);
      if (memory_[static_cast<size_t>(i)] != '\xff' || memory_[after] != '\xff') return false;
    }
    return true;
  }

 private:
#if defined(__SANITIZE_ADDRESS__)
  static constexpr int64_t GUARD = 0;
#else
  static constexpr int64_t GUARD = 256;  // four times the widest store
#endif
  int64_t bytes_;
  std::vector<char> memory_;
};

// A tensor (b, heads, length, d) whose first three axes lie in any order, with gaps.
class Tensor {
 public:
  Tensor(Rng& rng, int type, int64_t b, int64_t heads, int64_t length, int64_t d);

  sparsefill_tensor view() const {
    char* first = const_cast<char*>(memory_.data()) + offset_ * size_of(type_);
    return {first, strides_[0], strides_[1], strides_[2]};
  }
  char* at(int64_t s, int64_t h, int64_t i) {
    return static_cast<char*>(view().data) +
           (s * strides_[0] + h * strides_[1] + i * strides_[2]) * size_of(type_);
  }
  void clear() { memory_.clear(); }
  // Fill the first lengths[s] rows of each sequence with numbers of about this size; the
  // padding and the gaps stay NaN.
  void fill(Rng& rng, const std::vector<int32_t>& lengths, double size);
  // The elements in double, contiguous.
  std::vector<double> values() const;
  // Fail if anything was written that is not an element.
  void check_gaps(const char* name) const;
  bool operator==(const Tensor& other) const {
    return std::memcmp(memory_.data(), other.memory_.data(), static_cast<size_t>(memory_.size())) == 0;
  }

 private:
  static int64_t plan(Rng& rng, const int64_t* sizes, int64_t* strides);

  int type_;
  int64_t sizes_[4];
  int64_t strides_[4];
  int64_t offset_;  // elements before the first: rows are aligned to an element only
  Guarded memory_;
};

// One kind of case. `about` says what is run, should it fail or crash.
struct Part {
  const char* name;
  bool usual;  // run when no part is named
  void (*run)(Rng& rng, std::string& about);
};

void fuzz_attend(Rng& rng, std::string& about);
void fuzz_estimate(Rng& rng, std::string& about);
void fuzz_hostile(Rng& rng, std::string& about);
void fuzz_callers(Rng& rng, std::string& about);

}  // namespace fuzz
