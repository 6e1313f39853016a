// Vertical-slash: which key columns and diagonals the last queries attend to most.
//
// Jiang et al. 2024, Algorithm 2. Per KV head: one pass over the keys finds every probe
// query's sum of exponentials, a second adds the normalised weights along both directions.
// Between the passes the weights are kept, or computed again where they would be too many.
#include <cmath>

#include "library.h"
#include "select.h"

namespace sparsefill {
namespace {

constexpr int64_t SPAN = 32;                      // tiles that one work item covers
constexpr size_t KEPT_BYTES = size_t{128} << 20;   // of weights, at most
constexpr int64_t REACH = SPAN * TILE + 2 * TILE;  // diagonals that a span meets, rounded up

// The probe queries of one sequence's heads that share a KV head.
class Probing {
 public:
  Probing(const sparsefill_layer& layer, const sparsefill_lines* lines, int32_t x, const View& q,
          const View& k, int32_t sequence, int32_t kv, float* columns, float* diagonals)
      : layer_(layer), kernels_(find_kernels(layer.isa)), type_(static_cast<Type>(layer.type)),
        maths_{layer.d, layer.scale, layer.softcap}, keys_(layer.key_lengths[sequence]),
        columns_(columns), diagonals_(diagonals) {
    const int32_t r = layer.h / layer.g;
    const int64_t queries = layer.query_lengths[sequence];
    for (int32_t i = 0; i < x; i++) {
      if (lines[i].head / r != kv) continue;
      const int64_t rows = std::min<int64_t>(lines[i].probe, queries);
      for (int64_t row = 0; row < rows; row += TILE) {  // strips of at most 64 queries
        const int64_t query = queries - rows + row;
        probes_.push_back({q.at(sequence, lines[i].head, query), k.at(sequence, kv, 0), q.row,
                           k.row, static_cast<int>(std::min<int64_t>(TILE, rows - row)),
                           query + keys_ - queries, keys_});
        outputs_.push_back(static_cast<int64_t>(sequence) * x + i);
      }
    }
  }

  void run() {
    if (probes_.empty() || keys_ == 0) return;
    tiles_ = blocks_of(keys_);
    spans_ = (tiles_ + SPAN - 1) / SPAN;
    threads_ = tiles_ * count() < 16 ? 1 : static_cast<int>(std::min<int64_t>(layer_.threads, spans_));
    references_.assign(probes_.size() * TILE, 0);
    for (int64_t i = 0; i < count(); i++) refer(i, {0, tiles_ - 2, tiles_ - 1});
    const size_t kept = weight_bytes(tiles_);
    if (kept <= KEPT_BYTES) weights_ = allocate(kept);
    if (!add_up()) {  // a score far above those sampled: take the true maximum
      for (int64_t i = 0; i < count(); i++) {
        std::vector<int64_t> all(static_cast<size_t>(tiles_));
        for (int64_t t = 0; t < tiles_; t++) all[static_cast<size_t>(t)] = t;
        refer(i, all);
      }
      add_up();
    }
    distribute();
  }

 private:
  int64_t count() const { return static_cast<int64_t>(probes_.size()); }
  size_t weight_bytes(int64_t tiles) const {
    return static_cast<size_t>(tiles * count() * TILE * TILE * (type_ == Type::bf16 ? 2 : 4));
  }
  Tile tile(int64_t t) const {
    return {static_cast<int32_t>(t * TILE), static_cast<int32_t>(std::min<int64_t>(TILE, keys_ - t * TILE))};
  }

  // Highest score of each query of a probe over some tiles: what exponents are relative to.
  void refer(int64_t i, const std::vector<int64_t>& tiles) {
    const Bytes scratch = allocate(kernels_.score_scratch(type_, maths_.d));
    float* top = references_.data() + i * TILE;
    std::fill(top, top + TILE, -1e30f);
    for (const int64_t t : tiles)
      if (t >= 0) kernels_.score_top(type_, maths_, probes_[static_cast<size_t>(i)], tile(t), top, scratch.get());
  }

  // First pass: factors_ = 1 / sums. False if a sum overflowed.
  bool add_up() {
    std::vector<float> sums(static_cast<size_t>(threads_) * probes_.size() * TILE * MAX_LANES);
    Counter counter(spans_);
    parallel(threads_, [&](int worker) {
      const Bytes scratch = allocate(kernels_.score_scratch(type_, maths_.d));
      float* own = sums.data() + static_cast<size_t>(worker) * probes_.size() * TILE * MAX_LANES;
      for (int64_t span; counter.take(span);) {
        for (int64_t t = span * SPAN; t < std::min(tiles_, (span + 1) * SPAN); t++)
          score(t, own, weights_ ? weights_.get() + weight_bytes(t) : nullptr, scratch.get());
      }
    });
    factors_.assign(probes_.size() * TILE, 0);
    for (size_t row = 0; row < factors_.size(); row++) {
      double sum = 0;
      for (int worker = 0; worker < threads_; worker++)
        for (int lane = 0; lane < MAX_LANES; lane++)
          sum += sums[(static_cast<size_t>(worker) * factors_.size() + row) * MAX_LANES + static_cast<size_t>(lane)];
      if (!(sum < 1e30)) return false;
      factors_[row] = sum > 0 ? static_cast<float>(1 / sum) : 0;
    }
    return true;
  }

  void score(int64_t t, float* sums, char* weights, char* scratch) const {
    kernels_.score_tile(type_, maths_, probes_.data(), static_cast<int>(count()), tile(t),
                        references_.data(), sums, weights, scratch);
  }

  // Second pass: weights times factors, along columns and along diagonals.
  void distribute() {
    const size_t each = static_cast<size_t>(REACH);
    std::vector<float> partial(static_cast<size_t>(spans_) * probes_.size() * each);
    std::vector<float> sums(static_cast<size_t>(threads_) * probes_.size() * TILE * MAX_LANES);
    Counter counter(spans_);
    parallel(threads_, [&](int worker) {
      const Bytes scratch = allocate(kernels_.score_scratch(type_, maths_.d));
      const Bytes again = allocate(weights_ ? 0 : weight_bytes(1));
      std::vector<float> column(TILE);
      float* own = sums.data() + static_cast<size_t>(worker) * probes_.size() * TILE * MAX_LANES;
      for (int64_t span; counter.take(span);) {
        for (int64_t t = span * SPAN; t < std::min(tiles_, (span + 1) * SPAN); t++) {
          const char* weights = weights_ ? weights_.get() + weight_bytes(t) : again.get();
          if (!weights_) score(t, own, again.get(), scratch.get());
          for (int64_t i = 0; i < count(); i++) {
            std::fill(column.begin(), column.end(), 0.0f);
            const size_t place = static_cast<size_t>(span * count() + i) * each;
            kernels_.add_lines(type_, weights + weight_bytes(1) / probes_.size() * static_cast<size_t>(i),
                               factors_.data() + i * TILE, probes_[static_cast<size_t>(i)].queries,
                               column.data(), partial.data() + place + (t - span * SPAN) * TILE);
            float* to = columns_ + outputs_[static_cast<size_t>(i)] * layer_.m + t * TILE;
            for (int j = 0; j < tile(t).count; j++) to[j] += column[static_cast<size_t>(j)];
          }
        }
      }
    });
    for (int64_t span = 0; span < spans_; span++) {
      for (int64_t i = 0; i < count(); i++) {
        const float* from = partial.data() + static_cast<size_t>(span * count() + i) * each;
        float* to = diagonals_ + outputs_[static_cast<size_t>(i)] * layer_.m;
        // place u of a span holds offset `farthest - u`; offsets outside carry nothing
        const int64_t farthest = probes_[static_cast<size_t>(i)].position + TILE - 1 - span * SPAN * TILE;
        const int64_t begin = std::max<int64_t>(0, farthest - (keys_ - 1));
        for (int64_t u = begin; u <= std::min(farthest, REACH - 1); u++) to[farthest - u] += from[u];
      }
    }
  }

  const sparsefill_layer& layer_;
  const Kernels& kernels_;
  const Type type_;
  const Maths maths_;
  const int64_t keys_;
  float* const columns_;
  float* const diagonals_;
  int64_t tiles_ = 0, spans_ = 0;
  int threads_ = 1;
  std::vector<Probe> probes_;
  std::vector<int64_t> outputs_;  // row of columns and diagonals that each probe adds to
  std::vector<float> references_, factors_;
  Bytes weights_;
};

void check_lines(const sparsefill_layer& layer, const sparsefill_lines* lines, int32_t x) {
  for (int32_t i = 0; i < x; i++) {
    const sparsefill_lines& own = lines[i];
    if (own.head < 0 || own.head >= layer.h || own.probe < 1 || own.verticals < 0 ||
        own.slashes < 0 || own.sink < 0 || own.window < 0)
      throw Refusal("lines %d: head %d of %d, probe %d, verticals %d, slashes %d, sink %d, window %d"
                    " must not be negative, and probe at least 1",
                    i, own.head, layer.h, own.probe, own.verticals, own.slashes, own.sink,
                    own.window);
  }
}

// Disjoint tiles that cover every offset, built from the smallest one on: an offset within
// 64 of the last tile extends it by a touching tile, any other starts a tile of its own.
int32_t* merge(const int32_t* offsets, const int32_t* end, int32_t* out) {
  int64_t last = -TILE - 1;
  for (const int32_t* offset = offsets; offset < end; offset++) {
    if (*offset <= last) continue;
    last = last >= 0 && *offset <= last + TILE ? last + TILE : *offset;
    *out++ = static_cast<int32_t>(last);
  }
  return out;
}

int32_t room(const char* name, int64_t needed, int64_t capacity) {
  if (needed > capacity)
    throw Refusal("%s: room for %lld, but %lld are kept", name, static_cast<long long>(capacity),
                  static_cast<long long>(needed));
  return static_cast<int32_t>(needed);
}

}  // namespace
}  // namespace sparsefill

int sparsefill_line_sums(const sparsefill_layer* layer, const sparsefill_lines* lines, int32_t x,
                         const sparsefill_tensor* q, const sparsefill_tensor* k, float* columns,
                         float* diagonals, char* message) {
  using namespace sparsefill;
  return guarded(message, [&] {
    check_layer(*layer);
    check_lines(*layer, lines, x);
    const auto type = static_cast<Type>(layer->type);
    std::fill(columns, columns + layer->b * x * layer->m, 0.0f);
    std::fill(diagonals, diagonals + layer->b * x * layer->m, 0.0f);
    for (int32_t s = 0; s < layer->b; s++)
      for (int32_t kv = 0; kv < layer->g; kv++)
        Probing(*layer, lines, x, {*q, type}, {*k, type}, s, kv, columns, diagonals).run();
  });
}

int sparsefill_choose_lines(const sparsefill_layer* layer, const sparsefill_lines* lines, int32_t x,
                            const float* columns, const float* diagonals, int64_t column_capacity,
                            int64_t slash_capacity, int32_t* column_counts, int32_t* column_indices,
                            int32_t* slash_counts, int32_t* slash_tiles, char* message) {
  using namespace sparsefill;
  return guarded(message, [&] {
    check_layer(*layer);
    check_lines(*layer, lines, x);
    const int64_t heads = static_cast<int64_t>(layer->b) * x;
    Counter counter(heads);
    const int threads = heads * layer->m < 16384 ? 1 : layer->threads;
    parallel(static_cast<int>(std::min<int64_t>(threads, heads)), [&](int) {
      Selector selector;
      std::vector<int32_t> kept(static_cast<size_t>(layer->m) + 1);
      for (int64_t i; counter.take(i);) {
        const sparsefill_lines& own = lines[i % x];
        const int64_t keys = layer->key_lengths[i / x];
        // the first `forced` always, then the largest of the rest
        const auto choose = [&](const float* sums, int64_t budget, int64_t forced) {
          forced = std::min(forced, keys);
          budget = std::min(std::max(budget, forced), keys);
          int32_t* to = kept.data();
          for (int64_t j = 0; j < forced; j++) *to++ = static_cast<int32_t>(j);
          return selector.largest(sums, forced, keys, budget - forced, to);
        };
        const int32_t* end = choose(columns + i * layer->m, own.verticals, own.sink);
        column_counts[i] = room("columns", end - kept.data(), column_capacity);
        std::copy(static_cast<const int32_t*>(kept.data()), end, column_indices + i * column_capacity);
        end = choose(diagonals + i * layer->m, own.slashes, own.window);
        int32_t* merged = merge(kept.data(), end, kept.data());  // never overtakes what it reads
        slash_counts[i] = room("slash tiles", merged - kept.data(), slash_capacity);
        std::copy(kept.data(), merged, slash_tiles + i * slash_capacity);
      }
    });
  });
}
