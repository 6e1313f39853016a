// Random estimates: sums against plain double-precision code, and indices that are valid.
#include <algorithm>

#include "fuzz.h"

namespace fuzz {
namespace {

struct Input {
  int type;
  int32_t b, g, r, d;
  int64_t n, m;
  double scale;
  std::vector<int32_t> query_lengths, key_lengths;
  std::vector<double> q, k;  // contiguous
};

int32_t random_budget(Rng& rng, int64_t most) {
  return static_cast<int32_t>(rng.range(0, rng.chance(0.5) ? 20 : most));
}

void call(int status, const char* name, const char* message) {
  if (status != 0) throw Failure("%s was refused: %s", name, message);
}

// Sums of the last `probe` queries' softmax along columns and diagonals.
FUZZ_UNCHECKED void reference_sums(const Input& in, int64_t s, int64_t h, int64_t probe,
                                   std::vector<double>& columns, std::vector<double>& diagonals) {
  const int64_t queries = in.query_lengths[static_cast<size_t>(s)];
  const int64_t keys = in.key_lengths[static_cast<size_t>(s)];
  columns.assign(static_cast<size_t>(in.m), 0);
  diagonals.assign(static_cast<size_t>(in.m), 0);
  std::vector<double> x(static_cast<size_t>(in.m));
  for (int64_t i = std::max<int64_t>(0, queries - probe); i < queries; i++) {
    const int64_t position = i + keys - queries;
    double top = -INFINITY, sum = 0;
    for (int64_t j = 0; j <= position; j++) {
      double score = 0;
      for (int64_t c = 0; c < in.d; c++)
        score += in.q[static_cast<size_t>(((s * in.g * in.r + h) * in.n + i) * in.d + c)] *
                 in.k[static_cast<size_t>(((s * in.g + h / in.r) * in.m + j) * in.d + c)];
      x[static_cast<size_t>(j)] = score * in.scale;
      top = std::max(top, x[static_cast<size_t>(j)]);
    }
    for (int64_t j = 0; j <= position; j++) sum += std::exp(x[static_cast<size_t>(j)] - top);
    for (int64_t j = 0; j <= position; j++) {
      const double weight = std::exp(x[static_cast<size_t>(j)] - top) / sum;
      columns[static_cast<size_t>(j)] += weight;
      diagonals[static_cast<size_t>(position - j)] += weight;
    }
  }
}

void check_sums(const char* name, const float* got, const std::vector<double>& exact, int type) {
  // Weights are kept in bf16 for bf16 inputs (2^-9, and 2^-13 for their exponential), else in
  // float; 64 of them add up, and scores of size 10 carry an error of 1e-6 into the exponent.
  const double relative = type == 1 ? 0x1p-8 : 2e-5;
  for (size_t j = 0; j < exact.size(); j++) {
    const double error = std::fabs(static_cast<double>(got[j]) - exact[j]);
    if (!(error <= relative * exact[j] + 1e-5))
      throw Failure("%s: place %zu is %g, should be %g", name, j, static_cast<double>(got[j]), exact[j]);
  }
}

}  // namespace

void fuzz_estimate(Rng& rng, std::string& about) {
  Input in;
  in.type = static_cast<int>(rng.range(0, 2));
  in.b = static_cast<int32_t>(rng.range(1, 2));
  in.g = static_cast<int32_t>(rng.range(1, 3));
  in.r = static_cast<int32_t>(rng.range(1, 3));
  in.d = static_cast<int32_t>(8 * rng.range(1, rng.chance(0.1) ? 32 : 10));
  in.n = rng.range(1, rng.chance(0.5) ? 70 : 200);
  in.m = rng.chance(0.3) ? in.n : rng.range(1, rng.chance(0.02) ? 2500 : 250);
  in.scale = rng.pick({1 / std::sqrt(static_cast<double>(in.d)), 0.3, 0.0, -0.2});
  for (int32_t s = 0; s < in.b; s++) {
    in.query_lengths.push_back(static_cast<int32_t>(rng.chance(0.5) ? in.n : rng.range(0, in.n)));
    in.key_lengths.push_back(static_cast<int32_t>(rng.chance(0.5) ? in.m : rng.range(0, in.m)));
  }
  const int32_t h = in.g * in.r;
  Tensor q(rng, in.type, in.b, h, in.n, in.d), k(rng, in.type, in.b, in.g, in.m, in.d);
  q.fill(rng, in.query_lengths, 1);
  k.fill(rng, in.key_lengths, 1);
  in.q = q.values();
  in.k = k.values();
  about = std::string(name_of(in.type)) + " b" + std::to_string(in.b) + " h" + std::to_string(h) + " g" +
          std::to_string(in.g) + " n" + std::to_string(in.n) + " m" + std::to_string(in.m) + " d" +
          std::to_string(in.d) + " scale " + std::to_string(in.scale);
  sparsefill_layer layer = {nullptr, in.type, static_cast<int32_t>(rng.range(1, 4)), in.b, h, in.g,
                            in.d, in.n, in.m, static_cast<float>(in.scale), 0,
                            in.query_lengths.data(), in.key_lengths.data()};
  in.scale = static_cast<double>(layer.scale);
  std::vector<const char*> isas;
  int available;
  while (const char* name = sparsefill_isa(static_cast<int>(isas.size()), &available))
    isas.push_back(available ? name : nullptr);
  layer.isa = isas[static_cast<size_t>(rng.range(0, static_cast<int64_t>(isas.size()) - 1))];

  std::vector<sparsefill_lines> lines;
  std::vector<sparsefill_blocks> blocks;
  for (int32_t head = 0; head < h; head++) {
    if (rng.chance(0.3)) continue;
    lines.push_back({head, static_cast<int32_t>(rng.range(1, rng.chance(0.2) ? 150 : 64)),
                     random_budget(rng, in.m), random_budget(rng, in.m), random_budget(rng, in.m),
                     random_budget(rng, in.m)});
    blocks.push_back({head, static_cast<int32_t>(rng.range(1, 5)), random_budget(rng, in.m),
                      random_budget(rng, in.m)});
  }
  const auto x = static_cast<int32_t>(lines.size());
  if (x == 0) return;
  const sparsefill_tensor q_view = q.view(), k_view = k.view();
  char message[SPARSEFILL_MESSAGE];
  const int64_t heads = static_cast<int64_t>(in.b) * x;
  Guarded columns(heads * in.m * 4), diagonals(heads * in.m * 4);
  auto* column_sums = reinterpret_cast<float*>(columns.data());
  auto* diagonal_sums = reinterpret_cast<float*>(diagonals.data());
  call(sparsefill_line_sums(&layer, lines.data(), x, &q_view, &k_view, column_sums, diagonal_sums, message),
       "line_sums", message);
  std::vector<double> exact_columns, exact_diagonals;
  for (int64_t i = 0; i < heads; i++) {
    const sparsefill_lines& own = lines[static_cast<size_t>(i % x)];
    reference_sums(in, i / x, own.head, own.probe, exact_columns, exact_diagonals);
    check_sums("columns", column_sums + i * in.m, exact_columns, in.type);
    check_sums("diagonals", diagonal_sums + i * in.m, exact_diagonals, in.type);
  }

  const int64_t capacity = in.m;
  Guarded counts(2 * heads * 4), indices(heads * capacity * 4), tiles(heads * capacity * 4);
  auto* column_counts = reinterpret_cast<int32_t*>(counts.data());
  call(sparsefill_choose_lines(&layer, lines.data(), x, column_sums, diagonal_sums, capacity, capacity,
                               column_counts, reinterpret_cast<int32_t*>(indices.data()),
                               column_counts + heads, reinterpret_cast<int32_t*>(tiles.data()), message),
       "choose_lines", message);

  const auto block = static_cast<int32_t>(64 * rng.range(1, 3));
  const int64_t query_blocks = (in.n + block - 1) / block, key_blocks = (in.m + block - 1) / block;
  Guarded block_counts(heads * query_blocks * 4), kept(heads * query_blocks * key_blocks * 4);
  call(sparsefill_choose_blocks(&layer, blocks.data(), x, block, &q_view, &k_view, key_blocks,
                                reinterpret_cast<int32_t*>(block_counts.data()),
                                reinterpret_cast<int32_t*>(kept.data()), message),
       "choose_blocks", message);
  const int64_t row_blocks = (in.n + TILE - 1) / TILE;
  Guarded row_ptr(heads * (row_blocks + 1) * 4);
  auto* pointers = reinterpret_cast<int32_t*>(row_ptr.data());
  const auto list = [&](int32_t* starts) {
    call(sparsefill_list_blocks(&layer, x, block, key_blocks, reinterpret_cast<int32_t*>(block_counts.data()),
                                reinterpret_cast<int32_t*>(kept.data()), pointers, starts, message),
         "list_blocks", message);
  };
  list(nullptr);
  const int64_t total = pointers[heads * (row_blocks + 1) - 1];
  Guarded starts(total * 4);
  list(reinterpret_cast<int32_t*>(starts.data()));
  for (const Guarded* memory : {&columns, &diagonals, &counts, &indices, &tiles, &block_counts, &kept, &row_ptr, &starts})
    if (!memory->guards_intact()) throw Failure("an estimate wrote outside of its memory");

  // Both are indices that attention accepts, once as many heads are asked for as they have.
  sparsefill_layer alone = layer;
  alone.h = alone.g = x;
  std::vector<int32_t> none(static_cast<size_t>(heads), 0);
  const sparsefill_index of_lines = {x, capacity, capacity, 0, column_counts + heads,
                                     reinterpret_cast<int32_t*>(tiles.data()), column_counts,
                                     reinterpret_cast<int32_t*>(indices.data()), nullptr, nullptr};
  const sparsefill_index of_blocks = {x, 1, 1, total, none.data(), none.data(), none.data(), none.data(),
                                      pointers, reinterpret_cast<int32_t*>(starts.data())};
  call(sparsefill_check_index(&alone, &of_lines, message), "the index of lines", message);
  call(sparsefill_check_index(&alone, &of_blocks, message), "the index of blocks", message);
}

}  // namespace fuzz
