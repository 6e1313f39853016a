/* The C interface of the CPU kernels.
 *
 * Callers pass plain pointers; nothing is kept after a call returns. Every function that can
 * fail returns 0, or another value with one line of text in `message`, which holds
 * SPARSEFILL_MESSAGE bytes. All functions may be called from several threads at once.
 */
#ifndef SPARSEFILL_H
#define SPARSEFILL_H

#include <stdint.h>

#if defined(__GNUC__)
#define SPARSEFILL_API __attribute__((visibility("default")))
#else
#define SPARSEFILL_API
#endif

#define SPARSEFILL_ABI_VERSION 2
#define SPARSEFILL_MESSAGE 256

#ifdef __cplusplus
extern "C" {
#endif

/* A tensor of shape (b, heads, length, d), d contiguous; strides in elements. */
typedef struct {
  void* data;
  int64_t sequence, head, row;
} sparsefill_tensor;

/* The sizes, types and maths that a layer's stages share. */
typedef struct {
  const char* isa;  /* one of the names that sparsefill_isa lists; the best when NULL */
  int32_t type;     /* 0 float32, 1 bfloat16, 2 float16 */
  int32_t threads;
  int32_t b, h, g, d;
  int64_t n, m;
  float scale;
  float softcap;                /* none when 0 */
  const int32_t* query_lengths; /* b of them, at most n */
  const int32_t* key_lengths;   /* b of them, at most m */
} sparsefill_layer;

/* A SparseIndex (see DESIGN.md), its tensors contiguous. */
typedef struct {
  int32_t x; /* index heads: h, or g */
  int64_t slash_capacity, column_capacity, tile_count;
  const int32_t* slash_counts;   /* b, x */
  const int32_t* slash_tiles;    /* b, x, slash_capacity */
  const int32_t* column_counts;  /* b, x */
  const int32_t* column_indices; /* b, x, column_capacity */
  const int32_t* row_ptr;        /* b, x, row blocks + 1; or NULL */
  const int32_t* tile_starts;    /* tile_count; or NULL */
} sparsefill_index;

/* How many keys a vertical-slash estimate keeps, per head. */
typedef struct {
  int32_t head;                                     /* query head */
  int32_t probe, verticals, slashes, sink, window; /* see VerticalSlash */
} sparsefill_lines;

/* How many blocks a block top-k estimate keeps, per head. */
typedef struct {
  int32_t head;                  /* query head */
  int32_t blocks, sink, window; /* see BlockTopK */
} sparsefill_blocks;

SPARSEFILL_API int sparsefill_abi_version(void);

/* Run on the threads of an OpenMP runtime, given the address of its GOMP_parallel; on threads
 * of our own when NULL. After its own work such a runtime's threads spin for milliseconds, and
 * threads of ours would have to share the cores with them. */
SPARSEFILL_API void sparsefill_share_threads(void* gomp_parallel);

/* Name of the i-th instruction set that was compiled, fastest first, NULL past the last;
 * `*available` tells whether this CPU and operating system have it. */
SPARSEFILL_API const char* sparsefill_isa(int i, int* available);

/* Which of q, k and v hold NaN or infinity within their sequences' lengths: bits 1, 2 and 4 of
 * *broken. */
SPARSEFILL_API int sparsefill_find_not_finite(const sparsefill_layer*, const sparsefill_tensor* q,
                                              const sparsefill_tensor* k,
                                              const sparsefill_tensor* v, int32_t* broken,
                                              char* message);

/* Refuse an index that breaks the invariants of SparseIndex or would be read out of bounds. */
SPARSEFILL_API int sparsefill_check_index(const sparsefill_layer*, const sparsefill_index*,
                                          char* message);

/* out (b, h, n, d) and lse (b, h, n) of attention over the cells of an index. The index is
 * checked first. Rows without keys give zeros and -inf. */
SPARSEFILL_API int sparsefill_attend(const sparsefill_layer*, const sparsefill_index*,
                                     const sparsefill_tensor* q, const sparsefill_tensor* k,
                                     const sparsefill_tensor* v, const sparsefill_tensor* out,
                                     float* lse, char* message);

/* How many causal cells an index keeps: cells (b, x). The index is checked first. */
SPARSEFILL_API int sparsefill_count_cells(const sparsefill_layer*, const sparsefill_index*,
                                          int64_t* cells, char* message);

/* Vertical-slash: sums of the last queries' attention along columns and diagonals.
 * columns and diagonals have shape (b, x, m), x being the number of entries of `lines`. */
SPARSEFILL_API int sparsefill_line_sums(const sparsefill_layer*, const sparsefill_lines* lines,
                                        int32_t x, const sparsefill_tensor* q,
                                        const sparsefill_tensor* k, float* columns,
                                        float* diagonals, char* message);

/* Vertical-slash: the largest sums, as columns and merged slash tiles. column_indices has
 * shape (b, x, column_capacity), slash_tiles (b, x, slash_capacity). */
SPARSEFILL_API int sparsefill_choose_lines(const sparsefill_layer*, const sparsefill_lines* lines,
                                           int32_t x, const float* columns, const float* diagonals,
                                           int64_t column_capacity, int64_t slash_capacity,
                                           int32_t* column_counts, int32_t* column_indices,
                                           int32_t* slash_counts, int32_t* slash_tiles,
                                           char* message);

/* Block top-k: which key blocks each block of queries keeps. kept has shape
 * (b, x, query blocks, capacity), ascending, and counts (b, x, query blocks). */
SPARSEFILL_API int sparsefill_choose_blocks(const sparsefill_layer*,
                                            const sparsefill_blocks* blocks, int32_t x,
                                            int32_t block, const sparsefill_tensor* q,
                                            const sparsefill_tensor* k, int64_t capacity,
                                            int32_t* counts, int32_t* kept, char* message);

/* The tiles of chosen blocks, row block by row block: row_ptr (b, x, row blocks + 1), and
 * tile_starts, which holds as many as the last entry of row_ptr says; only counted when NULL. */
SPARSEFILL_API int sparsefill_list_blocks(const sparsefill_layer*, int32_t x, int32_t block,
                                          int64_t capacity, const int32_t* counts,
                                          const int32_t* kept, int32_t* row_ptr,
                                          int32_t* tile_starts, char* message);

/* Floating-point operations per second of register-only multiply-adds (type 0 float32,
 * 1 bf16 dot products), on the given number of threads; 0 if the CPU lacks them. */
SPARSEFILL_API double sparsefill_peak(int type, int threads, double seconds);

#ifdef __cplusplus
}
#endif
#endif
