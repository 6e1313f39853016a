// Whether a layer's inputs are finite: read once, at the speed of memory.
#include <algorithm>

#include "library.h"

namespace sparsefill {
namespace {

constexpr int64_t CHUNK = 1024;  // positions that a thread looks at in one go

// One input of a layer.
struct Input {
  View view;
  int32_t heads;
  int64_t longest;
  const int32_t* lengths;
  int32_t bit;
};

// Whether positions [first, last) of a sequence are finite in all heads.
bool chunk_finite(const Kernels& kernels, Type type, const Input& in, int64_t d, int64_t s,
                  int64_t first, int64_t last) {
  const int64_t row = d * bytes_of(type);
  const bool beside = in.view.head == row;  // a position's heads lie side by side
  const int64_t heads = beside ? 1 : in.heads;
  int64_t count = beside ? d * in.heads : d;
  if (in.view.row == count * bytes_of(type)) {  // and so do the positions
    count *= last - first;
    last = first + 1;
  }
  for (int64_t h = 0; h < heads; h++)
    for (int64_t i = first; i < last; i++)
      if (!kernels.finite(type, in.view.at(s, h, i), count)) return false;
  return true;
}

int32_t find_not_finite(const sparsefill_layer& layer, std::initializer_list<Input> inputs) {
  const Kernels& kernels = find_kernels(layer.isa);
  const auto type = static_cast<Type>(layer.type);
  std::atomic<int32_t> broken{0};
  for (const Input& in : inputs) {
    const int64_t chunks = (in.longest + CHUNK - 1) / CHUNK;
    Counter counter(layer.b * chunks);
    parallel(in.longest * in.heads * layer.d < 1 << 18 ? 1 : layer.threads, [&](int) {
      for (int64_t item; !(broken & in.bit) && counter.take(item);) {
        const int64_t s = item / chunks, first = item % chunks * CHUNK;
        const int64_t last = std::min<int64_t>(first + CHUNK, in.lengths[s]);
        if (first < last && !chunk_finite(kernels, type, in, layer.d, s, first, last))
          broken |= in.bit;
      }
    });
  }
  return broken;
}

}  // namespace
}  // namespace sparsefill

int sparsefill_find_not_finite(const sparsefill_layer* layer, const sparsefill_tensor* q,
                               const sparsefill_tensor* k, const sparsefill_tensor* v,
                               int32_t* broken, char* message) {
  return sparsefill::guarded(message, [&] {
    sparsefill::check_layer(*layer);
    const auto type = static_cast<sparsefill::Type>(layer->type);
    const auto keys = [&](const sparsefill_tensor* t, int32_t bit) {
      return sparsefill::Input{{*t, type}, layer->g, layer->m, layer->key_lengths, bit};
    };
    *broken = sparsefill::find_not_finite(
        *layer,
        {{{*q, type}, layer->h, layer->n, layer->query_lengths, 1}, keys(k, 2), keys(v, 4)});
  });
}
