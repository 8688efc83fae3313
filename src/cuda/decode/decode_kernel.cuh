#pragma once

#include "decode_control.cuh"
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
  for (int stage = 0; stage < S::kStages; ++stage) {
    init_barrier(address_of(shared.stage_full[stage]), 1);
    init_barrier(address_of(shared.stage_empty[stage]), kWarpArrivals);
  }
  for (int slot = 0; slot < kChunkSlots; ++slot) {
    init_barrier(address_of(shared.chunk_full[slot]), 32);
    init_barrier(address_of(shared.chunk_empty[slot]), kMathWarps * kWarpArrivals + 1);
  }
  init_barrier(address_of(shared.queries_full), 1);
  init_barrier(address_of(shared.queries_empty), kMathWarps * kWarpArrivals);
  init_barrier(address_of(shared.published), kMathWarps * kWarpArrivals);
  init_barrier(address_of(shared.counted), 1);
  fence_barrier_init();
}

// --- The math warps.

template <class S>
__device__ __forceinline__ Visible<S> visible_to(const Call& call, const Chunk& chunk,
                                                 const Lane& lane) {
  const int group = call.group_size;
  const auto range = [&](int query, int& first, int& end) {
    const int position = chunk.kv_len - chunk.q_len + query;
    end = call.causal ? min(chunk.kv_len, position + 1) : chunk.kv_len;
    first = call.window_left >= 0 ? max(0, position - call.window_left) : 0;
  };
  Visible<S> visible;
#pragma unroll
  for (int block = 0; block < S::kRowBlocks; ++block) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int row = block * kBlockRows + 2 * lane.t + c;
      const int query = min(row / group, chunk.q_len - 1);
      range(query, visible.first[block][c], visible.end[block][c]);
    }
  }
  int unused = 0;
  range(0, unused, visible.all_end);
  range(chunk.q_len - 1, visible.all_first, unused);
  return visible;
}

// The scales of a tile's tokens where each has its own (an append may write them while this block
// waits for it: no __ldg), else those of the head; what is not there has 1. Of values under a scale
// of their head, finish() takes care.
template <class S>
__device__ __forceinline__ TokenScales scales_of(const Call& call, const Chunk& chunk,
                                                 const std::int32_t* pages, int tile,
                                                 const Lane& lane) {
  TokenScales scales;
  if constexpr (S::kIsFloat8) {
    const Scales &keys = call.key_scales, &values = call.value_scales;
    if (!call.scales_per_token) {
      scales.key[0] = scales.key[1] = __ldg(keys.data + chunk.head * keys.head_stride);
    } else if (tile < chunk.num_tiles) {
      const int first_token = (chunk.first_tile + tile) * kTileTokens;
      const std::int64_t page = pages[tile];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int token = first_token + lane.g + i * 8;
        if (token >= chunk.kv_len) continue;
        const int slot = token % call.page_size;
        scales.key[i] = keys.data[page * keys.page_stride + slot * keys.token_stride +
                                  chunk.head * keys.head_stride];
        scales.value[i] = values.data[page * values.page_stride + slot * values.token_stride +
                                      chunk.head * values.head_stride];
      }
    }
  }
  return scales;
}

// What a warp keeps at hand: the queries of its item, and what they see of a chunk.
template <class S>
struct Task {
  Queries<S> queries;
  Visible<S> visible;
  float row_scales[S::kRowBlocks][2];
  std::uint32_t zero;  // a register that is 0 and that the compiler does not know to be
};

// Takes the tiles `first` and, where it is the chunk's, the one kMathWarps behind: with the bits of
// one after the other, but at once where no maximum has to be raised between them, since a tile
// alone is a chain of operations that wait for each other.
template <class S>
__device__ __forceinline__ void take_tiles(const Call& call, Shared<S>& shared, const Chunk& chunk,
                                           const Task<S>& task, int first,
                                           const TokenScales (&scales)[S::kTilesAtOnce],
                                           TileState<S>& state, RingPosition<S::kStages>& stage,
                                           const Lane& lane) {
  constexpr int kTiles = S::kTilesAtOnce;
  const bool has_second = kTiles == 2 && first + kMathWarps < chunk.num_tiles;
  RingPosition<S::kStages> stages[2];
  stages[0] = stages[1] = stage;  // without a second tile the first one is scored twice
  stage.template advance<kMathWarps>();
  wait(address_of(shared.stage_full[stages[0].slot]), stages[0].parity);
  if (has_second) {
    stages[1] = stage;
    stage.template advance<kMathWarps>();
    wait(address_of(shared.stage_full[stages[1].slot]), stages[1].parity);
  }
  float scores[kTiles][S::kRowBlocks][4], exponents[kTiles][S::kRowBlocks][4];
  std::uint32_t weights[kTiles][S::kRowBlocks][2];
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    score<S>(shared_address(shared.ring[stages[i].slot].keys), task.queries, lane, scores[i]);
  }
#pragma unroll
  for (int i = 0; i < kTiles; ++i) {
    const int first_token = (chunk.first_tile + first + i * kMathWarps) * kTileTokens;
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      scale_and_hide<S>(scores[i][block], task.row_scales[block], scales[i], call.cap_log2,
                        first_token, task.visible, block, lane);
      add_value_scales<S>(scores[i][block], scales[i], exponents[i][block]);
    }
    if (first_token + kTileTokens > chunk.kv_len && (i == 0 || has_second)) {
      clear_values<S>(shared_address(shared.ring[stages[i].slot].values),
                      chunk.kv_len - first_token, lane);
    }
  }
  const auto raise_for = [&](int i) {
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      if (exceeds(state.rows[block], exponents[i][block])) {
        raise(state.rows[block], exponents[i][block]);
      }
    }
  };
  const auto weigh_tile = [&](int i) {
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      weigh(state.rows[block], scores[i][block], exponents[i][block], weights[i][block]);
    }
  };
  const auto add_tile = [&](int i) {
    const std::uint32_t last =
        add_values(state, shared_address(shared.ring[stages[i].slot].values), weights[i], lane);
    if (arrives_for_warp(lane.index)) {
      arrive(address_of(shared.stage_empty[stages[i].slot]) + (last & task.zero));
    }
  };
  raise_for(0);
  weigh_tile(0);
  if constexpr (kTiles == 1) {
    add_tile(0);
  } else {
    bool are_apart = !has_second;
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      are_apart |= exceeds(state.rows[block], exponents[1][block]);
    }
    if (are_apart) {
      add_tile(0);
      if (!has_second) return;
      raise_for(1);
    }
    weigh_tile(1);
    if (!are_apart) add_tile(0);
    add_tile(1);
  }
}

// All of a chunk, whose queries are at hand and whose first tile is at `begin`, which becomes the
// next one's; arrives at `done` when nothing of it in shared memory is read any more.
template <class S>
__device__ __forceinline__ Parts<S> attend_to(const Call& call, Shared<S>& shared,
                                              const Chunk& chunk, Task<S>& task,
                                              const std::int32_t* pages,
                                              RingPosition<S::kStages>& begin, int warp,
                                              const Lane& lane, std::uint32_t done) {
  task.visible = visible_to<S>(call, chunk, lane);
#pragma unroll
  for (int block = 0; block < S::kRowBlocks; ++block) {
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      task.row_scales[block][c] = call.scale_log2 * task.queries.factors[block][c];
    }
  }
  TileState<S> state;
  state.clear();
  constexpr int kStep = S::kTilesAtOnce * kMathWarps;
  TokenScales next_scales[S::kTilesAtOnce];
  const auto load_scales = [&](int first) {
#pragma unroll
    for (int i = 0; i < S::kTilesAtOnce; ++i) {
      next_scales[i] = scales_of<S>(call, chunk, pages, first + i * kMathWarps, lane);
    }
  };
  load_scales(warp);
  RingPosition<S::kStages> stage = begin;
  stage.advance_by(warp);
  begin.advance_by(chunk.num_tiles);
  for (int tile = warp; tile < chunk.num_tiles; tile += kStep) {
    TokenScales scales[S::kTilesAtOnce];  // loads take about as long as the tiles
#pragma unroll
    for (int i = 0; i < S::kTilesAtOnce; ++i) scales[i] = next_scales[i];
    if (S::kIsFloat8 && call.scales_per_token) load_scales(tile + kStep);
    take_tiles(call, shared, chunk, task, tile, scales, state, stage, lane);
  }
  if (arrives_for_warp(lane.index)) arrive(done);
  return merge_warps(shared, state, warp, lane);
}

// Of shared memory, for a warp that may arrive at the slot without another look at most of it:
// whoever has compared num_tiles has read all.
__device__ __forceinline__ Chunk whole_chunk(const Chunk& slot, std::uint32_t zero) {
  static_assert(sizeof(Chunk) == 12 * sizeof(int), "a field is missing below");
  Chunk chunk = slot;
  const int all = chunk.head | chunk.number | chunk.num_items | chunk.run_items |
                  int{chunk.is_of_run} | chunk.num_left | chunk.first_tile | chunk.kv_len |
                  chunk.q_begin | chunk.q_len | chunk.partial;
  chunk.num_tiles += all & static_cast<int>(zero);
  return chunk;
}

template <class S>
__device__ __forceinline__ void compute(const Call& call, Shared<S>& shared, int warp) {
  const Lane lane;
  Task<S> task;
  task.zero = static_cast<std::uint32_t>(call.page_size) & 0x80000000u;
  RingPosition<S::kStages> begin;
  RingPosition<kChunkSlots> at;
  RingPosition<1> queries_at;
  Publication<S> publication;
  while (true) {  // an item each
    wait(address_of(shared.chunk_full[at.slot]), at.parity);
    Chunk chunk = whole_chunk(shared.chunks[at.slot], task.zero);
    const bool is_end = chunk.num_items == 0;
    Parts<S> parts;
    if (!is_end) {
      wait(address_of(shared.queries_full), queries_at.parity);
      const std::uint32_t read = task.queries.load(shared.queries, lane);
      if (arrives_for_warp(lane.index)) {
        arrive(address_of(shared.queries_empty) + (read & task.zero));
      }
      queries_at.advance();
      Parts<S> run;
      while (true) {
        parts = attend_to(call, shared, chunk, task, shared.pages[at.slot], begin, warp, lane,
                          address_of(shared.chunk_empty[at.slot]));
        at.advance();
        if (!chunk.is_of_run) break;
        add(run, parts);
        parts = run;
        if (chunk.num_left == 0) break;
        wait(address_of(shared.chunk_full[at.slot]), at.parity);
        chunk = whole_chunk(shared.chunks[at.slot], task.zero);
      }
    }
    publication.settle(call, shared, warp, lane);
    if (is_end) return;
    if (chunk.num_items == 1) {
      finish(call, chunk, parts, warp, lane);
    } else {
      publication.publish(call, shared, chunk, parts, warp, lane);
    }
  }
}

template <class S>
__global__ void __launch_bounds__(S::kThreads, S::kBlocksPerSm)
    attend(const __grid_constant__ Call call) {
  extern __shared__ __align__(1024) std::uint8_t memory[];
  Shared<S>& shared = *reinterpret_cast<Shared<S>*>(memory);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
  if (threadIdx.x == 0) init_barriers(shared);
  __syncthreads();
  if (warp >= kMathWarps) {
    if constexpr (S::kTradesRegisters) give_registers<S::kControlRegisters>();
    if (warp == kMathWarps) schedule(call, shared, lane);
    if (warp == kMathWarps + 1 && is_elected()) load_tiles(call, shared);
  } else {
    if constexpr (S::kTradesRegisters) take_registers<S::kMathRegisters>();
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
                          .block = dim3(S::kThreads),
                          .shared_bytes = sizeof(Shared<S>)};
  return launch(reinterpret_cast<const void*>(attend<S>), shape, arguments, stream,
                call.overlap_launch);
}

template <class S>
constexpr Instance make(DType q_dtype, DType kv_dtype) {
  return {q_dtype, kv_dtype, S::kDim, S::kRows, prepare<S>, run<S>};
}

}  // namespace seqattn::decode
