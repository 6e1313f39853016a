// The indices of the largest values, in linear time.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

namespace sparsefill {

// Floats as unsigned integers of the same order.
inline uint32_t ordered(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  const auto negative = static_cast<uint32_t>(static_cast<int32_t>(bits) >> 31);  // all ones, or 0
  return bits ^ (negative | 0x80000000u);
}

// Picks the k largest of some values; equal ones from the front. Reusable, one per thread.
class Selector {
 public:
  // Write the ascending indices, among first ... count - 1, of the k largest values, and return
  // the end of what was written. Needs k <= count - first, and room for one more than k.
  int32_t* largest(const float* values, int64_t first, int64_t count, int64_t k, int32_t* out) {
    if (k <= 0) return out;
    if (k == count - first) {
      for (int64_t i = first; i < count; i++) *out++ = static_cast<int32_t>(i);
      return out;
    }
    uint32_t threshold = 0;
    int64_t equal = 0;  // how many of those that equal the threshold are taken
    find(values + first, count - first, k, threshold, equal);
    for (int64_t i = first; i < count; i++) {
      const uint32_t x = ordered(values[i]);
      const bool same = x == threshold;
      *out = static_cast<int32_t>(i);
      out += (x > threshold) | (same & (equal > 0));
      equal -= same;
    }
    return out;
  }

 private:
  // The k-th largest value, and how many values equal to it belong to the k largest.
  void find(const float* values, int64_t count, int64_t k, uint32_t& threshold, int64_t& equal) {
    constexpr int shift = 21;  // sign, exponent and two bits: 8 KiB of bins
    bins_.assign(1u << (32 - shift), 0);
    for (int64_t i = 0; i < count; i++) bins_[ordered(values[i]) >> shift]++;
    size_t bin = bins_.size() - 1;
    int64_t above = 0;
    while (above + bins_[bin] < k) above += bins_[bin--];
    inside_.resize(static_cast<size_t>(count) + 1);
    uint32_t* end = inside_.data();
    for (int64_t i = 0; i < count; i++) {
      *end = ordered(values[i]);
      end += *end >> shift == bin;
    }
    uint32_t* place = inside_.data() + (k - above - 1);
    std::nth_element(inside_.data(), place, end, std::greater<uint32_t>());
    threshold = *place;
    equal = k - above;
    for (const uint32_t* x = inside_.data(); x != place; x++) equal -= *x > threshold;
  }

  std::vector<uint32_t> bins_;
  std::vector<uint32_t> inside_;
};

}  // namespace sparsefill
