#pragma once

#include "decode_shape.cuh"
#include "decode_tile.cuh"
#include "sinks.cuh"

// The end of an item: its four warps become one result, and the results of a row's items one
// output. Whoever comes last, everything is added in the same order.
namespace seqattn::decode {

// For the threads of the math warps alone. Written so that the compiler cannot split it.
__device__ __forceinline__ void sync_math_threads() {
  __syncwarp();
  asm volatile("barrier.sync 1, %0;" ::"n"(kMathThreads) : "memory");
}

// A warp's part of a merged result: some steps of the head's elements, of a block of rows, as its
// accumulators lie (RowState).
template <class S>
struct Part {
  float max[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  float4 out[S::kOwnSteps] = {};

  // Behind this one: another part of the same place, with its rows' maxima and sums.
  __device__ void add(float4 stats, const float4 (&other)[S::kOwnSteps]) {
    float own[2], others[2];
    const float max_of[2] = {stats.x, stats.z}, sum_of[2] = {stats.y, stats.w};
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const float next = fmaxf(max[c], max_of[c]);
      own[c] = max[c] == -INFINITY ? 0.0f : exp2_fast(max[c] - next);
      others[c] = max_of[c] == -INFINITY ? 0.0f : exp2_fast(max_of[c] - next);
      sum[c] = __fmaf_rn(sum[c], own[c], __fmul_rn(sum_of[c], others[c]));
      max[c] = next;
    }
#pragma unroll
    for (int s = 0; s < S::kOwnSteps; ++s) {
      out[s].x = __fmaf_rn(out[s].x, own[0], __fmul_rn(other[s].x, others[0]));
      out[s].y = __fmaf_rn(out[s].y, own[1], __fmul_rn(other[s].y, others[1]));
      out[s].z = __fmaf_rn(out[s].z, own[0], __fmul_rn(other[s].z, others[0]));
      out[s].w = __fmaf_rn(out[s].w, own[1], __fmul_rn(other[s].w, others[1]));
    }
  }
};

template <class S>
struct Parts {
  Part<S> rows[S::kRowBlocks];
};

// By every math thread: each warp gets what the others have of its steps, and adds it in the order
// of the warps.
template <class S>
__device__ __forceinline__ Part<S> merge_warps(Shared<S>& shared, RowState<S>& rows, int block,
                                               int warp, const Lane& lane) {
  const auto own_out = [&](int owner, int s) {
    const float(&out)[4] = rows.out[owner * S::kOwnSteps + s];
    return make_float4(out[0], out[1], out[2], out[3]);
  };
#pragma unroll
  for (float& sum : rows.sum) {
#pragma unroll
    for (int lanes = 4; lanes <= 16; lanes *= 2) sum += __shfl_xor_sync(~0u, sum, lanes);
  }
  // What was exchanged before has been read, and no warp is so far behind that a slot of the ring
  // of tiles, which it is to wait for, has gone round again.
  sync_math_threads();
  if (lane.g == 0) {
    shared.stats[block][warp][lane.t] =
        make_float4(rows.max[0], rows.sum[0], rows.max[1], rows.sum[1]);
  }
#pragma unroll
  for (int owner = 0; owner < kMathWarps; ++owner) {
    if (owner == warp) continue;
#pragma unroll
    for (int s = 0; s < S::kOwnSteps; ++s) {
      shared.exchange[owner][warp - (warp > owner)][s][lane.index] = own_out(owner, s);
    }
  }
  sync_math_threads();
  Part<S> part;
#pragma unroll
  for (int from = 0; from < kMathWarps; ++from) {
    float4 out[S::kOwnSteps];
    if (from == warp) {
#pragma unroll
      for (int owner = 0; owner < kMathWarps; ++owner) {  // registers have no index at run time
        if (owner != warp) continue;
#pragma unroll
        for (int s = 0; s < S::kOwnSteps; ++s) out[s] = own_out(owner, s);
      }
    } else {
#pragma unroll
      for (int s = 0; s < S::kOwnSteps; ++s) {
        out[s] = shared.exchange[warp][from - (from > warp)][s][lane.index];
      }
    }
    part.add(shared.stats[block][from][lane.t], out);
  }
  return part;
}

template <class S>
__device__ __forceinline__ Parts<S> merge_warps(Shared<S>& shared, TileState<S>& state, int warp,
                                                const Lane& lane) {
  Parts<S> parts;
#pragma unroll
  for (int block = 0; block < S::kRowBlocks; ++block) {
    parts.rows[block] = merge_warps(shared, state.rows[block], block, warp, lane);
  }
  return parts;
}

template <class S>
__device__ __forceinline__ void store_out(const Call& call, std::int64_t at, float x) {
  if (call.out_is_float) {
    static_cast<float*>(call.out)[at] = x;
  } else {
    static_cast<typename S::T*>(call.out)[at] = round_to<typename S::T>(x);
  }
}

// Divides, with the sink in the denominator, and writes out and lse of a block of rows.
template <class S>
__device__ __forceinline__ void finish(const Call& call, const Item& item, const Part<S>& part,
                                       int block, int warp, const Lane& lane) {
  const int group = call.group_size;
  const Sinks sinks{call.sink_logits, call.sink_stride};
  float scale = 1;  // of values, where it is one for the head
  if constexpr (S::kIsFloat8) {
    const Scales& values = call.value_scales;
    if (!call.scales_per_token) scale = __ldg(values.data + item.head * values.head_stride);
  }
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int row = block * kBlockRows + 2 * lane.t + c;
    if (row >= item.q_len * group) continue;
    const std::int64_t token = item.q_begin + row / group;
    const std::int64_t head = std::int64_t{item.head} * group + row % group;
    float max = part.max[c], sum = part.sum[c], own = 1;
    if (call.sink_logits != nullptr) {
      const float sink = sinks.base2(head);
      const float next = fmaxf(max, sink);
      own = max == -INFINITY ? 0.0f : exp2_fast(max - next);
      if (sink != -INFINITY) sum = sum * own + (sink == next ? 1.0f : exp2_fast(sink - next));
      max = next;
    }
    const float factor = sum > 0 ? own / sum * scale : 0.0f;
    const std::int64_t at = token * call.out_token_stride + head * call.out_head_stride;
#pragma unroll
    for (int s = 0; s < S::kOwnSteps; ++s) {
      const int element = (warp * S::kOwnSteps + s) * 16 + lane.g * S::kRowElements;
      const float4 out = part.out[s];
      store_out<S>(call, at + element, (c == 0 ? out.x : out.y) * factor);
      store_out<S>(call, at + element + S::kOtherHalf, (c == 0 ? out.z : out.w) * factor);
    }
    if (call.lse != nullptr && warp == 0 && lane.g == 0) {
      call.lse[token * call.lse_token_stride + head * call.lse_head_stride] =
          sum > 0 ? sinks.lse(head, max, sum) : -INFINITY;
    }
  }
}

template <class S>
__device__ __forceinline__ void finish(const Call& call, const Item& item, const Parts<S>& parts,
                                       int warp, const Lane& lane) {
#pragma unroll
  for (int block = 0; block < S::kRowBlocks; ++block) {
    finish(call, item, parts.rows[block], block, warp, lane);
  }
}

// The place among the results of another chunk of an item's row and head.
__device__ __forceinline__ int place_of(const Call& call, const Item& item, int chunk) {
  return item.partial + (chunk - item.chunk) * call.num_kv_heads;
}

// Counts one of `num` arrivals and answers whether it is the last, behind which the counter is 0
// again. Releases what the threads wrote that the caller has waited for; the last one acquires what
// all before it released.
__device__ __forceinline__ bool arrives_last(unsigned* counter, int num) {
  const bool is_last = add_in_order(counter, 1) == static_cast<unsigned>(num) - 1;
  if (is_last) *counter = 0;  // for the next launch
  return is_last;
}

// The results of a row that several items share: each is left in memory, and the block whose result
// comes last of its group (MergeGroup) merges the group; of a row with more than one, the block
// whose group comes last merges those. A block hears that it was last while it is at its next item,
// since counting takes two round trips to memory.
template <class S>
class Publication {
 public:
  // Leaves an item's part in memory. REQUIRES that the one before is settled.
  __device__ __forceinline__ void publish(const Call& call, Shared<S>& shared, const Item& item,
                                          const Parts<S>& parts, int warp, const Lane& lane) {
    pending_ = item;
    leave(call, call.partial_stats, item.partial, parts, warp, lane);
    __syncwarp();
    if (lane.index == 0) arrive(address_of(shared.published));
  }

  // Of the item published before, if there is one: where it came last, merges its group, and its
  // row where the group came last.
  __device__ __forceinline__ void settle(const Call& call, Shared<S>& shared, int warp,
                                         const Lane& lane) {
    if (pending_.num_chunks == 0) return;
    wait(address_of(shared.counted), parity_);
    parity_ ^= 1;
    if (shared.pending_is_last != 0) merge(call, shared, warp, lane);
    pending_.num_chunks = 0;
  }

 private:
  __device__ __forceinline__ void merge(const Call& call, Shared<S>& shared, int warp,
                                        const Lane& lane) const {
    const MergeGroup group = merge_group(pending_.chunk, pending_.num_chunks);
    const int num_groups = num_merge_groups(pending_.num_chunks);
    const int row = place_of(call, pending_, 0);
    int place = place_of(call, pending_, group.first_chunk), count = group.num_chunks, step = 1;
    float4* stats = call.partial_stats;
    Parts<S> parts;
    bool is_whole_row = num_groups == 1;
    while (true) {
      parts = sum_of(call, stats, place, count, step, warp, lane);
      if (is_whole_row) break;
      // Where the group's first result lay, which this thread alone has read; its maxima, which all
      // four warps read, elsewhere.
      stats = call.group_stats;
      leave(call, stats, place, parts, warp, lane);
      sync_math_threads();
      if (threadIdx.x == 0) {
        shared.pending_is_last = arrives_last(call.group_arrivals + row, num_groups);
      }
      sync_math_threads();
      if (shared.pending_is_last == 0) return;
      place = row, count = num_groups, step = kMergeChunks;
      is_whole_row = true;
    }
    finish(call, pending_, parts, warp, lane);
  }

  // Whether the item has queries among those of a lane; others would be moved in vain.
  __device__ static bool has_rows(const Call& call, const Item& item, int block, const Lane& lane) {
    return block * kBlockRows + 2 * lane.t < item.q_len * call.group_size;
  }

  __device__ __forceinline__ void leave(const Call& call, float4* stats, int place,
                                        const Parts<S>& parts, int warp, const Lane& lane) const {
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      if (!has_rows(call, pending_, block, lane)) continue;
      const Part<S>& part = parts.rows[block];
#pragma unroll
      for (int s = 0; s < S::kOwnSteps; ++s) {
        __stcg(sums_of(call, place, block, warp, lane) + s * 32, part.out[s]);
      }
      if (warp == 0 && lane.g == 0) {
        __stcg(stats_of(stats, place, block, lane),
               make_float4(part.max[0], part.sum[0], part.max[1], part.sum[1]));
      }
    }
  }

  // Adds `count` results of the pending item's row and head, `step` chunks apart, in their order.
  __device__ __forceinline__ Parts<S> sum_of(const Call& call, const float4* stats, int place,
                                             int count, int step, int warp,
                                             const Lane& lane) const {
    Parts<S> parts;
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      if (!has_rows(call, pending_, block, lane)) continue;
      for (int begin = 0; begin < count; begin += kLoadedChunks) {
        float4 out[kLoadedChunks][S::kOwnSteps], its_stats[kLoadedChunks];
#pragma unroll
        for (int i = 0; i < kLoadedChunks; ++i) {
          // The last one again rather than a load under a condition, which would wait for the add
          // in front of it.
          const int at = place + min(begin + i, count - 1) * step * call.num_kv_heads;
#pragma unroll
          for (int s = 0; s < S::kOwnSteps; ++s) {
            out[i][s] = load_now(sums_of(call, at, block, warp, lane) + s * 32);
          }
          its_stats[i] = load_now(stats_of(stats, at, block, lane));
        }
#pragma unroll
        for (int i = 0; i < kLoadedChunks; ++i) {
          if (begin + i < count) parts.rows[block].add(its_stats[i], out[i]);
        }
      }
    }
    return parts;
  }

  static constexpr int kLoadedChunks = 8 / S::kRowBlocks;  // under way at once

  template <class T>
  __device__ static T* stats_of(T* stats, int place, int block, const Lane& lane) {
    return stats + (std::int64_t{place} * S::kRowBlocks + block) * 4 + lane.t;
  }
  __device__ static float4* sums_of(const Call& call, int place, int block, int warp,
                                    const Lane& lane) {
    const std::int64_t at = std::int64_t{place} * S::kRowBlocks + block;
    return call.partials + (at * S::kSteps + warp * S::kOwnSteps) * 32 + lane.index;
  }

  Item pending_{};
  int parity_ = 0;
};

// By the scheduler: counts what the math warps published, for all blocks to see, and answers
// whether it was the last of its group. It comes two items later, when the math warps are at the
// item between: they find the answer when they end that.
class PublicationCount {
 public:
  // An item was handed over. Counts the one that was handed over two calls before.
  template <class S>
  __device__ void follow(const Call& call, Shared<S>& shared, const Item& item) {
    count(call, shared, before_[0]);
    before_[0] = before_[1];
    const MergeGroup group = merge_group(item.chunk, item.num_chunks);
    before_[1] = {item.num_chunks > 1, place_of(call, item, group.first_chunk), group.num_chunks};
  }

 private:
  struct Arrival {
    bool is_published = false;
    int place = 0, num_chunks = 1;
  };

  template <class S>
  __device__ void count(const Call& call, Shared<S>& shared, const Arrival& arrival) {
    if (!arrival.is_published) return;
    wait(address_of(shared.published), parity_);
    parity_ ^= 1;
    shared.pending_is_last = arrives_last(call.arrivals + arrival.place, arrival.num_chunks);
    arrive(address_of(shared.counted));
  }

  Arrival before_[2];
  int parity_ = 0;
};

}  // namespace seqattn::decode
