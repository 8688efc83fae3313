#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#include <algorithm>
#include <cmath>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <flashinfer/attention/variants.cuh>
#include <flashinfer/page.cuh>
#include <new>

#include "peer.h"

namespace seqattn::bench {
namespace {

using T = nv_bfloat16;
template <class Cache>
using Params = flashinfer::BatchPrefillPagedParams<T, Cache, T, std::int32_t>;
using Variant =
    flashinfer::DefaultAttention</*use_custom_mask=*/false, /*use_sliding_window=*/false,
                                 /*use_logits_soft_cap=*/false, /*use_alibi=*/false>;
static_assert(sizeof(flashinfer::PrefillPlanInfo) <= sizeof(PeerPlan));

std::int32_t* ints(const std::int32_t* from) { return const_cast<std::int32_t*>(from); }

template <class Cache>
flashinfer::paged_kv_t<Cache, std::int32_t> cache_of(const PeerBatch& batch,
                                                     const PeerTensors& tensors) {
  return {static_cast<std::uint32_t>(batch.num_kv_heads),
          static_cast<std::uint32_t>(batch.page_size),
          static_cast<std::uint32_t>(batch.head_dim),
          static_cast<std::uint32_t>(batch.num_rows()),
          batch.is_hnd ? flashinfer::QKVLayout::kHND : flashinfer::QKVLayout::kNHD,
          static_cast<Cache*>(tensors.keys),
          static_cast<Cache*>(tensors.values),
          ints(batch.page_indices_device),
          ints(batch.page_indptr_device),
          ints(batch.last_page_len_device)};
}

template <int kTile, int kHeadDim, class Cache>
cudaError_t launch(Params<Cache>& params, T* partial_out, float* partial_lse, cudaStream_t stream) {
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
      kTile, kHeadDim, kHeadDim, flashinfer::PosEncodingMode::kNone,
      /*USE_FP16_QK_REDUCTION=*/false, flashinfer::MaskMode::kCausal, Variant>(
      params, partial_out, partial_lse, /*enable_pdl=*/true, stream);  // as its own wrapper
}

template <class Cache, int kHeadDim>
cudaError_t run(const PeerBatch& batch, const PeerWorkspace& workspace, const PeerPlan& plan,
                const PeerTensors& tensors, cudaStream_t stream) {
  const auto& info = *reinterpret_cast<const flashinfer::PrefillPlanInfo*>(plan.bytes);
  Params<Cache> params(static_cast<T*>(tensors.q), cache_of<Cache>(batch, tensors), nullptr,
                       ints(batch.q_indptr_device), nullptr, nullptr, static_cast<T*>(tensors.out),
                       nullptr, nullptr, batch.num_qo_heads, batch.num_qo_heads * kHeadDim,
                       kHeadDim, /*window_left=*/-1, /*logits_soft_cap=*/0.0f,
                       1 / std::sqrt(static_cast<float>(kHeadDim)), 1.0f, 1e4f);
  const auto at = [&](std::int64_t offset) {
    return flashinfer::GetPtrFromBaseOffset<std::int32_t>(workspace.ints, offset);
  };
  params.request_indices = at(info.request_indices_offset);
  params.qo_tile_indices = at(info.qo_tile_indices_offset);
  params.kv_tile_indices = at(info.kv_tile_indices_offset);
  params.o_indptr = at(info.o_indptr_offset);
  params.kv_chunk_size_ptr = at(info.kv_chunk_size_ptr_offset);
  params.padded_batch_size = info.padded_batch_size;
  params.max_total_num_rows = info.total_num_rows;
  T* partial_out = nullptr;
  float* partial_lse = nullptr;
  if (info.split_kv) {
    params.merge_indptr = at(info.merge_indptr_offset);
    partial_out = flashinfer::GetPtrFromBaseOffset<T>(workspace.floats, info.v_offset);
    partial_lse = flashinfer::GetPtrFromBaseOffset<float>(workspace.floats, info.s_offset);
  }
  switch (info.cta_tile_q) {
    case 16:
      return launch<16, kHeadDim>(params, partial_out, partial_lse, stream);
    case 64:
      return launch<64, kHeadDim>(params, partial_out, partial_lse, stream);
    default:  // 128, for longer queries
      return cudaErrorInvalidValue;
  }
}

template <class Cache>
auto run_of(int head_dim) {
  return head_dim == 64 ? run<Cache, 64> : head_dim == 128 ? run<Cache, 128> : run<Cache, 256>;
}

}  // namespace

cudaError_t plan_fa2(const PeerBatch& batch, const PeerWorkspace& workspace, int fixed_split,
                     PeerPlan* plan, cudaStream_t stream) {
  auto* const info = new (plan->bytes) flashinfer::PrefillPlanInfo();
  return flashinfer::PrefillPlan<std::int32_t>(
      workspace.floats, workspace.float_bytes, workspace.ints, workspace.pinned,
      workspace.int_bytes, *info, ints(batch.q_indptr.data()), ints(batch.page_indptr.data()),
      batch.num_q_tokens(), batch.num_rows(), batch.num_qo_heads, batch.num_kv_heads,
      batch.head_dim, batch.head_dim, batch.page_size, /*enable_cuda_graph=*/false, sizeof(T),
      /*window_left=*/-1, fixed_split > 0 ? fixed_split / batch.page_size : -1,
      /*disable_split_kv=*/false, /*num_colocated_ctas=*/0, /*uniform_q_len=*/0, stream);
}

cudaError_t run_fa2(const PeerBatch& batch, const PeerWorkspace& workspace, const PeerPlan& plan,
                    const PeerTensors& tensors, cudaStream_t stream) {
  const auto run_tensors =
      batch.is_float8 ? run_of<__nv_fp8_e4m3>(batch.head_dim) : run_of<T>(batch.head_dim);
  return run_tensors(batch, workspace, plan, tensors, stream);
}

cudaError_t append_by_flashinfer(const PeerBatch& batch, const PeerTensors& tensors,
                                 const PeerAppend& append, cudaStream_t stream) {
  const std::size_t token_stride = static_cast<std::size_t>(batch.num_kv_heads) * batch.head_dim;
  return flashinfer::AppendPagedKVCache<T, std::int32_t>(
      cache_of<T>(batch, tensors), static_cast<T*>(const_cast<void*>(append.keys)),
      static_cast<T*>(const_cast<void*>(append.values)), ints(append.batch_indices_device),
      ints(append.positions_device), append.num_tokens, token_stride, batch.head_dim, token_stride,
      batch.head_dim, stream);
}

}  // namespace seqattn::bench
