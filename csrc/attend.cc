// Attention of a whole layer: row blocks of all heads, shared out among threads. Counting the
// cells of an index walks the same row blocks.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "library.h"

namespace sparsefill {
namespace {

// The query heads first, ..., first + heads - 1 of a sequence, which read the same keys.
struct Stream {
  int32_t sequence, first, heads, index_head;
  int64_t row_blocks;
  int64_t first_item;
};

class Layer {
 public:
  Layer(const sparsefill_layer& layer, const sparsefill_index& index, const View& q, const View& k,
        const View& v, const View& out, float* lse)
      : layer_(layer), index_(index), q_(q), k_(k), v_(v), out_(out), lse_(lse),
        kernels_(find_kernels(layer.isa)), type_(static_cast<Type>(layer.type)),
        maths_{layer.d, layer.scale, layer.softcap} {
    find_streams();
    mark_covered();
  }

  void run() {
    const int64_t elements = static_cast<int64_t>(layer_.b) * layer_.h * layer_.n * layer_.d;
    prefer_large_pages(out_.data, static_cast<size_t>(elements * bytes_of(type_)));
    clear_padding();
    const int threads = work_ < 64 ? 1 : static_cast<int>(std::min<int64_t>(layer_.threads, items_));
    Counter counter(items_);
    parallel(threads, [&](int) { serve(counter); });
  }

  // Count the cells that each index head keeps.
  void count(int64_t* cells) const {
    Counter counter(static_cast<int64_t>(layer_.b) * index_.x);
    parallel(work_ < 4096 ? 1 : layer_.threads, [&](int) {
      Plan plan;
      for (int64_t head; counter.take(head);) {
        const auto s = static_cast<int32_t>(head / index_.x);
        cells[head] = 0;
        for (int64_t i = 0; i < blocks_of(layer_.query_lengths[s]); i++)
          cells[head] += cells_of(head, s, i, plan);
      }
    });
  }

 private:
  // What one row block reads, in the form that kernels take.
  struct Plan {
    std::vector<Tile> tiles;
    std::vector<int32_t> columns;
    RowBlock block;
  };

  void serve(Counter& counter) {
    const Bytes scratch = allocate(kernels_.attend_scratch(type_, maths_.d, widest_));
    Plan plans[2];
    Plan* plan = &plans[0];
    Plan* following = &plans[1];
    int64_t item;
    bool more = counter.take(item);
    if (more) fill(item, *plan);
    while (more) {
      more = counter.take(item);
      if (more) fill(item, *following);
      kernels_.attend(type_, maths_, plan->block, more ? &following->block : nullptr, scratch.get());
      std::swap(plan, following);
    }
  }

  int64_t at(int32_t s, int32_t x) const { return static_cast<int64_t>(s) * index_.x + x; }

  const int32_t* slashes(int64_t at) const { return index_.slash_tiles + at * index_.slash_capacity; }
  const int32_t* columns(int64_t at) const {
    return index_.column_indices + at * index_.column_capacity;
  }
  bool has_tiles(int64_t at) const {
    if (index_.row_ptr == nullptr) return false;
    const int64_t blocks = blocks_of(layer_.n);
    const int32_t* row_ptr = index_.row_ptr + at * (blocks + 1);
    return row_ptr[blocks] > row_ptr[0];
  }

  // Whether two index heads name the same lines and nothing else.
  bool same(int64_t a, int64_t b) const {
    const auto slash_count = index_.slash_counts[a], column_count = index_.column_counts[a];
    return slash_count == index_.slash_counts[b] && column_count == index_.column_counts[b] &&
           std::equal(slashes(a), slashes(a) + slash_count, slashes(b)) &&
           std::equal(columns(a), columns(a) + column_count, columns(b)) && !has_tiles(a) &&
           !has_tiles(b);
  }

  // Cut the layer into streams: heads of a group share what a tile costs to load where they
  // read the same keys, unless that leaves too few row blocks for the threads.
  void find_streams() {
    const int32_t r = layer_.h / layer_.g;
    int64_t total = 0;
    for (int32_t s = 0; s < layer_.b; s++) total += blocks_of(layer_.query_lengths[s]) * layer_.g;
    const int32_t most =
        total < int64_t{8} * layer_.threads ? 1 : kernels_.shared_heads(type_, layer_.d);
    for (int32_t s = 0; s < layer_.b; s++) {
      const int64_t row_blocks = blocks_of(layer_.query_lengths[s]);
      for (int32_t h = 0; h < layer_.h;) {
        const int32_t group_end = (h / r + 1) * r;
        const int32_t own = index_.x == layer_.h ? h : h / r;
        int32_t end = h + 1;
        while (end < group_end && end - h < most &&
               (index_.x != layer_.h || same(at(s, own), at(s, end))))
          end++;
        streams_.push_back({s, h, end - h, own, row_blocks, items_});
        items_ += row_blocks;
        widest_ = std::max(widest_, end - h);
        work_ += row_blocks * (end - h) *
                 (index_.slash_counts[at(s, own)] + index_.column_counts[at(s, own)] / TILE + 1);
        if (has_tiles(at(s, own))) work_ += 64;
        h = end;
      }
    }
  }

  // For each index head with columns: which distances from a row block's end its slash tiles
  // cover, one bit each, so that a covered column is found by one look-up.
  void mark_covered() {
    covered_.resize(static_cast<size_t>(layer_.b) * index_.x);
    for (size_t a = 0; a < covered_.size(); a++) {
      if (index_.column_counts[a] == 0 || index_.slash_counts[a] == 0) continue;
      const int64_t reach = layer_.m + 2 * TILE;
      covered_[a].assign(static_cast<size_t>(reach / 64 + 2), 0);
      const int32_t* offsets = slashes(static_cast<int64_t>(a));
      for (int32_t i = 0; i < index_.slash_counts[a]; i++) {
        const int64_t first = static_cast<int64_t>(offsets[i]) + 1;  // distances first ... first + 63
        if (first >= reach) break;
        const auto word = static_cast<size_t>(first / 64);
        const int shift = static_cast<int>(first % 64);
        covered_[a][word] |= ~uint64_t{0} << shift;
        if (shift) covered_[a][word + 1] |= ~uint64_t{0} >> (64 - shift);
      }
    }
  }

  void fill(int64_t item, Plan& plan) const {
    const auto above = std::upper_bound(
        streams_.begin(), streams_.end(), item,
        [](int64_t value, const Stream& stream) { return value < stream.first_item; });
    const Stream& stream = *(above - 1);
    const int32_t s = stream.sequence, kv = stream.first / (layer_.h / layer_.g);
    const int64_t i = stream.row_blocks - 1 - (item - stream.first_item);  // the longest first
    const int64_t keys = layer_.key_lengths[s], queries = layer_.query_lengths[s];
    const int64_t position = TILE * i + keys - queries;
    const int64_t rows = std::min<int64_t>(TILE, queries - TILE * i);

    RowBlock& block = plan.block;
    block.q = q_.at(s, stream.first, TILE * i);
    block.k = k_.at(s, kv, 0);
    block.v = v_.at(s, kv, 0);
    block.out = out_.at(s, stream.first, TILE * i);
    block.lse = lse_ + (static_cast<int64_t>(s) * layer_.h + stream.first) * layer_.n + TILE * i;
    block.q_head = q_.head;
    block.q_row = q_.row;
    block.k_row = k_.row;
    block.v_row = v_.row;
    block.out_head = out_.head;
    block.out_row = out_.row;
    block.lse_head = layer_.n * static_cast<int64_t>(sizeof(float));
    block.heads = stream.heads;
    block.queries = static_cast<int>(rows);
    block.position = position;
    list_keys(at(s, stream.index_head), i, position, std::min(keys, position + rows), plan);
    block.tiles = plan.tiles.data();
    block.tile_count = static_cast<int64_t>(plan.tiles.size());
    block.columns = plan.columns.data();
    block.column_count = static_cast<int64_t>(plan.columns.size());
  }

  // Count the causal cells of one row block.
  int64_t cells_of(int64_t head, int32_t s, int64_t i, Plan& plan) const {
    const int64_t keys = layer_.key_lengths[s], queries = layer_.query_lengths[s];
    const int64_t position = TILE * i + keys - queries;
    const int64_t rows = std::min<int64_t>(TILE, queries - TILE * i);
    list_keys(head, i, position, std::min(keys, position + rows), plan);
    int64_t cells = 0;
    const auto add = [&](int64_t key) { cells += rows - std::max<int64_t>(0, key - position); };
    for (const Tile tile : plan.tiles) {
      if (tile.first + tile.count <= position + 1) {
        cells += rows * tile.count;
      } else {
        for (int32_t j = 0; j < tile.count; j++) add(tile.first + j);
      }
    }
    for (const int32_t column : plan.columns) add(column);
    return cells;
  }

  // List the tiles and columns of a row block, keys below `limit` only.
  void list_keys(int64_t head, int64_t i, int64_t position, int64_t limit, Plan& plan) const {
    const int64_t end = position + TILE;
    plan.tiles.clear();
    plan.columns.clear();
    if (limit <= 0) return;
    const auto add = [&](int64_t start) {
      const int64_t first = std::max<int64_t>(start, 0);
      const int64_t count = std::min(start + TILE, limit) - first;
      if (count > 0) plan.tiles.push_back({static_cast<int32_t>(first), static_cast<int32_t>(count)});
    };
    const int32_t* offsets = slashes(head);
    for (int32_t t = 0; t < index_.slash_counts[head] && offsets[t] < end; t++)
      add(end - TILE - offsets[t]);
    const int32_t* starts = nullptr;
    int64_t start_count = 0;
    if (index_.row_ptr != nullptr) {
      const int32_t* row_ptr = index_.row_ptr + head * (blocks_of(layer_.n) + 1);
      starts = index_.tile_starts + row_ptr[i];
      start_count = row_ptr[i + 1] - row_ptr[i];
      for (int64_t t = 0; t < start_count; t++) add(starts[t]);
    }
    const int32_t* column = columns(head);
    const int32_t* last = std::lower_bound(column, column + index_.column_counts[head], limit);
    plan.columns.resize(static_cast<size_t>(last - column));
    int32_t* to = plan.columns.data();
    const std::vector<uint64_t>& covered = covered_[static_cast<size_t>(head)];
    if (covered.empty()) {
      to = std::copy(column, last, to);
    } else {
      for (; column < last; column++) {
        const auto distance = static_cast<uint64_t>(end - *column);
        *to = *column;
        to += ~(covered[distance / 64] >> (distance % 64)) & 1;
      }
    }
    if (start_count > 0) to = drop_covered(plan.columns.data(), to, starts, start_count);
    plan.columns.resize(static_cast<size_t>(to - plan.columns.data()));
  }

  static int32_t* drop_covered(int32_t* first, int32_t* last, const int32_t* starts, int64_t count) {
    int32_t* to = first;
    int64_t t = 0;
    for (int32_t* column = first; column < last; column++) {
      while (t < count && starts[t] + TILE <= *column) t++;
      if (t == count || *column < starts[t]) *to++ = *column;
    }
    return to;
  }

  // Rows past a sequence's queries: zeros and -inf.
  void clear_padding() const {
    for (int32_t s = 0; s < layer_.b; s++) {
      for (int32_t h = 0; h < layer_.h; h++) {
        float* lse = lse_ + (static_cast<int64_t>(s) * layer_.h + h) * layer_.n;
        for (int64_t i = layer_.query_lengths[s]; i < layer_.n; i++) {
          lse[i] = -INFINITY;
          std::memset(out_.at(s, h, i), 0, static_cast<size_t>(layer_.d * bytes_of(type_)));
        }
      }
    }
  }

  const sparsefill_layer& layer_;
  const sparsefill_index& index_;
  const View q_, k_, v_, out_;
  float* const lse_;
  const Kernels& kernels_;
  const Type type_;
  const Maths maths_;
  std::vector<Stream> streams_;
  std::vector<std::vector<uint64_t>> covered_;  // per index head; empty when it cannot matter
  int64_t items_ = 0;
  int64_t work_ = 0;  // about how many tiles, to decide whether threads are worth starting
  int32_t widest_ = 1;
};

}  // namespace
}  // namespace sparsefill

int sparsefill_attend(const sparsefill_layer* layer, const sparsefill_index* index,
                      const sparsefill_tensor* q, const sparsefill_tensor* k,
                      const sparsefill_tensor* v, const sparsefill_tensor* out, float* lse,
                      char* message) {
  return sparsefill::guarded(message, [&] {
    sparsefill::check_layer(*layer);
    sparsefill::check_index(*layer, *index);
    const auto type = static_cast<sparsefill::Type>(layer->type);
    sparsefill::Layer(*layer, *index, {*q, type}, {*k, type}, {*v, type}, {*out, type}, lse).run();
  });
}

int sparsefill_count_cells(const sparsefill_layer* layer, const sparsefill_index* index,
                           int64_t* cells, char* message) {
  return sparsefill::guarded(message, [&] {
    sparsefill::check_layer(*layer);
    sparsefill::check_index(*layer, *index);
    const sparsefill::View none({nullptr, 0, 0, 0}, sparsefill::Type::f32);
    sparsefill::Layer(*layer, *index, none, none, none, none, nullptr).count(cells);
  });
}
