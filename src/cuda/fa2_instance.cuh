#pragma once

// One FA2 instance: the paged prefill kernel of FlashInfer for one (dtype, head_dim, mask, general)
// and every tile. Included by the generated files fa2_*.cu only.

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <algorithm>
#include <flashinfer/attention/default_prefill_params.cuh>
#include <flashinfer/attention/mask.cuh>
#include <flashinfer/attention/prefill.cuh>
#include <flashinfer/attention/variants.cuh>
#include <type_traits>

#include "fa2.h"
#include "launch.h"
#include "soft_cap.cuh"

namespace seqattn {
namespace fa2 {

using flashinfer::MaskMode;

// The kernel reads one chunk size for all blocks through a pointer; this one has a size a block.
struct ChunkSizes {
  const std::int32_t* sizes = nullptr;
  __device__ std::int32_t operator*() const { return sizes[blockIdx.x]; }
};

template <class T, class Out>
struct Params : flashinfer::BatchPrefillPagedParams<T, T, Out, std::int32_t> {
  ChunkSizes kv_chunk_size_ptr;
};

// Window and soft cap decided at run time; either may be off.
template <bool kCustomMask>
struct GeneralAttention : flashinfer::DefaultAttention<kCustomMask, true, false, false> {
  using Base = flashinfer::DefaultAttention<kCustomMask, true, false, false>;
  float tanh_scale = 0;  // 0 without a cap

  template <class P>
  __device__ __host__ GeneralAttention(const P& params, std::uint32_t batch_idx,
                                       std::uint8_t* smem_ptr)
      : Base(params, batch_idx, smem_ptr) {
    if (params.logits_soft_cap > 0) {
      tanh_scale = params.sm_scale / params.logits_soft_cap;
      this->sm_scale_log2 = flashinfer::math::log2e * params.logits_soft_cap;
    }
  }

  REGISTER_LOGITS_TRANSFORM(params, logits, batch_idx, qo_idx, kv_idx, qo_head_idx, kv_head_idx, {
    return tanh_scale == 0 ? logits : T(soft_cap_tanh(tanh_scale * float(logits)));
  })
};

template <bool kGeneral, bool kCustomMask>
using Variant = std::conditional_t<kGeneral || kCustomMask, GeneralAttention<kCustomMask>,
                                   flashinfer::DefaultAttention<false, false, false, false>>;

// Key steps of 16 tokens a warp: as many as registers and the shared memory of two blocks a
// multiprocessor (164 KB on sm_80) have room for.
template <int kTile, int kHeadDim>
constexpr int kKeySteps = kTile == 16   ? (kHeadDim == 64    ? 4
                                           : kHeadDim == 128 ? 2
                                                             : 1)
                          : kTile == 64 ? (kHeadDim == 256 ? 4 : 8)
                                        : 4;

template <class T, class Out, int kHeadDim, MaskMode kMask, bool kGeneral, int kTile>
struct Kernel {
  using P = Params<T, Out>;
  using V = Variant<kGeneral, kMask == MaskMode::kCustom>;
  using Traits = flashinfer::KernelTraits<
      kMask, kTile, flashinfer::get_num_mma_q(kTile), kKeySteps<kTile, kHeadDim>, kHeadDim / 16,
      kHeadDim / 16, flashinfer::get_num_warps_q(kTile), flashinfer::get_num_warps_kv(kTile),
      flashinfer::PosEncodingMode::kNone, T, T, Out, float, std::int32_t, V>;
  static_assert(!Traits::IsInvalid());
  static constexpr std::size_t kSharedBytes = sizeof(typename Traits::SharedStoragePaged);

  static auto function() { return flashinfer::BatchPrefillWithPagedKVCacheKernel<Traits, P>; }

  static cudaError_t prepare() {
    return cudaFuncSetAttribute(function(), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                static_cast<int>(kSharedBytes));
  }

  static P params(const Fa2Call& call) {
    P p;
    p.q = static_cast<T*>(const_cast<void*>(call.q));
    p.q_stride_n = static_cast<std::int32_t>(call.q_token_stride);
    p.q_stride_h = static_cast<std::int32_t>(call.q_head_stride);
    p.o = static_cast<Out*>(call.out);
    p.lse = call.lse;
    p.group_size = flashinfer::uint_fastdiv(call.num_qo_heads / call.num_kv_heads);
    p.num_qo_heads = call.num_qo_heads;
    p.window_left = call.window_left;
    p.logits_soft_cap = call.logits_soft_cap;
    p.sm_scale = call.sm_scale;

    const auto ints = [](const std::int32_t* from) { return const_cast<std::int32_t*>(from); };
    auto& kv = p.paged_kv;
    kv.page_size = flashinfer::uint_fastdiv(call.page_size);
    kv.num_heads = call.num_kv_heads;
    kv.head_dim = kHeadDim;
    kv.batch_size = call.batch.num_rows;
    kv.stride_page = static_cast<std::uint32_t>(call.keys.page_stride);
    kv.stride_n = static_cast<std::uint32_t>(call.keys.token_stride);
    kv.stride_h = static_cast<std::uint32_t>(call.keys.head_stride);
    kv.v_stride_page = static_cast<std::uint32_t>(call.values.page_stride);
    kv.v_stride_n = static_cast<std::uint32_t>(call.values.token_stride);
    kv.v_stride_h = static_cast<std::uint32_t>(call.values.head_stride);
    kv.k_data = static_cast<T*>(call.keys.data);
    kv.v_data = static_cast<T*>(call.values.data);
    kv.indices = ints(call.batch.page_indices);
    kv.indptr = ints(call.batch.page_indptr);
    kv.last_page_len = ints(call.batch.last_page_len);

    p.q_indptr = ints(call.batch.q_indptr);
    p.o_indptr = ints(call.batch.out_begin);
    p.maybe_custom_mask = const_cast<std::uint8_t*>(call.batch.mask_bits);
    p.maybe_mask_indptr = ints(call.batch.mask_indptr);
    p.request_indices = ints(call.blocks.row);
    p.qo_tile_indices = ints(call.blocks.q_tile);
    p.kv_tile_indices = ints(call.blocks.kv_chunk);
    p.kv_chunk_size_ptr = {call.blocks.chunk_size};
    p.block_valid_mask = const_cast<bool*>(call.blocks.is_valid);
    p.padded_batch_size = call.blocks.count;
    p.partition_kv = call.split;
    return p;
  }

  static cudaError_t run(const Fa2Call& call, cudaStream_t stream) {
    P p = params(call);
    void* args[] = {&p};
    const LaunchShape shape{.grid = dim3(call.blocks.count, 1, call.num_kv_heads),
                            .block = dim3(32, Traits::NUM_WARPS_Q, Traits::NUM_WARPS_KV),
                            .shared_bytes = kSharedBytes};
    return launch(reinterpret_cast<const void*>(function()), shape, args, stream,
                  call.overlap_launch);
  }
};

template <class T, int kHeadDim, MaskMode kMask, bool kGeneral>
struct Instance {
  template <class Out, int kTile>
  using K = Kernel<T, Out, kHeadDim, kMask, kGeneral, kTile>;
  static constexpr bool kHas128 = kHeadDim != 256;

  template <int kTile>
  static cudaError_t prepare_tile() {
    const cudaError_t status = K<float, kTile>::prepare();
    return status == cudaSuccess ? K<T, kTile>::prepare() : status;
  }

  static cudaError_t prepare() {
    cudaError_t status = prepare_tile<16>();
    if (status == cudaSuccess) status = prepare_tile<64>();
    if constexpr (kHas128) {
      if (status == cudaSuccess) status = prepare_tile<128>();
    }
    return status;
  }

  template <int kTile>
  static constexpr void add_tile(Fa2Instance& instance, int index) {
    instance.run_float[index] = K<float, kTile>::run;
    instance.run_native[index] = K<T, kTile>::run;
  }

  static constexpr Fa2Instance make(DType dtype, AttentionMask mask) {
    Fa2Instance instance{dtype, kHeadDim, mask, kGeneral, prepare, {}, {}};
    add_tile<16>(instance, 0);
    add_tile<64>(instance, 1);
    if constexpr (kHas128) add_tile<128>(instance, 2);
    return instance;
  }
};

}  // namespace fa2
}  // namespace seqattn
