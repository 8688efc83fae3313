#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>

#include "device.h"
#include "kernels.h"

namespace seqattn::bench {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;
constexpr double kMinusInfinity = -1e300;  // below every logit

unsigned blocks_for(std::int64_t count) {
  return static_cast<unsigned>(
      std::clamp<std::int64_t>((count + kThreads - 1) / kThreads, 1, 8192));
}

__device__ std::uint64_t mix(std::uint64_t x) {  // the finaliser of splitmix64
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

__device__ inline void round_to(float x, __nv_bfloat16& to) { to = __float2bfloat16_rn(x); }
__device__ inline void round_to(float x, __nv_fp8_e4m3& to) { to = __nv_fp8_e4m3(x); }
__device__ inline double to_double(__nv_bfloat16 x) {
  return static_cast<double>(__bfloat162float(x));
}
__device__ inline double to_double(__nv_fp8_e4m3 x) {
  return static_cast<double>(static_cast<float>(x));
}

template <class T>
__global__ void fill(T* to, std::int64_t count, std::uint64_t seed) {
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    const std::uint64_t bits = mix(seed ^ mix(static_cast<std::uint64_t>(i)));
    const float u = (static_cast<float>(bits >> 40) + 0.5f) * 0x1p-24f;
    const float angle = static_cast<float>(bits & 0xffffff) * 0x1p-23f;
    round_to(sqrtf(-2 * logf(u)) * cospif(angle), to[i]);
  }
}

__global__ void count_bad(const __nv_bfloat16* values, std::int64_t count,
                          unsigned long long* errors) {
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  unsigned long long bad = 0;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    bad += isfinite(__bfloat162float(values[i])) ? 0 : 1;
  }
  if (bad != 0) atomicAdd(errors, bad);
}

// In heads.
__device__ std::int64_t slot_of(const PagedCache& cache, int row, int position, int kv_head) {
  const std::int64_t page = cache.page_indices[cache.page_indptr[row] + position / cache.page_size];
  const std::int64_t token = position % cache.page_size;
  return cache.is_hnd ? (page * cache.num_kv_heads + kv_head) * cache.page_size + token
                      : (page * cache.page_size + token) * cache.num_kv_heads + kv_head;
}

// Softmax over some keys: their maximum, the sum of exponentials, the weighted sum of values.
template <int kPerLane>
struct State {
  double max = kMinusInfinity, sum = 0;
  double out[kPerLane] = {};

  __device__ void merge(double other_max, double other_sum, const double* other_out) {
    const double common = fmax(max, other_max);
    const double own = exp(max - common), others = exp(other_max - common);
    for (int d = 0; d < kPerLane; ++d) out[d] = own * out[d] + others * other_out[d];
    sum = own * sum + others * other_sum;
    max = common;
  }
};

// A block for each (sample, head); its warps take keys in turn, its lanes some dimensions each.
template <class T, int kHeadDim>
__global__ void __launch_bounds__(kThreads)
    reference(PagedCache cache, const __nv_bfloat16* q, int num_qo_heads, const Sample* samples,
              double* out) {
  constexpr int kPerLane = kHeadDim / 32;
  __shared__ double shared_max[kWarps], shared_sum[kWarps], shared_out[kWarps][kHeadDim];
  const int head = blockIdx.y, kv_head = head / (num_qo_heads / cache.num_kv_heads);
  const int warp = threadIdx.x / 32, first = threadIdx.x % 32 * kPerLane;
  const Sample sample = samples[blockIdx.x];
  const auto* keys = static_cast<const T*>(cache.keys);
  const auto* values = static_cast<const T*>(cache.values);
  const __nv_bfloat16* query =
      q + (static_cast<std::int64_t>(sample.token) * num_qo_heads + head) * kHeadDim + first;
  double scaled[kPerLane];
  for (int d = 0; d < kPerLane; ++d) {
    scaled[d] = to_double(query[d]) / sqrt(double{kHeadDim});
  }
  State<kPerLane> state;
  for (int key = warp; key < sample.num_keys; key += kWarps) {
    const std::int64_t slot = slot_of(cache, sample.row, key, kv_head) * kHeadDim + first;
    double logit = 0, value[kPerLane];
    for (int d = 0; d < kPerLane; ++d) {
      logit += scaled[d] * to_double(keys[slot + d]);
      value[d] = to_double(values[slot + d]);
    }
    for (int offset = 16; offset > 0; offset /= 2) {
      logit += __shfl_xor_sync(0xffffffff, logit, offset);
    }
    state.merge(logit, 1, value);
  }
  if (threadIdx.x % 32 == 0) {
    shared_max[warp] = state.max;
    shared_sum[warp] = state.sum;
  }
  for (int d = 0; d < kPerLane; ++d) shared_out[warp][first + d] = state.out[d];
  __syncthreads();
  if (warp != 0) return;
  for (int other = 1; other < kWarps; ++other) {
    state.merge(shared_max[other], shared_sum[other], shared_out[other] + first);
  }
  double* to = out + (static_cast<std::int64_t>(blockIdx.x) * num_qo_heads + head) * kHeadDim;
  for (int d = 0; d < kPerLane; ++d) to[first + d] = state.out[d] / state.sum;
}

__device__ bool is_same(const float*, std::int64_t, __nv_bfloat16 got, __nv_bfloat16 want) {
  return __bfloat16_as_ushort(got) == __bfloat16_as_ushort(want);
}

// To within half a unit of the last of three bits, or of the least number.
__device__ bool is_same(const float* scales, std::int64_t slot, __nv_fp8_e4m3 got,
                        __nv_bfloat16 want) {
  const float scale = scales == nullptr ? 1.0f : scales[slot];
  const float x = __bfloat162float(want), error = fabsf(static_cast<float>(got) * scale - x);
  return error <= fmaxf(fabsf(x) * 0x1.01p-4f, scale * 0x1.01p-10f);
}

template <class T>
__global__ void count_misplaced(PagedCache cache, const __nv_bfloat16* new_keys,
                                const __nv_bfloat16* new_values, const std::int32_t* row,
                                const std::int32_t* position, std::int64_t num_tokens,
                                unsigned long long* errors) {
  const auto* keys = static_cast<const T*>(cache.keys);
  const auto* values = static_cast<const T*>(cache.values);
  const int per_token = cache.num_kv_heads * cache.head_dim;
  unsigned long long wrong = 0;
  for (std::int64_t token = blockIdx.x; token < num_tokens; token += gridDim.x) {
    for (int i = threadIdx.x; i < per_token; i += kThreads) {
      const int head = i / cache.head_dim;
      const std::int64_t slot = slot_of(cache, row[token], position[token], head);
      const std::int64_t at = slot * cache.head_dim + i % cache.head_dim;
      const std::int64_t from = token * per_token + i;
      wrong += !is_same(cache.key_scales, slot, keys[at], new_keys[from]);
      wrong += !is_same(cache.value_scales, slot, values[at], new_values[from]);
    }
  }
  if (wrong != 0) atomicAdd(errors, wrong);
}

__global__ void fill_with_ones(float* to, std::int64_t count) {
  const std::int64_t step = std::int64_t{gridDim.x} * kThreads;
  for (std::int64_t i = std::int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += step) {
    to[i] = 1;
  }
}

template <class T>
auto reference_of(int head_dim) {
  return head_dim == 64    ? reference<T, 64>
         : head_dim == 128 ? reference<T, 128>
                           : reference<T, 256>;
}

// Runs a kernel that counts into one word of device memory.
template <class Launch>
std::int64_t counted(cudaStream_t stream, const Launch& launch) {
  const Buffer counter(sizeof(unsigned long long));
  SEQATTN_BENCH_CHECK(cudaMemsetAsync(counter.data(), 0, sizeof(unsigned long long), stream));
  launch(counter.as<unsigned long long>());
  SEQATTN_BENCH_CHECK(cudaGetLastError());
  SEQATTN_BENCH_CHECK(cudaStreamSynchronize(stream));
  return static_cast<std::int64_t>(counter.download<unsigned long long>(0, 1)[0]);
}

}  // namespace

void fill_normal(void* to, std::int64_t count, std::uint64_t seed, cudaStream_t stream) {
  fill<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<__nv_bfloat16*>(to), count, seed);
  SEQATTN_BENCH_CHECK(cudaGetLastError());
}

void fill_normal_float8(void* to, std::int64_t count, std::uint64_t seed, cudaStream_t stream) {
  fill<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<__nv_fp8_e4m3*>(to), count, seed);
  SEQATTN_BENCH_CHECK(cudaGetLastError());
}

void fill_ones(float* to, std::int64_t count, cudaStream_t stream) {
  fill_with_ones<<<blocks_for(count), kThreads, 0, stream>>>(to, count);
  SEQATTN_BENCH_CHECK(cudaGetLastError());
}

std::int64_t count_not_finite(const void* values, std::int64_t count, cudaStream_t stream) {
  return counted(stream, [&](unsigned long long* errors) {
    count_bad<<<blocks_for(count), kThreads, 0, stream>>>(static_cast<const __nv_bfloat16*>(values),
                                                          count, errors);
  });
}

void reference_attention(const PagedCache& cache, const void* q, int num_qo_heads,
                         const Sample* samples, std::int64_t num_samples, double* out,
                         cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(num_samples), static_cast<unsigned>(num_qo_heads));
  const auto kernel = cache.element_bytes == 1 ? reference_of<__nv_fp8_e4m3>(cache.head_dim)
                                               : reference_of<__nv_bfloat16>(cache.head_dim);
  kernel<<<grid, kThreads, 0, stream>>>(cache, static_cast<const __nv_bfloat16*>(q), num_qo_heads,
                                        samples, out);
  SEQATTN_BENCH_CHECK(cudaGetLastError());
}

std::int64_t count_append_errors(const PagedCache& cache, const void* new_keys,
                                 const void* new_values, const std::int32_t* row,
                                 const std::int32_t* position, std::int64_t num_tokens,
                                 cudaStream_t stream) {
  return counted(stream, [&](unsigned long long* errors) {
    const auto blocks = static_cast<unsigned>(std::min<std::int64_t>(num_tokens, 65535));
    const auto kernel =
        cache.element_bytes == 1 ? count_misplaced<__nv_fp8_e4m3> : count_misplaced<__nv_bfloat16>;
    kernel<<<blocks, kThreads, 0, stream>>>(cache, static_cast<const __nv_bfloat16*>(new_keys),
                                            static_cast<const __nv_bfloat16*>(new_values), row,
                                            position, num_tokens, errors);
  });
}

}  // namespace seqattn::bench
