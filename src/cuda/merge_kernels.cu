#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#include "ceil_div.h"
#include "cuda_check.h"
#include "launch.h"
#include "merge_kernels.h"
#include "overlap.cuh"
#include "sinks.cuh"

namespace seqattn {
namespace {

constexpr int kWarp = 32;
constexpr int kWarpsPerBlock = 4;
// A merge of no more heads of tokens leaves most of a device idle: a block each then, not a warp.
constexpr std::int64_t kFewItems = 512;

// A tensor of tokens as kernels see it: any of the three types.
struct Tokens {
  void* data = nullptr;
  DType dtype = DType::kFloat32;
  std::int64_t token_stride = 0, head_stride = 0;  // in elements

  Tokens() = default;
  explicit Tokens(const TensorView& view)
      : data(view.data),
        dtype(view.dtype),
        token_stride(view.strides[0]),
        head_stride(view.strides[1]) {}
  __device__ explicit operator bool() const { return data != nullptr; }

  __device__ std::int64_t offset(std::int64_t token, int head) const {
    return token * token_stride + head * head_stride;
  }
  __device__ float load(std::int64_t at) const {
    switch (dtype) {
      case DType::kFloat16:
        return __half2float(static_cast<const __half*>(data)[at]);
      case DType::kBFloat16:
        return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[at]);
      default:
        return static_cast<const float*>(data)[at];
    }
  }
  __device__ void store(std::int64_t at, float value) const {
    switch (dtype) {
      case DType::kFloat16:
        static_cast<__half*>(data)[at] = __float2half_rn(value);
        break;
      case DType::kBFloat16:
        static_cast<__nv_bfloat16*>(data)[at] = __float2bfloat16_rn(value);
        break;
      default:
        static_cast<float*>(data)[at] = value;
    }
  }
};

Sinks sinks_of(const TensorView& view) {
  return {static_cast<const float*>(view.data), view.strides[0]};
}

// What a warp works on, or a block where its warps share: one head of one token.
template <bool kShared = false>
__device__ bool take_item(std::int64_t num_tokens, int num_heads, std::int64_t* token, int* head) {
  const std::int64_t item =
      kShared ? blockIdx.x
              : static_cast<std::int64_t>(blockIdx.x) * kWarpsPerBlock + threadIdx.x / kWarp;
  *token = item / num_heads;
  *head = static_cast<int>(item % num_heads);
  return *token < num_tokens;
}

// FlashInfer's infinity is 5e4: the LSE of a query that sees nothing is about -5e4, in base 2.
__device__ float seen(float lse) { return lse < -4e4f ? -INFINITY : lse; }

__device__ float warp_max(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(~0u, x, step));
  return x;
}

// In the same order in every lane, so that all of them get the same bits.
__device__ float warp_sum(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(~0u, x, step);
  return x;
}

__device__ float finite_or_zero(float max) { return max == -INFINITY ? 0.0f : max; }

// out of Out elements, four a lane. kDim elements a head.
template <class Out>
__device__ void store4(Out* to, float4 x);
template <>
__device__ inline void store4<float>(float* to, float4 x) {
  to[0] = x.x, to[1] = x.y, to[2] = x.z, to[3] = x.w;
}
template <>
__device__ inline void store4<__half>(__half* to, float4 x) {
  to[0] = __float2half_rn(x.x), to[1] = __float2half_rn(x.y);
  to[2] = __float2half_rn(x.z), to[3] = __float2half_rn(x.w);
}
template <>
__device__ inline void store4<__nv_bfloat16>(__nv_bfloat16* to, float4 x) {
  to[0] = __float2bfloat16_rn(x.x), to[1] = __float2bfloat16_rn(x.y);
  to[2] = __float2bfloat16_rn(x.z), to[3] = __float2bfloat16_rn(x.w);
}

// The partial results of one head of one token, four elements of each a lane.
struct PartialReader {
  const float* out;
  std::int64_t first, stride;  // in partials
  int head_dim, element;

  __device__ float4 load(int i) const {
    return *reinterpret_cast<const float4*>(out + (first + i * stride) * head_dim + element);
  }
};

// Partials are summed in kStreams interleaved streams, each in order, and these pairwise: the same
// bits whether one warp walks all streams or each of kStreams warps walks one.
constexpr int kStreams = kWarpsPerBlock;
constexpr int kLoadsAhead = 8;  // of a warp

__device__ void add_weighted(float4& sum, float weight, const float4& x) {
  if (weight == 0) return;  // a partial that saw nothing may hold anything
  sum.x = __fmaf_rn(weight, x.x, sum.x);
  sum.y = __fmaf_rn(weight, x.y, sum.y);
  sum.z = __fmaf_rn(weight, x.z, sum.z);
  sum.w = __fmaf_rn(weight, x.w, sum.w);
}

__device__ float4 sum_of(const float4& a, const float4& b) {
  return {a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w};
}

__device__ float4 sum_of_streams(const float4 (&sum)[kStreams]) {
  return sum_of(sum_of(sum[0], sum[1]), sum_of(sum[2], sum[3]));
}

// kShared: a block takes one head of one token, a stream a warp; for few of them. Otherwise a warp
// takes one.
template <class Out, bool kShared>
__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    merge_partials(PartialResults partials, Tokens out, Tokens lse, Sinks sinks, int num_heads,
                   int head_dim) {
  __shared__ float4 shared_sums[kStreams][kWarp];
  const std::int64_t num_tokens =
      partials.num_tokens_device != nullptr ? *partials.num_tokens_device : partials.num_tokens;
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  std::int64_t item;
  int head;
  if (!take_item<kShared>(num_tokens, num_heads, &item, &head)) return;
  const std::int64_t token = partials.token[item];
  const int count = partials.count[item];
  PartialReader reader{partials.out,
                       static_cast<std::int64_t>(partials.begin[item]) * num_heads + head,
                       num_heads, head_dim, lane * 4};
  wait_for_predecessor();

  // Each lane looks after every 32nd partial: many loads at once, since they are what takes time.
  const auto lse_of = [&](int i) { return seen(partials.lse[reader.first + i * reader.stride]); };
  const float sink = sinks.base2(head);
  float max = -INFINITY;
  for (int i = lane; i < count; i += kWarp) max = fmaxf(max, lse_of(i));
  const float subtracted = finite_or_zero(fmaxf(warp_max(max), sink));
  float sum = 0;
  for (int i = lane; i < count; i += kWarp) sum += exp2f(lse_of(i) - subtracted);
  sum = warp_sum(sum) + exp2f(sink - subtracted);
  const float scale = sum == 0 ? 0.0f : 1 / sum;
  Out* const to = static_cast<Out*>(out.data) + out.offset(token, head);

  constexpr int kStep = kShared ? kStreams : 1;
  for (; reader.element < head_dim + lane * 4; reader.element += kWarp * 4) {
    const bool in_head = reader.element < head_dim;
    float4 sums[kStreams] = {};
    for (int i = 0; i < count; i += kWarp) {
      const float own = i + lane < count ? exp2f(lse_of(i + lane) - subtracted) * scale : 0;
      const int end = min(kWarp, count - i);
      for (int begin = kShared ? warp : 0; begin < end; begin += kStep * kLoadsAhead) {
        float4 x[kLoadsAhead];
#pragma unroll
        for (int k = 0; k < kLoadsAhead; ++k) {
          const int at = begin + k * kStep;
          if (at < end && in_head) x[k] = reader.load(i + at);
        }
#pragma unroll
        for (int k = 0; k < kLoadsAhead; ++k) {
          const int at = begin + k * kStep;
          const float weight = __shfl_sync(~0u, own, at % kWarp);
          if (at < end && in_head) add_weighted(sums[kShared ? 0 : k % kStreams], weight, x[k]);
        }
      }
    }
    if constexpr (kShared) {
      shared_sums[warp][lane] = sums[0];
      __syncthreads();
#pragma unroll
      for (int k = 0; k < kStreams; ++k) sums[k] = shared_sums[k][lane];
      __syncthreads();
    }
    if (in_head && (!kShared || warp == 0)) store4(to + reader.element, sum_of_streams(sums));
  }
  if (lse && threadIdx.x == (kShared ? 0 : warp * kWarp)) {
    lse.store(lse.offset(token, head), sinks.lse(head, subtracted, sum));
  }
}

__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    finish_large(LargeRows rows, Tokens out, Tokens lse, Sinks sinks, int num_heads, int head_dim) {
  std::int64_t token;
  int head;
  if (!take_item(rows.num_tokens, num_heads, &token, &head)) return;
  std::int32_t low = 0, high = rows.num_rows;
  while (high - low > 1) {
    const std::int32_t middle = (low + high) / 2;
    (rows.q_indptr[middle] <= token ? low : high) = middle;
  }
  if (rows.is_large[low] == 0) return;
  const float own = seen(rows.lse_base2[token * num_heads + head]);
  const float sink = sinks.base2(head);
  const float subtracted = finite_or_zero(fmaxf(own, sink));
  const float weight = exp2f(own - subtracted);
  const float sum = weight + exp2f(sink - subtracted);
  const int lane = threadIdx.x % kWarp;
  if (sinks.data != nullptr) {
    const float scale = sum == 0 ? 0.0f : weight / sum;
    const std::int64_t at = out.offset(token, head);
    for (int d = lane; d < head_dim; d += kWarp) out.store(at + d, scale * out.load(at + d));
  }
  if (lse && lane == 0) lse.store(lse.offset(token, head), sinks.lse(head, subtracted, sum));
}

__global__ void __launch_bounds__(kWarp* kWarpsPerBlock)
    merge_states(Tokens out_a, Tokens lse_a, Tokens out_b, Tokens lse_b, Tokens out, Tokens lse,
                 std::int64_t num_tokens, int num_heads, int dim) {
  std::int64_t token;
  int head;
  if (!take_item(num_tokens, num_heads, &token, &head)) return;
  const float a = lse_a.load(lse_a.offset(token, head)), b = lse_b.load(lse_b.offset(token, head));
  const float subtracted = finite_or_zero(fmaxf(a, b));
  const float exp_a = expf(a - subtracted), exp_b = expf(b - subtracted);
  const float sum = exp_a + exp_b;
  const float weight_a = sum == 0 ? 0.0f : exp_a / sum, weight_b = sum == 0 ? 0.0f : exp_b / sum;
  const int lane = threadIdx.x % kWarp;
  for (int d = lane; d < dim; d += kWarp) {
    float x = 0;
    if (weight_a != 0) x += weight_a * out_a.load(out_a.offset(token, head) + d);
    if (weight_b != 0) x += weight_b * out_b.load(out_b.offset(token, head) + d);
    out.store(out.offset(token, head) + d, x);
  }
  __syncwarp();  // lse may stand where lse_a or lse_b does
  if (lse && lane == 0) lse.store(lse.offset(token, head), subtracted + logf(sum));
}

unsigned blocks_for(std::int64_t num_tokens, std::int64_t num_heads) {
  return static_cast<unsigned>(ceil_div(num_tokens * num_heads, kWarpsPerBlock));
}

}  // namespace

bool merge_waits_for_predecessor() {
  cudaFuncAttributes attributes{};
  SEQATTN_CUDA_CHECK(cudaFuncGetAttributes(
      &attributes, reinterpret_cast<const void*>(merge_partials<float, true>)));
  return attributes.ptxVersion >= 90;
}

void launch_merge_partials(const PartialResults& partials, const TensorView& out,
                           const TensorView& lse, const TensorView& sink_logits,
                           cudaStream_t stream) {
  if (partials.num_tokens == 0) return;
  int num_heads = static_cast<int>(out.shape[1]), head_dim = static_cast<int>(out.shape[2]);
  const std::int64_t items = partials.num_tokens * num_heads;
  const bool few = items <= kFewItems;
  PartialResults from = partials;
  Tokens to(out), to_lse = lse ? Tokens(lse) : Tokens();
  Sinks sinks = sinks_of(sink_logits);
  void* arguments[] = {&from, &to, &to_lse, &sinks, &num_heads, &head_dim};
  const LaunchShape shape{
      .grid = dim3(few ? static_cast<unsigned>(items) : blocks_for(partials.num_tokens, num_heads)),
      .block = dim3(kWarp * kWarpsPerBlock)};
  const auto with_type = [&]<class Out>(Out) {
    const void* const kernel = few ? reinterpret_cast<const void*>(merge_partials<Out, true>)
                                   : reinterpret_cast<const void*>(merge_partials<Out, false>);
    check_cuda(launch(kernel, shape, arguments, stream, partials.overlap_launch), "merge_partials");
  };
  switch (out.dtype) {
    case DType::kFloat32:
      with_type(float{});
      break;
    case DType::kFloat16:
      with_type(__half{});
      break;
    case DType::kBFloat16:
      with_type(__nv_bfloat16{});
      break;
    case DType::kFloat8E4M3:
      break;  // of caches alone
  }
}

void launch_finish_large(const LargeRows& rows, const TensorView& out, const TensorView& lse,
                         const TensorView& sink_logits, cudaStream_t stream) {
  if (rows.num_tokens == 0) return;
  const int num_heads = static_cast<int>(out.shape[1]);
  finish_large<<<blocks_for(rows.num_tokens, num_heads), kWarp * kWarpsPerBlock, 0, stream>>>(
      rows, Tokens(out), lse ? Tokens(lse) : Tokens(), sinks_of(sink_logits), num_heads,
      static_cast<int>(out.shape[2]));
  check_launch("finish_large");
}

void launch_merge_states(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                         const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                         cudaStream_t stream) {
  const std::int64_t num_tokens = out.shape[0];
  const int num_heads = static_cast<int>(out.shape[1]);
  if (num_tokens * num_heads == 0) return;
  merge_states<<<blocks_for(num_tokens, num_heads), kWarp * kWarpsPerBlock, 0, stream>>>(
      Tokens(out_a), Tokens(lse_a), Tokens(out_b), Tokens(lse_b), Tokens(out),
      lse ? Tokens(lse) : Tokens(), num_tokens, num_heads, static_cast<int>(out.shape[2]));
  check_launch("merge_states");
}

}  // namespace seqattn
