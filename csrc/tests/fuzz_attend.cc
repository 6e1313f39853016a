// sparsefill_attend and sparsefill_check_index: results, refusals, and several callers at once.
#include <algorithm>
#include <climits>
#include <thread>

#include "fuzz.h"

namespace fuzz {
namespace {

using Ints = std::vector<int32_t>;

// An index that owns its lists.
struct Index {
  sparsefill_index shape{};  // pointers are set by view()
  Ints slash_counts, slash_tiles, column_counts, column_indices, row_ptr, tile_starts;

  sparsefill_index view() const {
    sparsefill_index all = shape;
    all.slash_counts = slash_counts.data();
    all.slash_tiles = slash_tiles.data();
    all.column_counts = column_counts.data();
    all.column_indices = column_indices.data();
    all.row_ptr = row_ptr.empty() ? nullptr : row_ptr.data();
    all.tile_starts = tile_starts.data();
    return all;
  }
};

// What one index head reads.
struct Lists {
  Ints slashes, columns;
  std::vector<Ints> tiles;  // of each row block
};

// A layer that owns its lengths and inputs.
struct Case {
  sparsefill_layer layer{};
  Ints query_lengths, key_lengths;
  Index index;
  std::vector<Tensor> qkv;
  uint64_t output_seed = 0;
  std::string about;

  sparsefill_layer layer_for(const char* isa) const {
    sparsefill_layer own = layer;
    own.isa = isa;
    own.query_lengths = query_lengths.data();
    own.key_lengths = key_lengths.data();
    return own;
  }
};

std::vector<const char*> available_isas() {
  std::vector<const char*> names;
  int available = 0;
  for (int i = 0; const char* name = sparsefill_isa(i, &available); i++)
    if (available) names.push_back(name);
  return names;
}

// ---- cases ------------------------------------------------------------------------------

// Places from `first` up to `last`, at least a tile apart and often touching.
Ints spaced(Rng& rng, int64_t first, int64_t last, double kept) {
  Ints places;
  for (int64_t at = first; at <= last; at += TILE + (rng.chance(0.5) ? 0 : rng.range(0, 70)))
    if (rng.chance(kept)) places.push_back(static_cast<int32_t>(at));
  return places;
}

int64_t row_block_end(const Case& c, int64_t s, int64_t i) {
  const auto at = static_cast<size_t>(s);
  return TILE * (i + 1) + c.key_lengths[at] - c.query_lengths[at];
}

Lists random_lists(Rng& rng, const Case& c, int64_t s, bool further) {
  Lists lists;
  const int64_t n = c.layer.n, m = c.layer.m;
  if (rng.chance(0.8))
    lists.slashes = spaced(rng, rng.range(0, 80), n + m + 80, rng.pick({0.3, 0.7, 1.0}));
  if (rng.chance(0.05) && (lists.slashes.empty() || lists.slashes.back() < INT32_MAX - TILE))
    lists.slashes.push_back(INT32_MAX);
  const double columns = rng.pick({0.0, 0.02, 0.1, 0.5, 1.0});
  for (int64_t key = 0; key < m; key++)
    if (rng.chance(columns)) lists.columns.push_back(static_cast<int32_t>(key));
  const double kept = rng.pick({0.3, 0.7, 1.0});
  for (int64_t i = 0; further && i * TILE < n; i++) {
    lists.tiles.emplace_back();
    if (rng.chance(0.2)) continue;
    const int64_t end = row_block_end(c, s, i);
    const int64_t most = std::max(end, m) - 1;
    for (const int32_t start : spaced(rng, rng.range(1 - TILE, 40), rng.chance(0.8) ? m - 1 : most, kept)) {
      const bool apart = std::all_of(lists.slashes.begin(), lists.slashes.end(), [&](int64_t offset) {
        return std::llabs(end - TILE - offset - start) >= TILE;
      });
      if (apart) lists.tiles.back().push_back(start);
    }
  }
  return lists;
}

void random_index(Rng& rng, Case& c) {
  Index& index = c.index;
  const int32_t r = c.layer.h / c.layer.g;
  index.shape.x = rng.chance(0.3) ? c.layer.g : c.layer.h;
  const bool further = rng.chance(0.5), alike = rng.chance(0.5);
  std::vector<Lists> all;
  std::vector<size_t> same_as;
  for (int32_t s = 0; s < c.layer.b; s++)
    for (int32_t x = 0; x < index.shape.x; x++) {
      const bool repeat = index.shape.x == c.layer.h && x % r != 0 && (alike || rng.chance(0.2));
      all.push_back(repeat ? all.back() : random_lists(rng, c, s, further));
      same_as.push_back(repeat ? same_as.back() : all.size() - 1);
    }
  for (const Lists& lists : all) {
    index.shape.slash_capacity =
        std::max<int64_t>(index.shape.slash_capacity, static_cast<int64_t>(lists.slashes.size()));
    index.shape.column_capacity =
        std::max<int64_t>(index.shape.column_capacity, static_cast<int64_t>(lists.columns.size()));
  }
  if (rng.chance(0.3)) index.shape.slash_capacity += rng.range(1, 5);
  if (rng.chance(0.3)) index.shape.column_capacity += rng.range(1, 5);
  // Entries past a count, and between the tiles of two heads, are anything.
  const auto anything = [&] { return static_cast<int32_t>(rng.pick({INT_MIN, -1, 0, 7, 64, INT_MAX})); };
  std::vector<size_t> ptr_at;
  for (size_t a = 0; a < all.size(); a++) {
    const Lists& lists = all[a];
    index.slash_counts.push_back(static_cast<int32_t>(lists.slashes.size()));
    index.column_counts.push_back(static_cast<int32_t>(lists.columns.size()));
    index.slash_tiles.insert(index.slash_tiles.end(), lists.slashes.begin(), lists.slashes.end());
    while (static_cast<int64_t>(index.slash_tiles.size()) < index.shape.slash_capacity * static_cast<int64_t>(a + 1))
      index.slash_tiles.push_back(anything());
    index.column_indices.insert(index.column_indices.end(), lists.columns.begin(), lists.columns.end());
    while (static_cast<int64_t>(index.column_indices.size()) < index.shape.column_capacity * static_cast<int64_t>(a + 1))
      index.column_indices.push_back(anything());
    if (!further) continue;
    ptr_at.push_back(index.row_ptr.size());
    if (same_as[a] != a && rng.chance(0.5)) {  // two heads may name the same tiles
      for (size_t i = 0; i <= lists.tiles.size(); i++)
        index.row_ptr.push_back(index.row_ptr[ptr_at[same_as[a]] + i]);
      continue;
    }
    if (rng.chance(0.1)) index.tile_starts.push_back(anything());
    index.row_ptr.push_back(static_cast<int32_t>(index.tile_starts.size()));
    for (const Ints& starts : lists.tiles) {
      index.tile_starts.insert(index.tile_starts.end(), starts.begin(), starts.end());
      index.row_ptr.push_back(static_cast<int32_t>(index.tile_starts.size()));
    }
  }
  index.shape.tile_count = static_cast<int64_t>(index.tile_starts.size());
  for (Ints* list : {&index.slash_counts, &index.slash_tiles, &index.column_counts,
                     &index.column_indices, &index.row_ptr, &index.tile_starts})
    list->shrink_to_fit();  // so that AddressSanitizer knows the end
}

int32_t random_length(Rng& rng, int64_t longest) {
  if (rng.chance(0.1)) return 0;
  return static_cast<int32_t>(rng.chance(0.3) ? longest : rng.range(0, longest));
}

Case random_case(Rng& rng, int64_t work) {
  Case c;
  sparsefill_layer& layer = c.layer;
  const auto size = [&] {
    return rng.chance(0.3) ? rng.pick<int64_t>({1, 2, 63, 64, 65, 127, 128, 129, 192}) : rng.range(1, 200);
  };
  do {  // few of the largest
    layer.type = static_cast<int32_t>(rng.range(0, 2));
    layer.b = static_cast<int32_t>(rng.range(1, 3));
    layer.g = static_cast<int32_t>(rng.range(1, 4));
    layer.h = layer.g * static_cast<int32_t>(rng.range(1, 4));
    layer.d = static_cast<int32_t>(rng.chance(0.5) ? rng.pick({32, 64, 80, 96, 128}) : 8 * rng.range(1, 32));
    layer.n = size();
    layer.m = rng.chance(0.4) ? layer.n : size();
  } while (layer.b * layer.h * layer.d * layer.n * layer.m > (rng.chance(0.05) ? 10 * work : work));
  layer.threads = static_cast<int32_t>(rng.chance(0.5) ? 1 : rng.range(1, 4));
  layer.scale = static_cast<float>(rng.pick({1.0, 1.0, 1.0, -1.0, 0.3, 4.0}) / std::sqrt(layer.d));
  if (rng.chance(0.03)) layer.scale = 0;
  if (rng.chance(0.2)) layer.softcap = rng.pick({0.5f, 2.0f, 30.0f});
  const bool ragged = rng.chance(0.5);
  for (int32_t s = 0; s < layer.b; s++) {
    c.query_lengths.push_back(ragged ? random_length(rng, layer.n) : static_cast<int32_t>(layer.n));
    c.key_lengths.push_back(ragged ? random_length(rng, layer.m) : static_cast<int32_t>(layer.m));
  }
  random_index(rng, c);
  const double size_of_q = rng.pick({1.0, 1.0, 1.0, 6.0, 0.01});
  c.qkv.emplace_back(rng, layer.type, layer.b, layer.h, layer.n, layer.d);
  c.qkv.emplace_back(rng, layer.type, layer.b, layer.g, layer.m, layer.d);
  c.qkv.emplace_back(rng, layer.type, layer.b, layer.g, layer.m, layer.d);
  c.qkv[0].fill(rng, c.query_lengths, size_of_q);
  c.qkv[1].fill(rng, c.key_lengths, 1);
  c.qkv[2].fill(rng, c.key_lengths, 1);
  c.output_seed = rng.next();
  char text[256];
  std::snprintf(text, sizeof text,
                "%s b=%d h=%d g=%d x=%d n=%lld m=%lld d=%d threads=%d scale=%g softcap=%g%s%s",
                name_of(layer.type), layer.b, layer.h, layer.g, c.index.shape.x,
                static_cast<long long>(layer.n), static_cast<long long>(layer.m), layer.d,
                layer.threads, static_cast<double>(layer.scale), static_cast<double>(layer.softcap),
                ragged ? " ragged" : "", c.index.row_ptr.empty() ? "" : " tiles");
  c.about = text;
  return c;
}

// ---- reference --------------------------------------------------------------------------

// Which keys a row block reads, straight from the definition in SparseIndex.
FUZZ_UNCHECKED std::vector<int32_t> keys_of(const Case& c, int64_t s, int64_t x, int64_t i) {
  const sparsefill_index index = c.index.view();
  const int64_t at = s * index.x + x, end = row_block_end(c, s, i);
  const int64_t keys = c.key_lengths[static_cast<size_t>(s)];
  std::vector<char> kept(static_cast<size_t>(keys));
  const auto keep = [&](int64_t first, int64_t count) {
    for (int64_t key = std::max<int64_t>(first, 0); key < std::min(first + count, keys); key++)
      kept[static_cast<size_t>(key)] = 1;
  };
  for (int32_t t = 0; t < index.slash_counts[at]; t++)
    keep(end - TILE - index.slash_tiles[at * index.slash_capacity + t], TILE);
  for (int32_t t = 0; t < index.column_counts[at]; t++)
    keep(index.column_indices[at * index.column_capacity + t], 1);
  if (index.row_ptr != nullptr) {
    const int32_t* row_ptr = index.row_ptr + at * ((c.layer.n + TILE - 1) / TILE + 1) + i;
    for (int32_t t = row_ptr[0]; t < row_ptr[1]; t++) keep(index.tile_starts[t], TILE);
  }
  std::vector<int32_t> list;
  for (int64_t key = 0; key < keys; key++)
    if (kept[static_cast<size_t>(key)]) list.push_back(static_cast<int32_t>(key));
  return list;
}

// One output row: what it is, and how far a right result may be away.
struct Row {
  double lse, lse_error;
  std::vector<double> out, weighed;  // `weighed` is the sum of |p v| for each element
  double weight_error;               // relative to `weighed`
  bool empty;
};

// Errors. Inputs are rounded already. A score is a sum of d products in float32, so it errs by
// at most (d + 4) 2^-24 of the sum of its absolute terms, whatever the order; an error e of a
// score changes its weight by a factor of exp(e). Besides, a weight errs by what exp2 does (2e-7;
// 7.5e-5 for bf16 dot products, whose weights are then rounded to bf16), tanh by 5e-7 of the cap,
// the products of score, scale and log2(e) by a few 2^-24 of the score, each tile's rescaling
// by 2e-7, and sums of K weights by K 2^-24. Weights and their sum both err: hence the factor 2.
FUZZ_UNCHECKED Row reference_row(const Case& c, const std::vector<int32_t>& keys, int64_t position,
                                 const double* q, const double* k, const double* v) {
  const sparsefill_layer& layer = c.layer;
  const auto d = static_cast<size_t>(layer.d);
  const double unit = 0x1p-24, scale = static_cast<double>(layer.scale), cap = static_cast<double>(layer.softcap);
  std::vector<double> scores;
  double top = -INFINITY, terms = 0, largest = 0;
  for (const int32_t key : keys) {
    if (key > position) break;
    double dot = 0, size = 0;
    const double* row = k + static_cast<size_t>(key) * d;
    for (size_t e = 0; e < d; e++) {
      dot += q[e] * row[e];
      size += std::fabs(q[e] * row[e]);
    }
    const double score = cap != 0 ? cap * std::tanh(dot * scale / cap) : dot * scale;
    scores.push_back(score);
    top = std::max(top, score);
    terms = std::max(terms, size * std::fabs(scale));
    largest = std::max(largest, std::fabs(score));
  }
  Row row{-INFINITY, 0, std::vector<double>(d), std::vector<double>(d), 0, scores.empty()};
  if (row.empty) return row;
  double sum = 0;
  for (size_t j = 0; j < scores.size(); j++) {
    const double p = std::exp(scores[j] - top);
    const double* value = v + static_cast<size_t>(keys[j]) * d;
    sum += p;
    for (size_t e = 0; e < d; e++) {
      row.out[e] += p * value[e];
      row.weighed[e] += std::fabs(p * value[e]);
    }
  }
  for (size_t e = 0; e < d; e++) {
    row.out[e] /= sum;
    row.weighed[e] /= sum;
  }
  row.lse = top + std::log(sum);
  const bool bf16 = layer.type == 1;
  const double tiles = static_cast<double>(layer.m) / 32 + 3;  // those of slashes, rows, columns
  const double score_error = terms * (layer.d + 4) * unit + largest * 8 * unit + cap * 1e-6;
  const double sum_error = (static_cast<double>(scores.size()) + 8) * unit + tiles * 2e-7;
  const double error = score_error + sum_error + (bf16 ? 8e-5 : 2e-7);
  row.weight_error = std::expm1(2 * error) + (bf16 ? rounding_of(1) : 0);
  row.lse_error = error + 4 * unit * std::fabs(row.lse) + 2e-7;
  return row;
}

// ---- one call ---------------------------------------------------------------------------

struct Result {
  Tensor out;
  Guarded lse;

  explicit Result(const Case& c)
      : out(layout(c)), lse(static_cast<int64_t>(c.layer.b) * c.layer.h * c.layer.n * 4) {}
  bool operator==(const Result& other) const {
    return out == other.out &&
           std::memcmp(lse.data(), other.lse.data(), static_cast<size_t>(lse.size())) == 0;
  }

 private:
  static Tensor layout(const Case& c) {
    Rng rng(c.output_seed, 0);
    return Tensor(rng, c.layer.type, c.layer.b, c.layer.h, c.layer.n, c.layer.d);
  }
};

int call(const Case& c, const sparsefill_layer& layer, Result& result, char* message) {
  const sparsefill_index index = c.index.view();
  const sparsefill_tensor q = c.qkv[0].view(), k = c.qkv[1].view(), v = c.qkv[2].view();
  const sparsefill_tensor out = result.out.view();
  return sparsefill_attend(&layer, &index, &q, &k, &v, &out,
                           reinterpret_cast<float*>(result.lse.data()), message);
}

Result attended(const Case& c, const sparsefill_layer& layer) {
  Result result(c);
  char message[SPARSEFILL_MESSAGE];
  if (call(c, layer, result, message) != 0) throw Failure("%s: refused: %s", layer.isa, message);
  return result;
}

FUZZ_UNCHECKED void compare(const Row& row, const double* out, double lse, const Case& c, const char* isa,
                            const char* where) {
  const double rounding = rounding_of(c.layer.type);
  // Written so that NaN fails.
  if (row.empty ? lse != -INFINITY : !(std::fabs(lse - row.lse) <= row.lse_error))
    throw Failure("%s: %s: lse %.9g, expected %.9g within %.3g", isa, where, lse, row.lse, row.lse_error);
  for (size_t e = 0; e < row.out.size(); e++) {
    const double allowed = row.empty ? 0
                                     : row.weighed[e] * (row.weight_error + 0x1p-22) +
                                           std::fabs(row.out[e]) * rounding * 1.01 + 0x1p-25;
    if (!(std::fabs(out[e] - row.out[e]) <= allowed))
      throw Failure("%s: %s, element %zu: out %.9g, expected %.9g within %.3g", isa, where, e, out[e],
                    row.out[e], allowed);
  }
}

// Compare the results of some instruction sets with the reference, row by row.
void check_results(const Case& c, const std::vector<const char*>& isas, const std::vector<Result>& results) {
  const sparsefill_layer& layer = c.layer;
  const std::vector<double> q = c.qkv[0].values(), k = c.qkv[1].values(), v = c.qkv[2].values();
  std::vector<std::vector<double>> outs;
  for (size_t a = 0; a < isas.size(); a++) {
    results[a].out.check_gaps("out");
    if (!results[a].lse.guards_intact()) throw Failure("%s: written outside of lse", isas[a]);
    outs.push_back(results[a].out.values());
  }
  const int64_t r = layer.h / layer.g;
  for (int64_t s = 0; s < layer.b; s++)
    for (int64_t h = 0; h < layer.h; h++) {
      const int64_t kv = (s * layer.g + h / r) * layer.m * layer.d;
      std::vector<int32_t> keys;
      for (int64_t p = 0; p < layer.n; p++) {
        const bool exists = p < c.query_lengths[static_cast<size_t>(s)];
        if (!exists)
          keys.clear();
        else if (p % TILE == 0)
          keys = keys_of(c, s, c.index.shape.x == layer.h ? h : h / r, p / TILE);
        const int64_t at = (s * layer.h + h) * layer.n + p;
        const int64_t position = p + row_block_end(c, s, 0) - TILE;
        const Row row = reference_row(c, keys, position, q.data() + at * layer.d, k.data() + kv, v.data() + kv);
        char where[80];
        std::snprintf(where, sizeof where, "sequence %d, head %d, query %d", static_cast<int>(s),
                      static_cast<int>(h), static_cast<int>(p));
        for (size_t a = 0; a < isas.size(); a++) {
          float lse;
          std::memcpy(&lse, results[a].lse.data() + at * 4, 4);
          compare(row, outs[a].data() + at * layer.d, static_cast<double>(lse), c, isas[a], where);
        }
      }
    }
}

// ---- corruption -------------------------------------------------------------------------

bool ascends(const int32_t* list, int64_t count, int64_t gap, int64_t least, int64_t most) {
  for (int64_t i = 0; i < count; i++)
    if (list[i] < least || list[i] > most || (i > 0 && int64_t{list[i]} - list[i - 1] < gap)) return false;
  return true;
}

bool lengths_fit(const int32_t* lengths, int32_t b, int64_t longest) {
  return ascends(lengths, 1, 0, 0, longest) && (b == 1 || lengths_fit(lengths + 1, b - 1, longest));
}

bool layer_valid(const sparsefill_layer& layer) {
  const int64_t longest = int64_t{INT32_MAX} - TILE;
  int available = 0;
  bool known = layer.isa == nullptr;
  for (int i = 0; const char* name = sparsefill_isa(i, &available); i++)
    if (!known && available) known = std::strcmp(name, layer.isa) == 0;
  return known && layer.type >= 0 && layer.type <= 2 && layer.threads >= 1 && layer.b >= 1 &&
         layer.g >= 1 && layer.h >= 1 && layer.h % layer.g == 0 && layer.d >= 8 && layer.d <= 256 &&
         layer.d % 8 == 0 && layer.n >= 1 && layer.m >= 1 && layer.n <= longest && layer.m <= longest &&
         lengths_fit(layer.query_lengths, layer.b, layer.n) &&
         lengths_fit(layer.key_lengths, layer.b, layer.m);
}

// The invariants of SparseIndex, stated once more and checked slowly.
bool index_valid(const Case& c) {
  const sparsefill_index index = c.index.view();
  const sparsefill_layer& layer = c.layer;
  if (index.x != layer.h && index.x != layer.g) return false;
  const int64_t blocks = (layer.n + TILE - 1) / TILE;
  for (int64_t at = 0; at < int64_t{layer.b} * index.x; at++) {
    const int64_t slash_count = index.slash_counts[at], column_count = index.column_counts[at];
    if (slash_count < 0 || slash_count > index.slash_capacity || column_count < 0 ||
        column_count > index.column_capacity)
      return false;
    const int32_t* slashes = index.slash_tiles + at * index.slash_capacity;
    const int32_t* columns = index.column_indices + at * index.column_capacity;
    if (!ascends(slashes, slash_count, TILE, 0, INT32_MAX)) return false;
    if (!ascends(columns, column_count, 1, 0, layer.m - 1)) return false;
    for (int64_t i = 0; index.row_ptr != nullptr && i < blocks; i++) {
      const int32_t* ptr = index.row_ptr + at * (blocks + 1) + i;
      if (ptr[0] < 0 || ptr[1] < ptr[0] || ptr[1] > index.tile_count) return false;
      const int32_t* starts = index.tile_starts + ptr[0];
      const int64_t most = std::max(row_block_end(c, at / index.x, i), layer.m) - 1;
      if (!ascends(starts, ptr[1] - ptr[0], TILE, 1 - TILE, most)) return false;
      for (int64_t t = 0; t < ptr[1] - ptr[0]; t++)
        for (int64_t o = 0; o < slash_count; o++)
          if (std::llabs(row_block_end(c, at / index.x, i) - TILE - slashes[o] - starts[t]) < TILE)
            return false;
    }
  }
  return true;
}

// Break one thing, or by luck nothing; tell what in `about`.
void corrupt(Rng& rng, Case& c, const char*& isa, std::string& about) {
  sparsefill_layer& layer = c.layer;
  sparsefill_index& shape = c.index.shape;
  const auto extreme = [&] { return rng.pick({INT_MIN, INT_MIN + 1, -64, -1, 0, 1, 63, 64, INT_MAX - 64, INT_MAX}); };
  struct List {
    const char* name;
    Ints* entries;
  };
  const List lists[] = {{"slash_counts", &c.index.slash_counts},     {"slash_tiles", &c.index.slash_tiles},
                        {"column_counts", &c.index.column_counts},   {"column_indices", &c.index.column_indices},
                        {"row_ptr", &c.index.row_ptr},               {"tile_starts", &c.index.tile_starts},
                        {"query_lengths", &c.query_lengths},         {"key_lengths", &c.key_lengths}};
  char text[96] = "";
  if (rng.chance(0.75)) {
    const List list = lists[rng.range(0, 7)];
    Ints& entries = *list.entries;
    if (entries.empty()) return;
    const auto i = static_cast<size_t>(rng.range(0, static_cast<int64_t>(entries.size()) - 1));
    const int64_t old = entries[i];
    const int64_t near = std::clamp<int64_t>(old + rng.pick<int64_t>({-65, -64, -1, 1, 64, 65, 128}), INT_MIN, INT_MAX);
    const bool lengths = list.entries == &c.query_lengths || list.entries == &c.key_lengths;
    if (i > 0 && rng.chance(0.2) && !lengths)
      std::swap(entries[i], entries[i - 1]);
    else
      entries[i] = static_cast<int32_t>(rng.chance(0.5) ? near : extreme());
    const int64_t longest = list.entries == &c.query_lengths ? layer.n : layer.m;
    if (lengths && entries[i] > old && entries[i] <= longest)
      entries[i] = static_cast<int32_t>(std::min<int64_t>(longest, INT_MAX - 1) + 1);  // what lies beyond `old` is NaN
    std::snprintf(text, sizeof text, "%s[%zu] = %d; ", list.name, i, entries[i]);
  } else {
    const auto set = [&](const char* name, auto& field, std::initializer_list<int64_t> values) {
      const int64_t value = rng.pick(values);
      field = static_cast<std::decay_t<decltype(field)>>(value);
      std::snprintf(text, sizeof text, "%s = %lld; ", name, static_cast<long long>(value));
    };
    const int64_t slashes = shape.slash_capacity, columns = shape.column_capacity, tiles = shape.tile_count;
    const int64_t longest = int64_t{INT32_MAX} - TILE;
    switch (rng.range(0, 12)) {
      case 0: set("type", layer.type, {-1, 3, INT_MAX, INT_MIN}); break;
      case 1: set("threads", layer.threads, {0, -1, INT_MIN, 1000, INT_MAX}); break;
      case 2: set("d", layer.d, {0, -8, 4, int64_t{layer.d} + 4, 264, INT_MIN, INT_MAX, INT_MAX - 7}); break;
      case 3: set("g", layer.g, {0, -1, int64_t{layer.h} + 1, INT_MIN, INT_MAX}); break;
      case 4: set("h", layer.h, {0, -1, INT_MIN, -int64_t{layer.g}, layer.g > 1 ? int64_t{layer.h} + 1 : 0}); break;
      case 5: set("b", layer.b, {0, -1, INT_MIN}); break;
      case 6: set("n", layer.n, {0, -1, INT64_MIN, INT64_MAX, longest + 1}); break;
      case 7: set("m", layer.m, {0, -1, INT64_MIN, INT64_MAX, longest + 1}); break;
      case 8: set("x", shape.x, {0, -1, int64_t{layer.h} + 1, INT_MIN, INT_MAX}); break;
      case 9: set("slash_capacity", shape.slash_capacity, {-1, 0, slashes / 2, INT_MIN}); break;
      case 10: set("column_capacity", shape.column_capacity, {-1, 0, columns / 2, INT_MIN}); break;
      case 11: set("tile_count", shape.tile_count, {-1, 0, tiles / 2, std::max<int64_t>(tiles, 1) - 1, INT64_MIN}); break;
      default:
        isa = rng.pick({"", "sse9", "avx512 ", "AVX2"});
        std::snprintf(text, sizeof text, "isa = \"%s\"; ", isa);
    }
  }
  about += text;
}

void check_message(const char* message) {
  const void* end = std::memchr(message, 0, SPARSEFILL_MESSAGE);
  if (end == nullptr || end == message || std::strchr(message, '\n') != nullptr)
    throw Failure("refused without one line of text");
}

// Write NaN or an infinity.
void spoil(Rng& rng, int type, char* to) {
  const uint32_t exponent = type == 0 ? 0x7f800000 : type == 1 ? 0x7f80 : 0x7c00;
  const uint32_t sign = type == 0 ? 0x80000000 : 0x8000;
  const uint32_t bits = exponent | (rng.chance(0.5) ? sign : 0) | static_cast<uint32_t>(rng.range(0, 1));
  std::memcpy(to, &bits, static_cast<size_t>(size_of(type)));  // little-endian, as everywhere here
}

// Only one number that is not finite, and only where a sequence reaches, is found.
void check_finite(Case c, const std::vector<const char*>& isas, Rng& rng) {
  int32_t expected = 0;
  for (size_t t = 0; t < 3; t++) {
    const Ints& lengths = t == 0 ? c.query_lengths : c.key_lengths;
    const int64_t s = rng.range(0, c.layer.b - 1);
    const int64_t length = lengths[static_cast<size_t>(s)];
    if (length == 0 || rng.chance(0.5)) continue;
    const int64_t h = rng.range(0, (t == 0 ? c.layer.h : c.layer.g) - 1);
    spoil(rng, c.layer.type, c.qkv[t].at(s, h, rng.range(0, length - 1)) +
                                 rng.range(0, c.layer.d - 1) * size_of(c.layer.type));
    expected |= 1 << t;
  }
  for (const char* isa : isas) {
    const sparsefill_layer layer = c.layer_for(isa);
    const sparsefill_tensor q = c.qkv[0].view(), k = c.qkv[1].view(), v = c.qkv[2].view();
    int32_t broken = -1;
    char message[SPARSEFILL_MESSAGE];
    if (sparsefill_find_not_finite(&layer, &q, &k, &v, &broken, message) != 0)
      throw Failure("%s: refused: %s", isa, message);
    if (broken != expected)
      throw Failure("%s: found %d not finite, expected %d", isa, broken, expected);
  }
}

}  // namespace

void fuzz_attend(Rng& rng, std::string& about) {
  static const std::vector<const char*> isas = available_isas();
  const Case c = random_case(rng, 800000);
  about = c.about;
  std::vector<Result> results;
  for (const char* isa : isas) results.push_back(attended(c, c.layer_for(isa)));
  check_results(c, isas, results);
  const auto any = static_cast<size_t>(rng.range(0, static_cast<int64_t>(isas.size()) - 1));
  sparsefill_layer other = c.layer_for(isas[any]);
  other.threads = c.layer.threads == 1 ? 3 : 1;
  if (!(attended(c, other) == results[any]))
    throw Failure("%s: other results on %d threads", isas[any], other.threads);
  check_finite(c, isas, rng);
}

void fuzz_hostile(Rng& rng, std::string& about) {
  Case c = random_case(rng, 100000);
  about = c.about + ": ";
  const char* isa = nullptr;
  for (int64_t left = rng.pick({1, 1, 1, 2, 3}); left > 0; left--) corrupt(rng, c, isa, about);
  const sparsefill_layer layer = c.layer_for(isa);
  // An index is judged only in a layer that makes sense: it tells how long the lists are.
  sparsefill_layer any_isa = layer;
  any_isa.isa = nullptr;
  const bool shapes = layer_valid(any_isa) && index_valid(c), valid = shapes && layer_valid(layer);
  const sparsefill_index index = c.index.view();
  char message[SPARSEFILL_MESSAGE];
  std::memset(message, 'x', sizeof message);
  const int checked = sparsefill_check_index(&layer, &index, message);
  if (checked != 0) check_message(message);
  if ((checked == 0) != shapes)
    throw Failure("check_index %s, but this is %s", checked ? message : "accepts", shapes ? "valid" : "not valid");
  if (!valid) {
    // Nothing may be written either; the shapes of the outputs may be nonsense now.
    const sparsefill_tensor none{nullptr, 0, 0, 0};
    std::memset(message, 'x', sizeof message);
    if (sparsefill_attend(&layer, &index, &none, &none, &none, &none, nullptr, message) == 0)
      throw Failure("attend accepts what is not valid");
    check_message(message);
    return;
  }
  std::vector<Result> results;
  results.push_back(attended(c, layer));
  check_results(c, {"best"}, results);
}

void fuzz_callers(Rng& rng, std::string& about) {
  static const std::vector<const char*> isas = available_isas();
  constexpr size_t callers = 4;
  std::vector<Case> cases;
  std::vector<Result> alone;
  std::vector<const char*> isa_of;
  for (size_t i = 0; i < callers; i++) {
    cases.push_back(random_case(rng, 200000));
    isa_of.push_back(isas[rng.next() % isas.size()]);
    about += std::string(i ? " | " : "") + isa_of[i] + " " + cases[i].about;
    alone.push_back(attended(cases[i], cases[i].layer_for(isa_of[i])));
  }
  std::string wrong[callers];
  const auto work = [&](size_t caller) {
    try {
      for (size_t i = 0; i < callers; i++) {
        // All on the same inputs first, then each on its own.
        const size_t one = i == 0 ? 0 : (caller + i) % callers;
        if (!(attended(cases[one], cases[one].layer_for(isa_of[one])) == alone[one]))
          wrong[caller] = "other results than alone";
      }
    } catch (const Failure& failure) {
      wrong[caller] = failure.what();
    }
  };
  std::vector<std::thread> threads;
  for (size_t i = 0; i < callers; i++) threads.emplace_back(work, i);
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < callers; i++)
    if (!wrong[i].empty()) throw Failure("caller %zu: %s", i, wrong[i].c_str());
}

}  // namespace fuzz
