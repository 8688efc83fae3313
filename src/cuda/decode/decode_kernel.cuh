#pragma once

#include <algorithm>

#include "decode_merge.cuh"
#include "decode_shape.cuh"
#include "decode_tile.cuh"
#include "launch.h"

// Attention of short queries over a paged cache, for sm_90a. Thread blocks stay for the whole
// launch. In each, one warp finds work (schedule), one thread has keys and values copied
// (load_tiles), four warps compute (compute); they hand over through rings of barriers and never
// wait for the whole block. All is inlined, so that the compiler sees which memory is shared:
// through generic pointers loads were slower, and came behind a barrier's arrival.
namespace seqattn::decode {

template <class S>
__device__ __forceinline__ void init_barriers(Shared<S>& shared) {
  for (int warp = 0; warp < kMathWarps; ++warp) {
    for (int stage = 0; stage < S::kStages; ++stage) {
      init_barrier(address_of(shared.stage_full[warp][stage]), 1);
      init_barrier(address_of(shared.stage_empty[warp][stage]), 1);
    }
  }
  for (int slot = 0; slot < kItemSlots; ++slot) {
    init_barrier(address_of(shared.item_full[slot]), 32);
    init_barrier(address_of(shared.item_empty[slot]), kMathWarps + 1);
  }
  init_barrier(address_of(shared.queries_full), 1);
  init_barrier(address_of(shared.queries_empty), kMathWarps);
  init_barrier(address_of(shared.published), kMathWarps);
  init_barrier(address_of(shared.counted), 1);
  fence_barrier_init();
}

// --- The scheduler.

__device__ __forceinline__ int div_up(int a, int b) { return (a + b - 1) / b; }

// The row that has item number `item` of item_indptr, by a warp: the last one that begins no later.
__device__ __forceinline__ int row_of(const Batch& batch, int item, int lane) {
  int first = 0, count = batch.num_rows;  // among rows [first, first + count)
  while (count > 1) {
    const int step = div_up(count, 32);
    const int row = first + lane * step;
    const bool begins = lane * step < count && __ldg(batch.item_indptr + row) <= item;
    const int chosen = __popc(__ballot_sync(~0u, begins)) - 1;
    first += chosen * step;
    count = min(step, count - chosen * step);
  }
  return first;
}

template <class S>
__device__ __forceinline__ Item item_at(const Call& call, int number, int lane) {
  const Batch& batch = call.batch;
  Item item;
  item.head = number % call.num_kv_heads;
  const int in_rows = number / call.num_kv_heads;
  // Rows without items begin where the next one does: the last of these has them.
  item.row = row_of(batch, in_rows, lane);
  const int begin = __ldg(batch.item_indptr + item.row);
  item.chunk = in_rows - begin;
  item.num_chunks = __ldg(batch.item_indptr + item.row + 1) - begin;
  item.partial = number;
  item.kv_len = __ldg(batch.kv_len + item.row);
  item.q_begin = __ldg(batch.q_indptr + item.row);
  item.q_len = __ldg(batch.q_indptr + item.row + 1) - item.q_begin;
  const Tiles tiles = visible_tiles(item.kv_len, item.q_len, call.window_left);
  const int most = item_tiles(tiles.count, {call.num_kv_heads, S::kIsFloat8});
  item.first_tile = tiles.first + item.chunk * most;
  item.num_tiles = max(0, min(most, tiles.count - item.chunk * most));
  return item;
}

// A token's heads at once where they lie side by side.
template <class T, int kDim>
__device__ __forceinline__ void load_queries(const Call& call, T (*to)[kDim], const Item& item,
                                             int group, std::uint32_t barrier) {
  const int at_once = call.q_head_stride == kDim ? group : 1;
  for (int row = 0; row < item.q_len * group; row += at_once) {
    const auto* const from = static_cast<const T*>(call.q) +
                             (item.q_begin + row / group) * call.q_token_stride +
                             (std::int64_t{item.head} * group + row % group) * call.q_head_stride;
    load_bytes(shared_address(to[row]), from, at_once * kDim * 2, barrier);
  }
}

template <class S>
__device__ __forceinline__ void schedule(const Call& call, Shared<S>& shared, int lane) {
  wait_for_predecessor();
  const int total = __ldg(call.batch.item_indptr + call.batch.num_rows) * call.num_kv_heads;
  const int group = call.num_qo_heads / call.num_kv_heads;
  RingPosition<kItemSlots> at;
  RingPosition<1> queries;
  PublicationCount count;
  int number = static_cast<int>(blockIdx.x);
  while (true) {
    const bool is_end = number >= total;
    int next = 0;
    if (!is_end && lane == 0) next = static_cast<int>(gridDim.x + atomicAdd(call.next_item, 1u));
    Item item{};
    std::int32_t pages[S::kMaxItemTiles / 32];
    if (!is_end) {
      item = item_at<S>(call, number, lane);
      const std::int32_t* const table =
          call.batch.page_indices + __ldg(call.batch.page_begin + item.row);
      const int tiles_per_page = call.page_size / kTileTokens;
#pragma unroll
      for (int i = 0; i < S::kMaxItemTiles / 32; ++i) {
        const int tile = i * 32 + lane;
        pages[i] =
            tile < item.num_tiles ? __ldg(table + (item.first_tile + tile) / tiles_per_page) : 0;
      }
    }
    wait(address_of(shared.item_empty[at.slot]), at.parity ^ 1);
    if (is_end) {
      if (lane == 0) shared.items[at.slot].num_chunks = 0;  // no more
      arrive(address_of(shared.item_full[at.slot]));
      if (lane == 0) {
        count.follow(call, shared, {});
        count.follow(call, shared, {});
        let_successor_start();
        // The last block leaves zeros for the next launch.
        if (atomicAdd(call.next_item + 1, 1u) == gridDim.x - 1) {
          call.next_item[0] = 0;
          call.next_item[1] = 0;
        }
      }
      return;
    }
    if (lane == 0) shared.items[at.slot] = item;
#pragma unroll
    for (int i = 0; i < S::kMaxItemTiles / 32; ++i) shared.pages[at.slot][i * 32 + lane] = pages[i];
    arrive(address_of(shared.item_full[at.slot]));
    if (lane == 0) {
      wait(address_of(shared.queries_empty), queries.parity ^ 1);
      const std::uint32_t full = address_of(shared.queries_full);
      arrive_expecting(full, item.q_len * group * S::kDim * 2);
      load_queries(call, shared.queries, item, group, full);
      count.follow(call, shared, item);
    }
    queries.advance();
    __syncwarp();
    number = __shfl_sync(~0u, next, 0);
    at.advance();
  }
}

// --- The loader: tile i of an item goes to warp i % kMathWarps, through that warp's own ring, on
// into the next item without a pause.

template <class S>
__device__ __forceinline__ void load_tiles(const Call& call, Shared<S>& shared) {
  const std::uint64_t policy = evict_first_policy();
  const int tiles_per_page = call.page_size / kTileTokens;
  RingPosition<S::kStages> stages[kMathWarps];
  RingPosition<kItemSlots> at;
  while (true) {
    wait(address_of(shared.item_full[at.slot]), at.parity);
    const Item item = shared.items[at.slot];
    if (item.num_chunks == 0) return;
    for (int first = 0; first < item.num_tiles; first += kMathWarps) {
#pragma unroll
      for (int warp = 0; warp < kMathWarps; ++warp) {
        const int tile = first + warp;
        if (tile >= item.num_tiles) continue;
        RingPosition<S::kStages>& stage = stages[warp];
        auto& to = shared.ring[warp][stage.slot];
        const std::uint32_t full = address_of(shared.stage_full[warp][stage.slot]);
        wait(address_of(shared.stage_empty[warp][stage.slot]), stage.parity ^ 1);
        arrive_expecting(full, 2 * S::kTileBytes);
        const int token = (item.first_tile + tile) % tiles_per_page * kTileTokens;
        const int page = shared.pages[at.slot][tile];
        load_box(shared_address(to.keys), &call.keys, full, token, item.head, page, policy);
        load_box(shared_address(to.values), &call.values, full, token, item.head, page, policy);
        stage.advance();
      }
    }
    arrive(address_of(shared.item_empty[at.slot]));
    at.advance();
  }
}

// --- The math warps.

template <class S>
__device__ __forceinline__ Visible<S> visible_to(const Call& call, const Item& item,
                                                 const Lane& lane) {
  const int group = call.num_qo_heads / call.num_kv_heads;
  const auto range = [&](int query, int& first, int& end) {
    const int position = item.kv_len - item.q_len + query;
    end = call.causal ? min(item.kv_len, position + 1) : item.kv_len;
    first = call.window_left >= 0 ? max(0, position - call.window_left) : 0;
  };
  Visible<S> visible;
#pragma unroll
  for (int block = 0; block < S::kRowBlocks; ++block) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int row = block * kBlockRows + 2 * lane.t + c;
      const int query = min(row / group, item.q_len - 1);
      range(query, visible.first[block][c], visible.end[block][c]);
    }
  }
  int unused = 0;
  range(0, unused, visible.all_end);
  range(item.q_len - 1, visible.all_first, unused);
  return visible;
}

// The scales of a tile's tokens where each has its own, else those of the head; what is not there
// has 1. Of values under a scale of their head, finish() takes care.
template <class S>
__device__ __forceinline__ TokenScales scales_of(const Call& call, const Item& item,
                                                 const std::int32_t* pages, int tile,
                                                 const Lane& lane) {
  TokenScales scales;
  if constexpr (S::kIsFloat8) {
    const Scales &keys = call.key_scales, &values = call.value_scales;
    if (!call.scales_per_token) {
      scales.key[0] = scales.key[1] = __ldg(keys.data + item.head * keys.head_stride);
    } else if (tile < item.num_tiles) {
      const int first_token = (item.first_tile + tile) * kTileTokens;
      const std::int64_t page = pages[tile];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = first_token + lane.g + i * 8;
        if (token >= item.kv_len) continue;
        const int slot = token % call.page_size;
        scales.key[i] = __ldg(keys.data + page * keys.page_stride + slot * keys.token_stride +
                              item.head * keys.head_stride);
        scales.value[i] = __ldg(values.data + page * values.page_stride +
                                slot * values.token_stride + item.head * values.head_stride);
      }
    }
  }
  return scales;
}

template <class S>
__device__ __forceinline__ void compute(const Call& call, Shared<S>& shared, int warp) {
  const Lane lane;
  // A register that is 0 and that the compiler does not know to be.
  const std::uint32_t zero = static_cast<std::uint32_t>(call.page_size) & 0x80000000u;
  RingPosition<S::kStages> stage;
  RingPosition<kItemSlots> at;
  RingPosition<1> queries_at;
  Publication<S> publication;
  while (true) {
    wait(address_of(shared.item_full[at.slot]), at.parity);
    const Item item = shared.items[at.slot];
    if (item.num_chunks == 0) {
      publication.settle(call, shared, warp, lane);
      return;
    }
    wait(address_of(shared.queries_full), queries_at.parity);
    Queries<S> queries;
    const std::uint32_t read = queries.load(shared.queries, lane);
    __syncwarp();
    if (lane.index == 0) arrive(address_of(shared.queries_empty) + (read & zero));
    queries_at.advance();
    const Visible<S> visible = visible_to<S>(call, item, lane);
    float row_scales[S::kRowBlocks][2];
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        row_scales[block][c] = call.scale_log2 * queries.factors[block][c];
      }
    }
    const std::int32_t* const pages = shared.pages[at.slot];
    TokenScales next_scales = scales_of<S>(call, item, pages, warp, lane);
    TileState<S> state;
    state.clear();
    for (int tile = warp; tile < item.num_tiles; tile += kMathWarps) {
      const TokenScales scales = next_scales;  // loads take about as long as a tile
      if (S::kIsFloat8 && call.scales_per_token) {
        next_scales = scales_of<S>(call, item, pages, tile + kMathWarps, lane);
      }
      const auto& data = shared.ring[warp][stage.slot];
      const std::uint32_t keys = shared_address(data.keys), values = shared_address(data.values);
      wait(address_of(shared.stage_full[warp][stage.slot]), stage.parity);
      const int first_token = (item.first_tile + tile) * kTileTokens;
      float scores[S::kRowBlocks][4];
      score<S>(keys, queries, lane, scores);
#pragma unroll
      for (int block = 0; block < S::kRowBlocks; ++block) {
        scale_and_hide<S>(scores[block], row_scales[block], scales, call.cap_log2, first_token,
                          visible, block, lane);
      }
      if (first_token + kTileTokens > item.kv_len) {
        clear_values<S>(values, item.kv_len - first_token, lane);
      }
      std::uint32_t weights[S::kRowBlocks][2];
#pragma unroll
      for (int block = 0; block < S::kRowBlocks; ++block) {
        update(state.rows[block], scores[block], scales, weights[block]);
      }
      const std::uint32_t last = add_values(state, values, weights, lane);
      __syncwarp();
      if (lane.index == 0) arrive(address_of(shared.stage_empty[warp][stage.slot]) + (last & zero));
      stage.advance();
    }
    if (lane.index == 0) arrive(address_of(shared.item_empty[at.slot]));
    const Parts<S> parts = merge_warps(shared, state, warp, lane);
    publication.settle(call, shared, warp, lane);
    if (item.num_chunks == 1) {
      finish(call, item, parts, warp, lane);
    } else {
      publication.publish(call, shared, item, parts, warp, lane);
    }
    at.advance();
  }
}

template <class S>
__global__ void __launch_bounds__(kThreads, S::kBlocksPerSm)
    attend(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) std::uint8_t memory[];
  Shared<S>& shared = *reinterpret_cast<Shared<S>*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();
  if (warp == kMathWarps) {
    schedule(call, shared, lane);
  } else if (warp == kMathWarps + 1) {
    if (lane == 0) load_tiles(call, shared);
  } else {
    compute(call, shared, warp);
  }
}

template <class S>
cudaError_t prepare() {
  static_assert(sizeof(Shared<S>) <= Shared<S>::kMostBytes, "kBlocksPerSm blocks would not fit");
  return cudaFuncSetAttribute(attend<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              static_cast<int>(sizeof(Shared<S>)));
}

template <class S>
cudaError_t run(const Call& call, int num_sms, cudaStream_t stream) {
  void* arguments[] = {const_cast<Call*>(&call)};
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(num_sms * S::kBlocksPerSm)),
                          .block = dim3(kThreads),
                          .shared_bytes = sizeof(Shared<S>)};
  return launch(reinterpret_cast<const void*>(attend<S>), shape, arguments, stream,
                call.overlap_launch);
}

template <class S>
constexpr Instance make(DType q_dtype, DType kv_dtype) {
  return {q_dtype, kv_dtype, S::kDim, S::kRows, prepare<S>, run<S>};
}

}  // namespace seqattn::decode
