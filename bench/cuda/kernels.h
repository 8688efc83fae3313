#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

// The benchmark's own kernels: random content, checks in double precision, ceilings. All take
// bfloat16 and head_dim 64, 128 or 256, and caches of 16 bits or of 8 (e4m3). A launch that fails
// throws.
namespace seqattn::bench {

// Normally distributed numbers.
void fill_normal(void* to, std::int64_t count, std::uint64_t seed, cudaStream_t stream);
void fill_normal_float8(void* to, std::int64_t count, std::uint64_t seed, cudaStream_t stream);
void fill_ones(float* to, std::int64_t count, cudaStream_t stream);

// How many elements are NaN or infinite; waits for the stream.
std::int64_t count_not_finite(const void* values, std::int64_t count, cudaStream_t stream);

// One layer's cache and the tables of a batch, in device memory.
struct PagedCache {
  const void* keys = nullptr;
  const void* values = nullptr;
  const std::int32_t* page_indices = nullptr;
  const std::int32_t* page_indptr = nullptr;
  int page_size = 0;
  int num_kv_heads = 0;
  int head_dim = 0;
  bool is_hnd = false;  // [pages, num_kv_heads, page_size, head_dim], else heads behind tokens
  int element_bytes = 2;
  // Of a cache of 8 bits with scales of tokens: laid out as the cache without its last axis. Else
  // all scales are 1.
  const float* key_scales = nullptr;
  const float* value_scales = nullptr;
};

// A query of the batch: its row, and the keys that it sees, from the first on.
struct Sample {
  std::int32_t token = 0;
  std::int32_t row = 0;
  std::int32_t num_keys = 0;
};

// out[i] [num_qo_heads, head_dim], double: softmax(q . k / sqrt(head_dim)) v of sample i, computed
// plainly. Scales have to be 1.
void reference_attention(const PagedCache& cache, const void* q, int num_qo_heads,
                         const Sample* samples, std::int64_t num_samples, double* out,
                         cudaStream_t stream);

// How many elements of the cache differ from the new tokens that belong there, by more than the
// rounding to 8 bits where it is of those; waits.
// row[t] and position[t] of token t, in device memory.
std::int64_t count_append_errors(const PagedCache& cache, const void* new_keys,
                                 const void* new_values, const std::int32_t* row,
                                 const std::int32_t* position, std::int64_t num_tokens,
                                 cudaStream_t stream);

// Reads everything and keeps nothing. `sink` is one word that is written for an impossible value.
void read_all(const void* from, std::int64_t num_bytes, std::uint32_t* sink, cudaStream_t stream);

// Reads keys and values of these pages through the table and keeps nothing.
void read_pages(const PagedCache& cache, std::int64_t num_pages, std::uint32_t* sink,
                cudaStream_t stream);

// Keeps the stream busy for so long, while the host enqueues what is to be timed.
void hold_stream(double microseconds, cudaStream_t stream);

}  // namespace seqattn::bench
