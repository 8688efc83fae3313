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
#include "soft_cap.cuh"

namespace seqattn {
namespace fa3 {

// Soft cap decided at run time.
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
    return tanh_scale == 0 ? logits : T(soft_cap_tanh(tanh_scale * float(logits)));
  })
};

struct Options {
  float sm_scale;
  float logits_soft_cap;
};

// What FlashInfer's kernel asks for its next tile; the deal is that of fa3_tile.h, worked out here
// rather than written down for every head of every tile.
class TileScheduler {
 public:
  struct Params {
    Fa3Batch batch;
    std::int32_t num_items;
    cutlass::FastDivmod heads, group;
  };

  struct WorkTileInfo {
    std::int32_t round = 0, item = 0;
    int q_tile = 0, qo_head = 0, kv_head = 0, q_begin = 0, page_begin = 0, q_len = 0, kv_len = 0,
        row = 0;

    CUTLASS_DEVICE bool is_valid(const Params& params) const { return item < params.num_items; }
    CUTLASS_DEVICE auto get_block_coord(const Params&) const {
      return cute::tuple{q_tile, qo_head, kv_head, q_begin, page_begin, q_len, kv_len, row};
    }
  };

  CUTLASS_DEVICE WorkTileInfo get_initial_work(const Params& params) const {
    return work(params, 0);
  }
  template <bool kIsProducer = false>
  CUTLASS_DEVICE WorkTileInfo get_next_work(const Params& params, const WorkTileInfo& now) const {
    return work(params, now.round + 1);
  }
  CUTLASS_DEVICE void init_consumer() const {}
  CUTLASS_DEVICE void prefetch_next_work(const Params&, WorkTileInfo&) const {}
  CUTLASS_DEVICE void broadcast_next_work(WorkTileInfo&) const {}

 private:
  CUTLASS_DEVICE static WorkTileInfo work(const Params& params, std::int32_t round) {
    WorkTileInfo info;
    info.round = round;
    info.item = fa3_item(round, static_cast<std::int32_t>(blockIdx.x),
                         static_cast<std::int32_t>(gridDim.x));
    if (!info.is_valid(params)) return info;
    const Fa3Batch& batch = params.batch;
    int tile;
    params.heads(tile, info.qo_head, info.item);
    info.kv_head = params.group.divide(info.qo_head);
    info.q_tile = batch.tiles[tile].tile;
    info.row = batch.tiles[tile].row;
    info.q_begin = batch.q_indptr[info.row];
    info.q_len = batch.q_indptr[info.row + 1] - info.q_begin;
    info.kv_len = batch.q_position[info.row] + info.q_len;
    info.page_begin = batch.page_indptr[info.row];
    return info;
  }
};

// Keys and values come by cp.async, written in the generic proxy, and wgmma reads them in the async
// one. PTX (memory consistency model, proxies) asks for a fence between; FlashInfer has none.
template <class Base>
struct FencedPipeline : Base {
  using Base::Base;
  CUTLASS_DEVICE void consumer_wait(typename Base::PipelineState state,
                                    cutlass::ConsumerToken token) {
    Base::consumer_wait(state, token);
    cutlass::arch::fence_view_async_shared();
  }
};

template <class Base>
struct FencedTraits : Base {
  using MainloopPipeline = FencedPipeline<typename Base::MainloopPipeline>;
};

// Writes a tile's output through shared memory, where the values lay, and its LSEs. In place of
// FlashInfer's `store`, in which a warp group arrives at the barrier in front of the reads twice,
// once by arriving and once by waiting, and so passes it without the other: it then writes out what
// the other has yet to put there. The types are FlashInfer's.
template <class Traits, bool kHasSchedulerBarrier>
struct Epilogue : flashinfer::CollectiveEpilogue<Traits> {
  using Base = flashinfer::CollectiveEpilogue<Traits>;
  using Tile = typename Base::TileShape_PDV;

  // All threads but the producer's.
  CUTLASS_DEVICE static void meet() {
    cutlass::arch::NamedBarrier::sync(Base::NUM_MMA_THREADS,
                                      static_cast<int>(flashinfer::NamedBarriers::kValueEmpty));
  }

  template <class BlockCoord, class SharedStorage, class Output, class Lse, class TiledMma>
  CUTLASS_DEVICE void store(const typename Base::Params& params, const Output& output,
                            const Lse& lse, SharedStorage& shared, TiledMma mma, int thread,
                            const BlockCoord& coord) {
    const auto& [q_tile, qo_head, kv_head, q_begin, page_begin, q_len, kv_len, row] = coord;
    cute::Tensor in_shared =
        cute::make_tensor(cute::make_smem_ptr(shared.smem_o.data()), typename Base::SmemLayoutO{});
    const auto copy = cute::make_tiled_copy_C(typename Base::SmemCopyAtomO{}, mma);
    const auto part = copy.get_thread_slice(thread);
    cute::Tensor rounded = flashinfer::convert_type<typename Base::DTypeO>(output);
    meet();  // the values have been read
    cute::copy(copy, part.retile_S(rounded), part.partition_D(in_shared));
    if (params.lse_ptr != nullptr) {
      store_lse(params, lse, mma.get_thread_slice(thread), q_begin, qo_head,
                q_len - q_tile * Base::CTA_Q, q_tile);
    }
    meet();  // the output is there
    flashinfer::write_O<Base::NUM_COPY_THREADS>(
        params.O_ptr, typename Base::TiledCopyO{}, params.layout_O, cute::select<0, 1>(Tile{}),
        in_shared, thread, q_tile, qo_head, q_begin, q_len, /*write_warp_idx=*/0);
    // FlashInfer tells the producer that the output has been read from one warp's view; where no
    // scheduler barrier keeps the warp groups together, another may still be reading.
    if constexpr (!kHasSchedulerBarrier) meet();
  }

 private:
  // The thread of a row that holds its first column writes it.
  template <class Lse, class ThreadMma>
  CUTLASS_DEVICE static void store_lse(const typename Base::Params& params, const Lse& lse,
                                       const ThreadMma& part, int q_begin, int qo_head,
                                       int num_rows, int q_tile) {
    using cute::_;
    using cute::_0;
    cute::Tensor places = part.partition_C(cute::make_identity_tensor(cute::select<0, 1>(Tile{})));
    cute::Tensor rows = places(cute::make_coord(_0{}, _, _0{}), _, _0{});
    if (cute::get<1>(rows(_0{})) != 0) return;
    const std::int64_t first = q_begin + std::int64_t{q_tile} * Base::CTA_Q;
#pragma unroll
    for (int i = 0; i < cute::size(lse); ++i) {
      const int row = cute::get<0>(rows(i));
      if (row < num_rows) params.lse_ptr[params.layout_LSE(qo_head, first + row)] = lse(i);
    }
  }
};

template <class T, int kHeadDim, bool kCausal, bool kGeneral>
struct Kernel {
  using Variant = std::conditional_t<kGeneral, GeneralAttention, flashinfer::StandardAttention>;
  // Keys that a step takes: FlashInfer's own choice for each head_dim.
  static constexpr int kKeys = kHeadDim == 256 ? 32 : 96;
  static constexpr int kQueries = kHeadDim == 64 ? 192 : 128;
  using Traits = FencedTraits<
      flashinfer::AttentionKernelTraits</*USE_TMA_LOAD_KV=*/false, kHeadDim, kHeadDim, kQueries,
                                        kKeys, /*NUM_STAGES=*/2, T, T, T, std::int32_t, Variant>>;
  using Mainloop = flashinfer::SparseCollectiveMainloop<Options, Traits, kCausal>;
  using TileEpilogue = Epilogue<Traits, Mainloop::UseSchedulerBarrier>;
  static constexpr int kSharedBytes = sizeof(typename Traits::SharedStorage);

  static const void* function() {
    return reinterpret_cast<const void*>(
        flashinfer::PrefillWithKVCacheKernel<Mainloop, TileEpilogue, Traits,
                                             /*LEFT_SLIDING_WINDOW=*/kGeneral, kCausal,
                                             TileScheduler>);
  }

  static cudaError_t prepare() {
    return cudaFuncSetAttribute(function(), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                kSharedBytes);
  }

  static typename Mainloop::Params mainloop_params(const Fa3Call& call) {
    const auto cache_layout = [&](const Fa2Cache& cache) {
      return flashinfer::get_gmem_layout(/*nnz=*/0, call.num_kv_heads, kHeadDim, cache.token_stride,
                                         cache.head_stride);
    };
    return Mainloop::to_underlying_arguments(
        {static_cast<const T*>(call.q),
         flashinfer::get_gmem_layout(call.num_q_tokens, call.num_qo_heads, kHeadDim,
                                     call.q_token_stride, call.q_head_stride),
         static_cast<const T*>(call.keys.data), cache_layout(call.keys),
         static_cast<const T*>(call.values.data), cache_layout(call.values),
         const_cast<std::int32_t*>(call.batch.page_indices), call.window_left,
         call.keys.page_stride, call.values.page_stride, static_cast<std::uint32_t>(call.page_size),
         Options{call.sm_scale, call.logits_soft_cap}});
  }

  static typename TileEpilogue::Params epilogue_params(const Fa3Call& call) {
    return TileEpilogue::to_underlying_arguments(
        {static_cast<T*>(call.out),
         flashinfer::get_gmem_layout(call.num_q_tokens, call.num_qo_heads, kHeadDim,
                                     std::int64_t{call.num_qo_heads} * kHeadDim, kHeadDim),
         call.lse, flashinfer::get_lse_gmem_layout(call.num_q_tokens, call.num_qo_heads)});
  }

  static cudaError_t run(const Fa3Call& call, cudaStream_t stream) {
    typename Mainloop::Params mainloop = mainloop_params(call);
    typename TileEpilogue::Params epilogue = epilogue_params(call);
    typename TileScheduler::Params scheduler{
        call.batch, call.batch.num_tiles * call.num_qo_heads,
        cutlass::FastDivmod(call.num_qo_heads),
        cutlass::FastDivmod(call.num_qo_heads / call.num_kv_heads)};
    void* args[] = {&mainloop, &epilogue, &scheduler};
    return cudaLaunchKernel(function(), dim3(call.num_blocks), dim3(Traits::NUM_WARPS * 32), args,
                            kSharedBytes, stream);
  }
};

template <class T, int kHeadDim, bool kCausal, bool kGeneral>
constexpr Fa3Instance make(DType dtype) {
  using K = Kernel<T, kHeadDim, kCausal, kGeneral>;
  return {dtype, kHeadDim, kCausal, kGeneral, K::prepare, K::run};
}

}  // namespace fa3
}  // namespace seqattn
