// Instruction sets, errors, checks: everything around the kernels.
#include "library.h"

#include <chrono>
#include <cstdio>
#include <cstring>
#include <new>
#include <system_error>
#include <thread>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace sparsefill {
namespace {

#if defined(__x86_64__)
struct Cpu {
  bool avx2 = false, avx512 = false, avx512bf16 = false, amx = false;

  Cpu() {
    unsigned a, b, c, d;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return;
    const bool fma = c & bit_FMA, f16c = c & bit_F16C, osxsave = c & bit_OSXSAVE;
    if (!osxsave) return;
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    const bool saves_ymm = (low & 0x06) == 0x06;
    const bool saves_zmm = (low & 0xe6) == 0xe6;
    const bool saves_tiles = (low & 0x60000) == 0x60000;
    unsigned b7, c7, d7;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return;
    const unsigned leaves = a;
    unsigned a71 = 0, b71, c71, d71;
    if (leaves >= 1) __get_cpuid_count(7, 1, &a71, &b71, &c71, &d71);
    avx2 = saves_ymm && fma && f16c && (b7 & bit_AVX2);
    avx512 = avx2 && saves_zmm && (b7 & bit_AVX512F) && (b7 & bit_AVX512BW) &&
             (b7 & bit_AVX512VL) && (b7 & bit_AVX512DQ);
    avx512bf16 = avx512 && (a71 & (1u << 5));
    amx = avx512bf16 && saves_tiles && (d7 & (1u << 24)) && (d7 & (1u << 22)) && may_use_tiles();
  }

  // Linux hands out the tile registers only to processes that ask for them.
  static bool may_use_tiles() {
#if defined(__linux__)
    constexpr int arch_req_xcomp_perm = 0x1023, xfeature_xtiledata = 18;
    return syscall(SYS_arch_prctl, arch_req_xcomp_perm, xfeature_xtiledata) == 0;
#else
    return false;
#endif
  }
};
#endif

struct Isa {
  const Kernels* kernels;
  bool available;
};

// Fastest first.
const std::vector<Isa>& isas() {
  static const std::vector<Isa> all = [] {
    std::vector<Isa> found;
#if defined(__x86_64__)
    const Cpu cpu;
#if defined(SPARSEFILL_HAVE_AMX) && !defined(SPARSEFILL_EMULATE_AMX)
    found.push_back({amx::kernels(), cpu.amx});
#endif
#if defined(SPARSEFILL_HAVE_AVX512BF16)
    found.push_back({avx512bf16::kernels(), cpu.avx512bf16});
#endif
#if defined(SPARSEFILL_HAVE_AVX512)
    found.push_back({avx512::kernels(), cpu.avx512});
#endif
#if defined(SPARSEFILL_HAVE_AVX2)
    found.push_back({avx2::kernels(), cpu.avx2});
#endif
#if defined(SPARSEFILL_HAVE_AMX) && defined(SPARSEFILL_EMULATE_AMX)
    found.push_back({amx::kernels(), cpu.avx512bf16});  // for tests: slow, never the best
#endif
#endif
    found.push_back({baseline::kernels(), true});
    return found;
  }();
  return all;
}

void check_length(const char* name, const int32_t* lengths, int32_t b, int64_t longest) {
  for (int32_t s = 0; s < b; s++)
    if (lengths[s] < 0 || lengths[s] > longest)
      throw Refusal("%s must lie in 0..%lld, got %d for sequence %d", name,
                    static_cast<long long>(longest), lengths[s], s);
}

// Entries that ascend by at least `gap`, in [least, most].
void check_list(const char* name, const int32_t* list, int64_t count, int64_t capacity,
                int64_t gap, int64_t least, int64_t most, int32_t s, int32_t x) {
  if (count < 0 || count > capacity)
    throw Refusal("index of sequence %d, head %d: %lld %s, but there is room for %lld", s, x,
                  static_cast<long long>(count), name, static_cast<long long>(capacity));
  for (int64_t i = 0; i < count; i++) {
    if (list[i] < least || list[i] > most)
      throw Refusal("index of sequence %d, head %d: %s must lie in %lld..%lld, got %d", s, x, name,
                    static_cast<long long>(least), static_cast<long long>(most), list[i]);
    if (i > 0 && static_cast<int64_t>(list[i]) - list[i - 1] < gap)
      throw Refusal("index of sequence %d, head %d: %s must ascend by at least %lld, got %d after %d",
                    s, x, name, static_cast<long long>(gap), list[i], list[i - 1]);
  }
}

// Tiles of one row block must not overlap its slash tiles.
void check_apart(const int32_t* slashes, int64_t slash_count, const int32_t* starts, int64_t count,
                 int64_t end, int32_t s, int32_t x) {
  int64_t slash = slash_count - 1;  // the farthest has the smallest start
  for (int64_t t = 0; t < count; t++) {
    while (slash >= 0 && end - TILE - slashes[slash] + TILE <= starts[t]) slash--;
    if (slash >= 0 && end - TILE - slashes[slash] < static_cast<int64_t>(starts[t]) + TILE)
      throw Refusal("index of sequence %d, head %d: tile %d overlaps the slash tile of offset %d", s,
                    x, starts[t], slashes[slash]);
  }
}

// What all workers of one parallel call share.
struct Team {
  void (*body)(void*, int);
  void* context;
  int threads;
  std::atomic<int> joined{0};
  std::atomic<bool> failed{false};
  std::exception_ptr error;

  static void work(void* self) {
    Team& team = *static_cast<Team*>(self);
    const int worker = team.joined.fetch_add(1);
    if (worker >= team.threads) return;
    try {
      team.body(team.context, worker);
    } catch (...) {
      if (!team.failed.exchange(true)) team.error = std::current_exception();
    }
  }
};

// GOMP_parallel(work, data, threads, flags) of the OpenMP runtime in use, if one was given.
using ShareTeam = void (*)(void (*)(void*), void*, unsigned, unsigned);
std::atomic<ShareTeam> share_team{nullptr};

void run_on_own_threads(Team& team) {
  std::vector<std::thread> workers;
  workers.reserve(static_cast<size_t>(team.threads));  // no throw once one runs
  for (int i = 1; i < team.threads; i++) {
    try {
      workers.emplace_back(Team::work, &team);
    } catch (const std::system_error&) {
      break;  // the system gives no more threads: those at hand do all the work
    }
  }
  Team::work(&team);
  for (std::thread& worker : workers) worker.join();
}

}  // namespace

void run_on_threads(int threads, void (*body)(void*, int), void* context) {
  if (threads <= 1) return body(context, 0);
  Team team{body, context, threads, {}, {}, {}};
  if (const ShareTeam share = share_team.load())
    share(Team::work, &team, static_cast<unsigned>(threads), 0);
  else
    run_on_own_threads(team);
  if (team.error) std::rethrow_exception(team.error);
}

Refusal::Refusal(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(text_, sizeof text_, format, arguments);
  va_end(arguments);
}

int guard(char* message, void (*body)(void*), void* context) {
  message[0] = 0;
  try {
    body(context);
    return 0;
  } catch (const std::bad_alloc&) {
    std::snprintf(message, SPARSEFILL_MESSAGE, "out of memory; use a shorter prompt or fewer threads");
    return 2;
  } catch (const std::exception& error) {
    std::snprintf(message, SPARSEFILL_MESSAGE, "%s", error.what());
    return 1;
  }
}

const Kernels& find_kernels(const char* name) {
  for (const Isa& isa : isas()) {
    if (name == nullptr ? isa.available : std::strcmp(name, isa.kernels->name) == 0) {
      if (!isa.available) throw Refusal("this CPU lacks the instruction set %s", name);
      return *isa.kernels;
    }
  }
  throw Refusal("instruction set %s was not compiled", name == nullptr ? "(none)" : name);
}

void check_layer(const sparsefill_layer& layer) {
  if (layer.type < 0 || layer.type > 2) throw Refusal("no element type %d", layer.type);
  if (layer.d < 8 || layer.d > MAX_HEAD_DIM || layer.d % 8)
    throw Refusal("head_dim must be a multiple of 8 in 8..%d, got %d", MAX_HEAD_DIM, layer.d);
  if (layer.b < 1 || layer.h < 1 || layer.g < 1 || layer.h % layer.g)
    throw Refusal("expected b >= 1 and h a multiple of g, got b=%d, h=%d, g=%d", layer.b, layer.h,
                  layer.g);
  if (layer.n < 1 || layer.m < 1 || layer.n > INT32_MAX - TILE || layer.m > INT32_MAX - TILE)
    throw Refusal("expected 1 to 2^31 - 65 queries and keys, got n=%lld, m=%lld",
                  static_cast<long long>(layer.n), static_cast<long long>(layer.m));
  if (layer.threads < 1) throw Refusal("expected at least one thread, got %d", layer.threads);
  check_length("query_lengths", layer.query_lengths, layer.b, layer.n);
  check_length("key_lengths", layer.key_lengths, layer.b, layer.m);
}

void check_index(const sparsefill_layer& layer, const sparsefill_index& index) {
  if (index.x != layer.h && index.x != layer.g)
    throw Refusal("index must have %d query or %d KV heads, got %d", layer.h, layer.g, index.x);
  const int64_t blocks = blocks_of(layer.n);
  for (int32_t s = 0; s < layer.b; s++) {
    for (int32_t x = 0; x < index.x; x++) {
      const int64_t at = static_cast<int64_t>(s) * index.x + x;
      const int32_t* slashes = index.slash_tiles + at * index.slash_capacity;
      check_list("slash tiles", slashes, index.slash_counts[at], index.slash_capacity, TILE, 0,
                 INT32_MAX, s, x);
      check_list("columns", index.column_indices + at * index.column_capacity,
                 index.column_counts[at], index.column_capacity, 1, 0, layer.m - 1, s, x);
      if (index.row_ptr == nullptr) continue;
      const int32_t* row_ptr = index.row_ptr + at * (blocks + 1);
      for (int64_t i = 0; i < blocks; i++) {
        const int64_t first = row_ptr[i], end = row_ptr[i + 1];
        if (first < 0 || end < first || end > index.tile_count)
          throw Refusal("index of sequence %d, head %d: row_ptr must ascend in 0..%lld, got %lld, %lld",
                        s, x, static_cast<long long>(index.tile_count),
                        static_cast<long long>(first), static_cast<long long>(end));
        const int32_t* starts = index.tile_starts + first;
        const int64_t row_block_end = TILE * (i + 1) + layer.key_lengths[s] - layer.query_lengths[s];
        const int64_t most = (row_block_end > layer.m ? row_block_end : layer.m) - 1;
        check_list("tile starts", starts, end - first, end - first, TILE, 1 - TILE, most, s, x);
        check_apart(slashes, index.slash_counts[at], starts, end - first, row_block_end, s, x);
      }
    }
  }
}

Bytes allocate(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes < 64 ? 64 : bytes)) throw std::bad_alloc();
  prefer_large_pages(memory, bytes);
  return Bytes(static_cast<char*>(memory));
}

void prefer_large_pages(void* memory, size_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
  constexpr uintptr_t page = 2 << 20;
  const auto first = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t from = (first + page - 1) / page * page, to = (first + bytes) / page * page;
  if (to > from) (void)madvise(reinterpret_cast<void*>(from), to - from, MADV_HUGEPAGE);
#else
  (void)memory;
  (void)bytes;
#endif
}

}  // namespace sparsefill

int sparsefill_abi_version(void) { return SPARSEFILL_ABI_VERSION; }

void sparsefill_share_threads(void* gomp_parallel) {
  sparsefill::share_team = reinterpret_cast<sparsefill::ShareTeam>(gomp_parallel);
}

const char* sparsefill_isa(int i, int* available) {
  const auto& all = sparsefill::isas();
  if (i < 0 || i >= static_cast<int>(all.size())) return nullptr;
  *available = all[static_cast<size_t>(i)].available;
  return all[static_cast<size_t>(i)].kernels->name;
}

int sparsefill_check_index(const sparsefill_layer* layer, const sparsefill_index* index,
                           char* message) {
  return sparsefill::guarded(message, [&] {
    sparsefill::check_layer(*layer);
    sparsefill::check_index(*layer, *index);
  });
}

double sparsefill_peak(int type, int threads, double seconds) {
  using clock = std::chrono::steady_clock;
  const sparsefill::Kernels& kernels = sparsefill::find_kernels(nullptr);
  const auto kind = type == 1 ? sparsefill::Type::bf16 : sparsefill::Type::f32;
  std::vector<double> rates(static_cast<size_t>(threads < 1 ? 1 : threads));
  sparsefill::parallel(static_cast<int>(rates.size()), [&](int worker) {
    double operations = 0, elapsed = 0;
    const auto started = clock::now();
    while (elapsed < seconds) {
      const double done = kernels.burn(kind, 100000);
      if (done == 0) return;  // this CPU lacks them
      operations += done;
      elapsed = std::chrono::duration<double>(clock::now() - started).count();
    }
    rates[static_cast<size_t>(worker)] = operations / elapsed;
  });
  double total = 0;
  for (const double rate : rates) total += rate;
  return total;
}
