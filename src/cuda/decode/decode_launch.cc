#include "decode_launch.h"

#include <cuda.h>

#include <algorithm>
#include <array>
#include <string>

#include "cuda_check.h"
#include "device_tensors.h"
#include "message.h"
#include "seqattn/error.h"

namespace seqattn::decode {
namespace {

constexpr float kLog2E = 1.44269504088896341f;
constexpr std::int64_t kFloatBytes = sizeof(float), kFloat4 = 4;

using EncodeTiled = decltype(&cuTensorMapEncodeTiled);

// By the runtime, so that nothing links the driver.
EncodeTiled find_encode() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  SEQATTN_CUDA_CHECK(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000,
                                                      cudaEnableDefault, &found));
  if (found != cudaDriverEntryPointSuccess) {
    throw BackendError("cuTensorMapEncodeTiled: the driver has none; expected one for CUDA 12");
  }
  return reinterpret_cast<EncodeTiled>(function);
}

// A box is 16 tokens of one head of one page: blocks of up to 128 bytes, swizzled.
CUtensorMap map_of(const Plane& plane) {
  if (plane.num_pages == 0) return {};  // no row has keys, and no size of a map may be 0
  static const EncodeTiled encode = find_encode();
  constexpr int kRank = 5;
  const std::int64_t bytes = size_of(plane.dtype), row = plane.head_dim * bytes;
  const std::int64_t block_bytes = std::min<std::int64_t>(row, 128), block = block_bytes / bytes;
  const std::int64_t num_blocks = row / block_bytes;
  // No address depends on the stride of a dimension of one entry, which may be anything.
  const auto stride = [&](std::int64_t given, std::int64_t size) {
    return static_cast<cuuint64_t>(size == 1 ? row : given);
  };
  const std::array<cuuint64_t, kRank> sizes{
      static_cast<cuuint64_t>(block), static_cast<cuuint64_t>(plane.page_size),
      static_cast<cuuint64_t>(num_blocks), static_cast<cuuint64_t>(plane.num_heads),
      static_cast<cuuint64_t>(plane.num_pages)};
  const std::array<cuuint64_t, kRank - 1> strides{
      stride(plane.token_stride, plane.page_size), static_cast<cuuint64_t>(block_bytes),
      stride(plane.head_stride, plane.num_heads), stride(plane.page_stride, plane.num_pages)};
  const std::array<cuuint32_t, kRank> box{static_cast<cuuint32_t>(block), kTileTokens,
                                          static_cast<cuuint32_t>(num_blocks), 1, 1};
  const std::array<cuuint32_t, kRank> steps{1, 1, 1, 1, 1};
  CUtensorMap map;
  const auto type = plane.dtype == DType::kFloat16    ? CU_TENSOR_MAP_DATA_TYPE_FLOAT16
                    : plane.dtype == DType::kBFloat16 ? CU_TENSOR_MAP_DATA_TYPE_BFLOAT16
                                                      : CU_TENSOR_MAP_DATA_TYPE_UINT8;
  const auto swizzle = block_bytes == 64 ? CU_TENSOR_MAP_SWIZZLE_64B : CU_TENSOR_MAP_SWIZZLE_128B;
  // Promoted to lines of 256 bytes, boxes of 128 cost 3 to 5 % (docs/performance.md).
  const CUresult status =
      encode(&map, type, kRank, plane.data, sizes.data(), strides.data(), box.data(), steps.data(),
             CU_TENSOR_MAP_INTERLEAVE_NONE, swizzle, CU_TENSOR_MAP_L2_PROMOTION_NONE,
             CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) {
    throw BackendError(concat("cuTensorMapEncodeTiled: error ", static_cast<int>(status)));
  }
  return map;
}

Scales scales_of(const Plane& plane) {
  const Plane::Scales& scales = plane.scales;
  return {scales.data, scales.page_stride, scales.token_stride, scales.head_stride};
}

// Of the instance that takes so many.
std::int64_t rows_of_partials(const Tables& tables) {
  return tables.query_rows <= kFewQueryRows ? kFewQueryRows : kMaxQueryRows;
}

}  // namespace

void Launcher::reserve(const Tables& tables, cudaStream_t stream) {
  const std::int64_t rows = tables.num_items * rows_of_partials(tables);
  partials_.reserve(static_cast<std::size_t>(rows * (shape_.head_dim + 4) * kFloatBytes), stream);
  const auto bytes = static_cast<std::size_t>(2 + 2 * tables.num_items) * sizeof(unsigned);
  const std::byte* const before = counters_.data();
  std::byte* const counters = counters_.reserve(bytes, stream);
  if (counters != before) counters_are_zeros_ = false;
  if (counters_are_zeros_) return;
  SEQATTN_CUDA_CHECK(cudaMemsetAsync(counters, 0, counters_.num_bytes(), stream));
  counters_are_zeros_ = true;
}

void Launcher::run(const Instance& instance, const Tables& tables, std::span<const Plane> planes,
                   const TensorView& q, const TensorView& out, const TensorView& lse,
                   const TensorView& sink_logits, bool overlaps, cudaStream_t stream) const {
  if (tables.num_items == 0) return;
  Call call;
  call.keys = map_of(planes[0]);
  call.values = map_of(planes[1]);
  call.key_scales = scales_of(planes[0]);
  call.value_scales = scales_of(planes[1]);
  call.scales_per_token = planes[0].scales.per_token;
  call.batch = tables.batch;
  call.page_size = shape_.page_size;
  call.num_kv_heads = shape_.num_kv_heads;
  call.group_size = shape_.group_size();
  call.q = q.data;
  call.q_token_stride = token_stride(q);
  call.q_head_stride = head_stride(q);
  call.out = out.data;
  call.out_is_float = out.dtype == DType::kFloat32;
  call.out_token_stride = token_stride(out);
  call.out_head_stride = head_stride(out);
  if (lse) {
    call.lse = static_cast<float*>(lse.data);
    call.lse_token_stride = lse.strides[0];
    call.lse_head_stride = lse.strides[1];
  }
  if (sink_logits) {
    call.sink_logits = static_cast<const float*>(sink_logits.data);
    call.sink_stride = sink_logits.strides[0];
  }
  call.causal = shape_.causal;
  call.window_left = std::min(shape_.window_left, kMaxKeys);
  const float cap = shape_.logits_soft_cap;
  call.scale_log2 = cap > 0 ? shape_.sm_scale / cap : shape_.sm_scale * kLog2E;
  call.cap_log2 = cap > 0 ? cap * kLog2E : 0;
  call.partials = reinterpret_cast<float4*>(partials_.data());
  const std::int64_t rows = tables.num_items * rows_of_partials(tables);
  call.partial_stats = call.partials + rows * shape_.head_dim / kFloat4;
  call.group_stats = call.partial_stats + rows * 2 / kFloat4;
  call.next_item = reinterpret_cast<unsigned*>(counters_.data());
  call.arrivals = call.next_item + 2;
  call.group_arrivals = call.arrivals + tables.num_items;
  call.overlap_launch = overlaps;
  check_cuda(instance.run(call, num_sms_, stream), "attention kernel (decode)");
}

}  // namespace seqattn::decode
