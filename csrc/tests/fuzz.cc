// Random calls of the C interface, compared with plain double-precision code.
//
//     fuzz [--attend] [--estimate] [--hostile] [--callers] [--cases N] [--from K] [--seed S]
//
// Case K of a seed is always the same: --from K --cases 1 runs a failed one again.
#include "fuzz.h"

#include <csignal>
#include <cstdlib>
#include <unistd.h>

namespace fuzz {

int64_t Tensor::plan(Rng& rng, const int64_t* sizes, int64_t* strides) {
  int axes[3] = {0, 1, 2};
  if (rng.chance(0.4)) std::swap(axes[1], axes[2]);  // heads last
  if (rng.chance(0.2)) std::swap(axes[0], axes[rng.range(1, 2)]);
  strides[3] = 1;
  int64_t extent = sizes[3];
  for (int place = 2; place >= 0; place--) {
    const int64_t step = extent + (rng.chance(0.3) ? rng.range(1, 40) : 0);
    strides[axes[place]] = step;
    extent += (sizes[axes[place]] - 1) * step;
  }
  return extent;
}

Tensor::Tensor(Rng& rng, int type, int64_t b, int64_t heads, int64_t length, int64_t d)
    : type_(type),
      sizes_{b, heads, length, d},
      offset_(rng.chance(0.5) ? 0 : rng.range(1, 16)),
      memory_((plan(rng, sizes_, strides_) + offset_) * size_of(type)) {}

FUZZ_UNCHECKED void Tensor::fill(Rng& rng, const std::vector<int32_t>& lengths, double size) {
  for (int64_t s = 0; s < sizes_[0]; s++)
    for (int64_t h = 0; h < sizes_[1]; h++)
      for (int64_t i = 0; i < lengths[static_cast<size_t>(s)]; i++)
        for (int64_t c = 0; c < sizes_[3]; c++) {
          // Uniform numbers are cheaper than normal ones; 3.46 makes the variance 1.
          const double x = rng.chance(0.02) ? 0 : (rng.uniform() - 0.5) * 3.46 * size;
          write_element(type_, x, at(s, h, i) + c * size_of(type_));
        }
}

FUZZ_UNCHECKED std::vector<double> Tensor::values() const {
  std::vector<double> all;
  all.reserve(static_cast<size_t>(sizes_[0] * sizes_[1] * sizes_[2] * sizes_[3]));
  Tensor& self = const_cast<Tensor&>(*this);
  for (int64_t s = 0; s < sizes_[0]; s++)
    for (int64_t h = 0; h < sizes_[1]; h++)
      for (int64_t i = 0; i < sizes_[2]; i++)
        for (int64_t c = 0; c < sizes_[3]; c++)
          all.push_back(read_element(type_, self.at(s, h, i) + c * size_of(type_)));
  return all;
}

FUZZ_UNCHECKED void Tensor::check_gaps(const char* name) const {
  if (!memory_.guards_intact()) throw Failure("%s: written outside of the tensor", name);
  Tensor copy = *this;
  for (int64_t s = 0; s < sizes_[0]; s++)
    for (int64_t h = 0; h < sizes_[1]; h++)
      for (int64_t i = 0; i < sizes_[2]; i++)
        std::memset(copy.at(s, h, i), 0xff, static_cast<size_t>(sizes_[3] * size_of(type_)));
  for (int64_t i = 0; i < memory_.size(); i++)
    if (copy.memory_.data()[i] != '\xff')
      throw Failure("%s: written between the rows, at byte %lld of %lld", name,
                    static_cast<long long>(i), static_cast<long long>(memory_.size()));
}

namespace {

const Part PARTS[] = {
    {"attend", true, fuzz_attend},
    {"estimate", true, fuzz_estimate},
    {"hostile", true, fuzz_hostile},
    {"callers", false, fuzz_callers},  // for ThreadSanitizer
};

std::string about;
const char* part_name = "";
uint64_t seed = 1, number = 0;

void tell() {
  std::fprintf(stderr, "%s: case %llu of seed %llu: %s\n", part_name,
               static_cast<unsigned long long>(number), static_cast<unsigned long long>(seed),
               about.c_str());
}

[[maybe_unused]] void crashed(int signal) {
  tell();
  std::fprintf(stderr, "%s: signal %d\n", part_name, signal);
  _exit(1);
}

}  // namespace
}  // namespace fuzz

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
extern "C" void __sanitizer_set_death_callback(void (*callback)());
#endif

int main(int count, char** arguments) {
  using namespace fuzz;
  uint64_t cases = 20000, from = 0;
  bool chosen[sizeof PARTS / sizeof *PARTS] = {}, any = false;
  for (int i = 1; i < count; i++) {
    const std::string option = arguments[i];
    bool known = false;
    for (size_t p = 0; p < sizeof PARTS / sizeof *PARTS; p++)
      if (option == std::string("--") + PARTS[p].name) known = any = chosen[p] = true;
    if (known) continue;
    uint64_t* number_of = option == "--cases"  ? &cases
                          : option == "--from" ? &from
                          : option == "--seed" ? &seed
                                               : nullptr;
    if (number_of == nullptr || i + 1 == count) {
      std::fprintf(stderr, "usage: fuzz [--attend] [--estimate] [--hostile] [--callers]"
                           " [--cases N] [--from K] [--seed S]\n");
      return 2;
    }
    *number_of = std::strtoull(arguments[++i], nullptr, 10);
  }
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  __sanitizer_set_death_callback(tell);
#else
  for (const int signal : {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGABRT}) std::signal(signal, crashed);
#endif
  for (size_t p = 0; p < sizeof PARTS / sizeof *PARTS; p++) {
    if (any ? !chosen[p] : !PARTS[p].usual) continue;
    part_name = PARTS[p].name;
    for (number = from; number < from + cases; number++) {
      Rng rng(seed, number);
      about = "";
      try {
        PARTS[p].run(rng, about);
      } catch (const Failure& failure) {
        tell();
        std::fprintf(stderr, "%s\n", failure.what());
        return 1;
      }
      if ((number + 1 - from) % 5000 == 0) {
        std::printf("%s: %llu cases\n", part_name, static_cast<unsigned long long>(number + 1 - from));
        std::fflush(stdout);
      }
    }
    std::printf("%s: %llu cases of seed %llu passed\n", part_name,
                static_cast<unsigned long long>(cases), static_cast<unsigned long long>(seed));
  }
  return 0;
}
