#pragma once

#include "decode_shape.cuh"
#include "decode_tile.cuh"
#include "sinks.cuh"

// The end of a chunk: its four warps become one result, the results of a run's chunks one, and
// those of a row's items one output. Whoever adds them, everything is added in the same order.
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

template <class S>
__device__ __forceinline__ void add(Part<S>& to, const Part<S>& part) {
  to.add(make_float4(part.max[0], part.sum[0], part.max[1], part.sum[1]), part.out);
}
template <class S>
__device__ __forceinline__ void add(Parts<S>& to, const Parts<S>& parts) {
#pragma unroll
  for (int block = 0; block < S::kRowBlocks; ++block) add(to.rows[block], parts.rows[block]);
}

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

// Divides, with the sink in the denominator, and writes out and lse of a block of rows, of a Chunk
// or a Merge.
template <class S, class Of>
__device__ __forceinline__ void finish(const Call& call, const Of& of, const Part<S>& part,
                                       int block, int warp, const Lane& lane) {
  const int group = call.group_size;
  const Sinks sinks{call.sink_logits, call.sink_stride};
  float scale = 1;  // of values, where it is one for the head
  if constexpr (S::kIsFloat8) {
    const Scales& values = call.value_scales;
    if (!call.scales_per_token) scale = __ldg(values.data + of.head * values.head_stride);
  }
#pragma unroll
  for (int c = 0; c < 2; ++c) {
    const int row = block * kBlockRows + 2 * lane.t + c;
    if (row >= of.q_len * group) continue;
    const std::int64_t token = of.q_begin + row / group;
    const std::int64_t head = std::int64_t{of.head} * group + row % group;
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
          sum > 0    ? sinks.lse(head, max, sum)
          : sum == 0 ? -INFINITY
                     : sum;  // NaN
    }
  }
}

template <class S, class Of>
__device__ __forceinline__ void finish(const Call& call, const Of& of, const Parts<S>& parts,
                                       int warp, const Lane& lane) {
#pragma unroll
  for (int block = 0; block < S::kRowBlocks; ++block) {
    finish(call, of, parts.rows[block], block, warp, lane);
  }
}

// What the block whose result comes last of a group has to merge.
__device__ __forceinline__ Merge merge_of(const Call& call, const Chunk& chunk) {
  const int size = merge_group_size(chunk.num_items, chunk.run_items);
  const int group = chunk.number / size, heads = call.num_kv_heads;
  Merge merge;
  merge.head = chunk.head;
  merge.q_begin = chunk.q_begin;
  merge.q_len = chunk.q_len;
  merge.row_place = chunk.partial - chunk.number * heads;
  merge.place = merge.row_place + group * size * heads;
  merge.num_results = min(size, chunk.num_items - group * size);
  merge.num_groups = div_up(chunk.num_items, size);
  merge.group_step = size * heads;
  merge.in_pairs = merges_in_pairs(chunk.num_items, chunk.run_items);
  return merge;
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
// comes last of its group (merge_of) merges the group; of a row with more than one, the block
// whose group comes last merges those. A block hears that it was last while it is at its next item,
// since counting takes two round trips to memory.
template <class S>
class Publication {
 public:
  // Leaves an item's result in memory. REQUIRES that the one before is settled.
  __device__ __forceinline__ void publish(const Call& call, Shared<S>& shared, const Chunk& chunk,
                                          const Parts<S>& parts, int warp, const Lane& lane) {
    leave(call, call.partial_stats, chunk.partial, chunk.q_len, parts, warp, lane);
    if (arrives_for_warp(lane.index)) arrive(address_of(shared.published));
    is_pending_ = true;
  }

  // Of the item published before, if there is one: where it came last, merges its group, and its
  // row where the group came last.
  __device__ __forceinline__ void settle(const Call& call, Shared<S>& shared, int warp,
                                         const Lane& lane) {
    if (!is_pending_) return;
    wait(address_of(shared.counted), parity_);
    parity_ ^= 1;
    const Merge& due = shared.merges[at_.slot];
    at_.advance();
    if (due.is_due) merge(call, shared, due, warp, lane);
    is_pending_ = false;
  }

 private:
  __device__ __forceinline__ void merge(const Call& call, Shared<S>& shared, const Merge& merge,
                                        int warp, const Lane& lane) const {
    Results results{call.partial_stats, merge.place, merge.num_results, call.num_kv_heads,
                    merge.in_pairs};
    Parts<S> parts;
    bool is_whole_row = merge.num_groups == 1;
    while (true) {
      parts = sum_of(call, results, merge.q_len, warp, lane);
      if (is_whole_row) break;
      // Where the group's first result lay, which this thread alone has read; its maxima, which all
      // four warps read, elsewhere.
      leave(call, call.group_stats, merge.place, merge.q_len, parts, warp, lane);
      sync_math_threads();
      if (threadIdx.x == 0) {
        shared.row_is_due = arrives_last(call.group_arrivals + merge.row_place, merge.num_groups);
      }
      sync_math_threads();
      if (!shared.row_is_due) return;
      results = {call.group_stats, merge.row_place, merge.num_groups, merge.group_step, false};
      is_whole_row = true;
    }
    finish(call, merge, parts, warp, lane);
  }

  // Whether a lane has some of the item's queries in a block; others would be moved in vain.
  __device__ static bool has_rows(const Call& call, int q_len, int block, const Lane& lane) {
    return block * kBlockRows + 2 * lane.t < q_len * call.group_size;
  }

  __device__ __forceinline__ void leave(const Call& call, float4* stats, int place, int q_len,
                                        const Parts<S>& parts, int warp, const Lane& lane) const {
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      if (!has_rows(call, q_len, block, lane)) continue;
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

  // Of a row and head, in their order: the first one's place, how many, and how far apart.
  struct Results {
    const float4* stats;
    int place, count, step;
    bool in_pairs;  // added two by two, and then these
  };

  __device__ __forceinline__ Parts<S> sum_of(const Call& call, const Results& results, int q_len,
                                             int warp, const Lane& lane) const {
    Parts<S> parts;
#pragma unroll
    for (int block = 0; block < S::kRowBlocks; ++block) {
      if (!has_rows(call, q_len, block, lane)) continue;
      Part<S>& sum = parts.rows[block];
      for (int begin = 0; begin < results.count; begin += kLoadedResults) {
        float4 out[kLoadedResults][S::kOwnSteps], its_stats[kLoadedResults];
#pragma unroll
        for (int i = 0; i < kLoadedResults; ++i) {
          // The last one again rather than a load under a condition, which would wait for the add
          // in front of it.
          const int at = results.place + min(begin + i, results.count - 1) * results.step;
#pragma unroll
          for (int s = 0; s < S::kOwnSteps; ++s) {
            out[i][s] = load_now(sums_of(call, at, block, warp, lane) + s * 32);
          }
          its_stats[i] = load_now(stats_of(results.stats, at, block, lane));
        }
        if (!results.in_pairs) {
#pragma unroll
          for (int i = 0; i < kLoadedResults; ++i) {
            if (begin + i < results.count) sum.add(its_stats[i], out[i]);
          }
          continue;
        }
#pragma unroll
        for (int i = 0; i < kLoadedResults; i += 2) {
          if (begin + i >= results.count) break;
          Part<S> pair;
          pair.add(its_stats[i], out[i]);
          if (begin + i + 1 < results.count) pair.add(its_stats[i + 1], out[i + 1]);
          add(sum, pair);
        }
      }
    }
    return parts;
  }

  static constexpr int kLoadedResults = 8 / S::kRowBlocks;  // under way at once
  static_assert(kLoadedResults % 2 == 0, "a pair would be cut in two");

  template <class T>
  __device__ static T* stats_of(T* stats, int place, int block, const Lane& lane) {
    return stats + (std::int64_t{place} * S::kRowBlocks + block) * 4 + lane.t;
  }
  __device__ static float4* sums_of(const Call& call, int place, int block, int warp,
                                    const Lane& lane) {
    const std::int64_t at = std::int64_t{place} * S::kRowBlocks + block;
    return call.partials + (at * S::kSteps + warp * S::kOwnSteps) * 32 + lane.index;
  }

  bool is_pending_ = false;
  int parity_ = 0;
  RingPosition<kMergeSlots> at_;
};

// By the scheduler: counts what the math warps published, for all blocks to see, and answers
// whether it was the last of its group. It comes two chunks later, when the math warps are at the
// chunk between: they find the answer when they end its item.
class PublicationCount {
 public:
  // A chunk was handed over, or {}. Counts what was published at the end of the one two calls
  // before, if anything was.
  template <class S>
  __device__ void follow(const Call& call, Shared<S>& shared, const Chunk& chunk) {
    if (is_published_[0]) count(call, shared);
    is_published_[0] = is_published_[1];
    is_published_[1] = chunk.num_left == 0 && chunk.num_items > 1;
    if (!is_published_[1]) return;
    shared.merges[next_.slot] = merge_of(call, chunk);
    next_.advance();
  }

 private:
  template <class S>
  __device__ void count(const Call& call, Shared<S>& shared) {
    wait(address_of(shared.published), parity_);
    parity_ ^= 1;
    Merge& merge = shared.merges[at_.slot];
    at_.advance();
    merge.is_due = arrives_last(call.arrivals + merge.place, merge.num_results);
    arrive(address_of(shared.counted));
  }

  bool is_published_[2] = {};
  int parity_ = 0;
  RingPosition<kMergeSlots> at_, next_;
};

}  // namespace seqattn::decode
