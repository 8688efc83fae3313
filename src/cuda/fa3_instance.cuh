#pragma once

// FA3 instances: the paged Hopper kernel of FlashInfer for one (dtype, head_dim). Included by the
// generated files fa3_*.cu only. Never in one file with FA2: both define DefaultAttention.

// What FlashInfer's own header takes from CUTLASS, without the device-wide GEMMs and the tools.
#define FLASHINFER_CUTLASS_UTILS_CUH_
#include <cuda_fp8.h>
#include <cutlass/cutlass.h>
#include <cutlass/numeric_types.h>

#include <cute/tensor.hpp>
#include <flashinfer/attention/hopper/default_params.cuh>
#include <flashinfer/attention/hopper/prefill_sm90.cuh>
#include <flashinfer/attention/hopper/variants.cuh>
#include <flashinfer/attention/mask.cuh>

#include "fa3.h"

namespace seqattn {
namespace fa3 {

// Soft cap decided at run time, with tanh from exp, since the fast one is off by 2^-11.
struct GeneralAttention {
  float tanh_scale = 0;  // 0 without a cap
  float scale_log2;
  float scale_pv = 1;

  template <class MainloopParams, class BlockCoord>
  __device__ GeneralAttention(const MainloopParams& params, const BlockCoord&) {
    const auto& options = params.additional_params;
    scale_log2 = options.sm_scale * flashinfer::math::log2e;
    if (options.logits_soft_cap > 0) {
      tanh_scale = options.sm_scale / options.logits_soft_cap;
      scale_log2 = options.logits_soft_cap * flashinfer::math::log2e;
    }
  }

  template <int kRowsPerThread>
  __device__ auto GetAttentionUpdater() {
    return flashinfer::OnlineSoftmax<kRowsPerThread, /*WITH_SCALE=*/true>(scale_log2);
  }

  REGISTER_LOGITS_TRANSFORM(params, logits, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    if (tanh_scale == 0) return logits;
    const float power =
        flashinfer::math::ptx_exp2(2 * flashinfer::math::log2e * tanh_scale * float(logits));
    return T(1 - 2 * flashinfer::math::ptx_rcp(1 + power));
  })
};

template <class T, int kHeadDim, bool kCausal, bool kGeneral>
cudaError_t run(const Fa3Call& call, cudaStream_t stream) {
  using Params = flashinfer::BatchPrefillPagedParams<T, T, T, std::int32_t>;
  using Variant = std::conditional_t<kGeneral, GeneralAttention, flashinfer::StandardAttention>;
  constexpr auto kMask = kCausal ? flashinfer::MaskMode::kCausal : flashinfer::MaskMode::kNone;
  const auto ints = [](const std::int32_t* from) { return const_cast<std::int32_t*>(from); };
  Params p{};
  p.q_ptr = static_cast<T*>(const_cast<void*>(call.q));
  p.k_ptr = static_cast<T*>(call.keys.data);
  p.v_ptr = static_cast<T*>(call.values.data);
  p.o_ptr = static_cast<T*>(call.out);
  p.lse_ptr = call.lse;
  p.qo_tile_indices = ints(call.items.q_tile);
  p.qo_indptr = ints(call.items.q_begin);
  p.kv_indptr = ints(call.items.page_begin);
  p.kv_indices = ints(call.page_indices);
  p.qo_lens = ints(call.items.q_len);
  p.kv_lens = ints(call.items.kv_len);
  p.head_indices = ints(call.items.head);
  p.work_indptr = ints(call.items.work);
  p.batch_indices = ints(call.items.row);
  p.additional_params.logits_soft_cap = call.logits_soft_cap;
  p.additional_params.sm_scale = call.sm_scale;
  p.q_stride_n = call.q_token_stride;
  p.q_stride_h = call.q_head_stride;
  p.o_stride_n = std::int64_t{call.num_qo_heads} * kHeadDim;
  p.o_stride_h = kHeadDim;
  p.k_stride_n = call.keys.token_stride;
  p.k_stride_h = call.keys.head_stride;
  p.k_page_stride = call.keys.page_stride;
  p.v_stride_n = call.values.token_stride;
  p.v_stride_h = call.values.head_stride;
  p.v_page_stride = call.values.page_stride;
  p.nnz_qo = call.num_q_tokens;
  p.num_qo_heads = call.num_qo_heads;
  p.num_kv_heads = call.num_kv_heads;
  p.group_size = call.num_qo_heads / call.num_kv_heads;
  p.page_size = call.page_size;
  p.window_left = call.window_left;
  p.causal = kCausal;
  return flashinfer::BatchPrefillWithPagedKVCacheDispatched<kHeadDim, kHeadDim, kMask,
                                                            /*LEFT_SLIDING_WINDOW=*/kGeneral,
                                                            /*SAME_SCHEDULE_FOR_ALL_HEADS=*/false,
                                                            Variant, Params>(p, false, stream);
}

}  // namespace fa3
}  // namespace seqattn
