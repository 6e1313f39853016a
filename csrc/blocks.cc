// Block top-k: for each block of queries, the key blocks with the best mean-pooled score.
//
// Jiang et al. 2024, Algorithm 3. A soft cap does not change which scores are largest.
#include "library.h"
#include "select.h"

namespace sparsefill {
namespace {

class BlockChoice {
 public:
  BlockChoice(const sparsefill_layer& layer, const sparsefill_blocks* blocks, int32_t x,
              int32_t block, const View& q, const View& k, int64_t capacity, int32_t* counts,
              int32_t* kept)
      : layer_(layer), blocks_(blocks), x_(x), block_(block), q_(q), k_(k), capacity_(capacity),
        counts_(counts), kept_(kept), kernels_(find_kernels(layer.isa)),
        type_(static_cast<Type>(layer.type)), maths_{layer.d, layer.scale, 0},
        query_blocks_((layer.n + block - 1) / block), key_blocks_((layer.m + block - 1) / block) {}

  void run() {
    const int64_t kv_heads = static_cast<int64_t>(layer_.b) * layer_.g;
    pooled_k_.resize(static_cast<size_t>(kv_heads * key_blocks_ * layer_.d));
    each(kv_heads * key_blocks_, layer_.m * kv_heads, [&](int64_t item, char*, Selector&) {
      const int64_t head = item / key_blocks_, s = head / layer_.g;
      pool(k_, s, head % layer_.g, item % key_blocks_, layer_.key_lengths[s],
           pooled_k_.data() + item * layer_.d);
    });
    const int64_t strips = (query_blocks_ + TILE - 1) / TILE;
    each(layer_.b * x_ * strips, layer_.n * layer_.b * x_,
         [&](int64_t item, char* scratch, Selector& selector) {
           choose(item / strips / x_, static_cast<int32_t>(item / strips % x_), item % strips * TILE,
                  scratch, selector);
         });
  }

 private:
  // Run body(item, scratch, selector) for all items, on threads if there is work for them.
  template <typename Body>
  void each(int64_t items, int64_t rows, const Body& body) const {
    Counter counter(items);
    const int threads = rows < 8192 ? 1 : static_cast<int>(std::min<int64_t>(layer_.threads, items));
    parallel(threads, [&](int) {
      const Bytes scratch = allocate(kernels_.score_scratch(Type::f32, layer_.d));
      Selector selector;
      for (int64_t item; counter.take(item);) body(item, scratch.get(), selector);
    });
  }

  // Mean of one block's rows; zeros if it has none.
  void pool(const View& rows, int64_t s, int64_t head, int64_t number, int64_t length,
            float* mean) const {
    const int64_t count = std::min<int64_t>(block_, length - number * block_);
    std::fill(mean, mean + layer_.d, 0.0f);
    if (count <= 0) return;
    kernels_.add_rows(type_, rows.at(s, head, number * block_), rows.row, count, layer_.d, mean);
    for (int c = 0; c < layer_.d; c++) mean[c] /= static_cast<float>(count);
  }

  // Choose for the (at most 64) query blocks first, first + 1, ... of one head.
  void choose(int64_t s, int32_t i, int64_t first, char* scratch, Selector& selector) const {
    const sparsefill_blocks& own = blocks_[i];
    const int64_t queries = layer_.query_lengths[s], keys = layer_.key_lengths[s];
    const int64_t shift = keys - queries;
    const int64_t kv = own.head / (layer_.h / layer_.g);
    const int64_t count = std::min<int64_t>(TILE, query_blocks_ - first);
    std::vector<float> pooled(static_cast<size_t>(count * layer_.d));
    for (int64_t row = 0; row < count; row++)
      pool(q_, s, own.head, first + row, queries, pooled.data() + row * layer_.d);
    const float* pooled_k = pooled_k_.data() + (s * layer_.g + kv) * key_blocks_ * layer_.d;
    const int64_t row_bytes = layer_.d * static_cast<int64_t>(sizeof(float));
    const Probe probe = {reinterpret_cast<const char*>(pooled.data()),
                         reinterpret_cast<const char*>(pooled_k), row_bytes, row_bytes,
                         static_cast<int>(count), 0, key_blocks_};
    const int64_t wide = blocks_of(key_blocks_) * TILE;
    std::vector<float> scores(static_cast<size_t>(TILE * wide));
    const int64_t last_query = std::min(queries, (first + count) * block_) - 1;
    for (int64_t t = 0; t * TILE < key_blocks_ && t * TILE * block_ <= last_query + shift; t++) {
      const auto there = static_cast<int32_t>(std::min<int64_t>(TILE, key_blocks_ - t * TILE));
      kernels_.multiply(maths_, probe, {static_cast<int32_t>(t * TILE), there},
                        scores.data() + t * TILE, wide, scratch);
    }
    std::vector<int32_t> chosen;
    for (int64_t row = 0; row < count; row++) {
      const int64_t number = first + row;
      const int64_t place = (s * x_ + i) * query_blocks_ + number;
      const int64_t nearest = number * block_ + shift;
      const int64_t last = std::min((number + 1) * block_, queries) - 1 + shift;
      const bool exists = number * block_ < queries && last >= 0;
      float* own_scores = scores.data() + row * wide;
      const int64_t end = exists ? std::min(last / block_ + 1, (keys + block_ - 1) / block_) : 0;
      int64_t forced = 0;
      for (int64_t j = 0; j < end; j++) {
        const bool always = j * block_ < own.sink || (j + 1) * block_ > nearest - own.window + 1;
        if (always) own_scores[j] = __builtin_inff();
        forced += always;
      }
      const int64_t budget = std::min(end, std::max<int64_t>(own.blocks, forced));
      if (budget > capacity_)
        throw Refusal("block top-k: room for %lld blocks, but %lld are kept",
                      static_cast<long long>(capacity_), static_cast<long long>(budget));
      counts_[place] = static_cast<int32_t>(budget);
      chosen.resize(static_cast<size_t>(end) + 1);
      const int32_t* to = selector.largest(own_scores, 0, end, budget, chosen.data());
      std::copy(static_cast<const int32_t*>(chosen.data()), to, kept_ + place * capacity_);
    }
  }

  const sparsefill_layer& layer_;
  const sparsefill_blocks* const blocks_;
  const int32_t x_;
  const int64_t block_;
  const View q_, k_;
  const int64_t capacity_;
  int32_t* const counts_;
  int32_t* const kept_;
  const Kernels& kernels_;
  const Type type_;
  const Maths maths_;
  const int64_t query_blocks_, key_blocks_;
  std::vector<float> pooled_k_;
};

}  // namespace
}  // namespace sparsefill

int sparsefill_choose_blocks(const sparsefill_layer* layer, const sparsefill_blocks* blocks,
                             int32_t x, int32_t block, const sparsefill_tensor* q,
                             const sparsefill_tensor* k, int64_t capacity, int32_t* counts,
                             int32_t* kept, char* message) {
  using namespace sparsefill;
  return guarded(message, [&] {
    check_layer(*layer);
    if (block < TILE || block % TILE) throw Refusal("block must be a multiple of 64, got %d", block);
    for (int32_t i = 0; i < x; i++)
      if (blocks[i].head < 0 || blocks[i].head >= layer->h || blocks[i].blocks < 1)
        throw Refusal("blocks %d: head %d of %d, %d blocks", i, blocks[i].head, layer->h,
                      blocks[i].blocks);
    const auto type = static_cast<Type>(layer->type);
    BlockChoice(*layer, blocks, x, block, {*q, type}, {*k, type}, capacity, counts, kept).run();
  });
}

int sparsefill_list_blocks(const sparsefill_layer* layer, int32_t x, int32_t block,
                           int64_t capacity, const int32_t* counts, const int32_t* kept,
                           int32_t* row_ptr, int32_t* tile_starts, char* message) {
  using namespace sparsefill;
  return guarded(message, [&] {
    check_layer(*layer);
    const int64_t per_block = block / TILE, row_blocks = blocks_of(layer->n);
    const int64_t query_blocks = (layer->n + block - 1) / block;
    int64_t packed = 0;
    for (int64_t head = 0; head < static_cast<int64_t>(layer->b) * x; head++) {
      const int64_t s = head / x, keys = layer->key_lengths[s], queries = layer->query_lengths[s];
      int32_t* own_ptr = row_ptr + head * (row_blocks + 1);
      own_ptr[0] = static_cast<int32_t>(packed);
      for (int64_t i = 0; i < row_blocks; i++) {
        const int64_t place = head * query_blocks + i / per_block;
        const int64_t seen = std::min(TILE * (i + 1) + keys - queries, keys);
        const int64_t count = TILE * i < queries ? counts[place] : 0;
        for (int64_t j = 0; j < count * per_block; j++) {
          const int64_t start = kept[place * capacity + j / per_block] * static_cast<int64_t>(block) +
                                j % per_block * TILE;
          if (start >= seen) break;
          if (tile_starts != nullptr) tile_starts[packed] = static_cast<int32_t>(start);
          packed++;
        }
        if (packed > INT32_MAX) throw Refusal("more than 2^31 - 1 tiles; keep fewer blocks");
        own_ptr[i + 1] = static_cast<int32_t>(packed);
      }
    }
  });
}
