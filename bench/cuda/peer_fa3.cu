// What FlashInfer's own header takes from CUTLASS, without the device-wide GEMMs and the tools.
#define FLASHINFER_CUTLASS_UTILS_CUH_
#include <cuda_fp8.h>
#include <cutlass/cutlass.h>
#include <cutlass/numeric_types.h>

#include <cmath>
#include <cute/tensor.hpp>
#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/scheduler.cuh>
#include <new>

#include "peer.h"

namespace seqattn::bench {
namespace {

constexpr int kHeadDim = 128;
using T = cutlass::bfloat16_t;
using Params = flashinfer::BatchPrefillPagedParams<T, T, T, std::int32_t>;
using Variant = flashinfer::DefaultAttention</*use_logits_soft_cap=*/false>;
static_assert(sizeof(flashinfer::PrefillPlanSM90Info) <= sizeof(PeerPlan));

std::int32_t* ints(const std::int32_t* from) { return const_cast<std::int32_t*>(from); }

template <bool kSameScheduleForAllHeads>
cudaError_t launch(Params& params, cudaStream_t stream) {
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<
      kHeadDim, kHeadDim, flashinfer::MaskMode::kCausal, /*LEFT_SLIDING_WINDOW=*/false,
      kSameScheduleForAllHeads, Variant, Params>(params, /*enable_pdl=*/false, stream);
}

}  // namespace

cudaError_t plan_fa3(const PeerBatch& batch, const PeerWorkspace& workspace, PeerPlan* plan,
                     cudaStream_t stream) {
  auto* const info = new (plan->bytes) flashinfer::PrefillPlanSM90Info();
  return flashinfer::PrefillSM90Plan<std::int32_t>(
      workspace.floats, workspace.float_bytes, workspace.ints, workspace.pinned,
      workspace.int_bytes, *info, ints(batch.q_indptr.data()), ints(batch.page_indptr.data()),
      ints(batch.kv_len.data()), batch.num_q_tokens(), batch.num_rows(), batch.num_qo_heads,
      batch.num_kv_heads, kHeadDim, kHeadDim, batch.page_size, /*causal=*/true,
      /*enable_cuda_graph=*/false, sizeof(T), stream);
}

cudaError_t run_fa3(const PeerBatch& batch, const PeerWorkspace& workspace, const PeerPlan& plan,
                    const PeerTensors& tensors, cudaStream_t stream) {
  const auto& info = *reinterpret_cast<const flashinfer::PrefillPlanSM90Info*>(plan.bytes);
  const auto at = [&](std::int64_t offset) {
    return flashinfer::GetPtrFromBaseOffset<std::int32_t>(workspace.ints, offset);
  };
  Params params{};
  params.q_ptr = static_cast<T*>(tensors.q);
  params.k_ptr = static_cast<T*>(tensors.keys);
  params.v_ptr = static_cast<T*>(tensors.values);
  params.o_ptr = static_cast<T*>(tensors.out);
  params.qo_tile_indices = at(info.qo_tile_indices_offset);
  params.qo_indptr = at(info.qo_indptr_offset);
  params.kv_indptr = at(info.kv_indptr_offset);
  params.qo_lens = at(info.qo_len_offset);
  params.kv_lens = at(info.kv_len_offset);
  params.head_indices = at(info.head_indices_offset);
  params.work_indptr = at(info.work_indptr_offset);
  params.batch_indices = at(info.batch_indices_offset);
  params.kv_indices = ints(batch.page_indices_device);
  params.additional_params.sm_scale = 1 / std::sqrt(static_cast<float>(kHeadDim));
  params.q_stride_n = params.o_stride_n = std::int64_t{batch.num_qo_heads} * kHeadDim;
  params.q_stride_h = params.o_stride_h = kHeadDim;
  params.k_stride_n = params.v_stride_n = std::int64_t{batch.num_kv_heads} * kHeadDim;
  params.k_stride_h = params.v_stride_h = kHeadDim;
  params.k_page_stride = params.v_page_stride = params.k_stride_n * batch.page_size;
  params.nnz_qo = batch.num_q_tokens();
  params.num_qo_heads = batch.num_qo_heads;
  params.num_kv_heads = batch.num_kv_heads;
  params.group_size = batch.num_qo_heads / batch.num_kv_heads;
  params.page_size = batch.page_size;
  params.window_left = -1;
  params.causal = true;
  return info.same_schedule_for_all_heads ? launch<true>(params, stream)
                                          : launch<false>(params, stream);
}

}  // namespace seqattn::bench
