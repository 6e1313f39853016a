// What the parts of the library share: the instruction set in use, errors, threads.
#pragma once

#include <atomic>
#include <cstdarg>
#include <cstdlib>
#include <exception>
#include <memory>
#include <vector>

#include "kernels.h"
#include "sparsefill.h"

namespace sparsefill {

// A refusal, to be returned through the C interface.
class Refusal : public std::exception {
 public:
  __attribute__((format(printf, 2, 3))) explicit Refusal(const char* format, ...);
  const char* what() const noexcept override { return text_; }

 private:
  char text_[SPARSEFILL_MESSAGE];
};

// Run `body` and turn what it throws into a status and a message.
int guard(char* message, void (*body)(void*), void* context);

template <typename Body>
int guarded(char* message, Body body) {
  return guard(message, [](void* context) { (*static_cast<Body*>(context))(); }, &body);
}

// The kernels of the named instruction set, or of the best when `isa` is null.
const Kernels& find_kernels(const char* isa);

// Refuse sizes, types and lengths that the kernels do not serve.
void check_layer(const sparsefill_layer& layer);
void check_index(const sparsefill_layer& layer, const sparsefill_index& index);

// 64-byte aligned memory, not initialised.
struct Free {
  void operator()(char* p) const { std::free(p); }
};
using Bytes = std::unique_ptr<char, Free>;
Bytes allocate(size_t bytes);

// Ask for large pages where memory is about to be written for the first time: faulting it in
// by small ones can cost more than a sparse layer.
void prefer_large_pages(void* memory, size_t bytes);

// Run body(context, worker) on at most `threads` workers, the caller being one.
void run_on_threads(int threads, void (*body)(void*, int), void* context);

// Run body(worker) on at most `threads` workers, numbered from 0; whoever runs must do all the
// work there is. The first exception is thrown.
template <typename Body>
void parallel(int threads, const Body& body) {
  run_on_threads(
      threads, [](void* context, int worker) { (*static_cast<const Body*>(context))(worker); },
      const_cast<Body*>(&body));
}

// Hand out 0, 1, ..., count - 1 to several workers.
class Counter {
 public:
  explicit Counter(int64_t count) : count_(count) {}
  bool take(int64_t& item) { return (item = next_.fetch_add(1, std::memory_order_relaxed)) < count_; }

 private:
  std::atomic<int64_t> next_{0};
  const int64_t count_;
};

inline int64_t blocks_of(int64_t length) { return (length + TILE - 1) / TILE; }

inline int bytes_of(Type type) { return type == Type::f32 ? 4 : 2; }

// A tensor with strides in bytes.
struct View {
  char* data;
  int64_t sequence, head, row;
  View(const sparsefill_tensor& t, Type type)
      : data(static_cast<char*>(t.data)),
        sequence(t.sequence * bytes_of(type)),
        head(t.head * bytes_of(type)),
        row(t.row * bytes_of(type)) {}
  char* at(int64_t s, int64_t h, int64_t i) const {
    return data + s * sequence + h * head + i * row;
  }
};

}  // namespace sparsefill
