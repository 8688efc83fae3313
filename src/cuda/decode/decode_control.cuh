#pragma once

#include "decode_merge.cuh"
#include "decode_shape.cuh"

// The warps of a block that do not compute: one finds work and hands it to the others (schedule),
// one thread of another has keys and values copied (load_tiles).
namespace seqattn::decode {

// --- The scheduler.

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
  const int most =
      item_tiles(tiles.count, item.q_len, {call.num_kv_heads, call.group_size, S::kIsFloat8});
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
  const int group = call.group_size;
  RingPosition<kItemSlots> at;
  RingPosition<1> queries;
  PublicationCount count;
  int number = static_cast<int>(blockIdx.x);
  if (lane == 0) shared.is_busy = total > static_cast<int>(gridDim.x);
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

// --- The loader: one tile after the other, on into the next item without a pause. Tile i of an
// item is warp i % kMathWarps's.

template <class S>
__device__ __forceinline__ void load_tiles(const Call& call, Shared<S>& shared) {
  const std::uint64_t policy = evict_first_policy();
  const int tiles_per_page = call.page_size / kTileTokens;
  RingPosition<S::kStages> stage, oldest;  // of tiles that may be under way
  int num_under_way = 0;
  RingPosition<kItemSlots> at;
  while (true) {
    wait(address_of(shared.item_full[at.slot]), at.parity);
    const Item item = shared.items[at.slot];
    if (item.num_chunks == 0) return;
    const bool is_busy = shared.is_busy;
    const std::int32_t* const pages = shared.pages[at.slot];
    int page = pages[0], tile_of_page = item.first_tile % tiles_per_page;
    for (int tile = 0; tile < item.num_tiles; ++tile) {
      auto& to = shared.ring[stage.slot];
      const std::uint32_t full = address_of(shared.stage_full[stage.slot]);
      const int next_page = pages[min(tile + 1, item.num_tiles - 1)];
      wait(address_of(shared.stage_empty[stage.slot]), stage.parity ^ 1);
      if (is_busy) {
        if (num_under_way < S::kMostUnderWay) {
          ++num_under_way;
        } else {
          wait(address_of(shared.stage_full[oldest.slot]), oldest.parity);
          oldest.advance();
        }
      }
      arrive_expecting(full, 2 * S::kTileBytes);
      const int token = tile_of_page * kTileTokens;
      load_box(shared_address(to.keys), &call.keys, full, token, item.head, page, policy);
      load_box(shared_address(to.values), &call.values, full, token, item.head, page, policy);
      stage.advance();
      page = next_page;
      if (++tile_of_page == tiles_per_page) tile_of_page = 0;
    }
    arrive(address_of(shared.item_empty[at.slot]));
    at.advance();
  }
}

}  // namespace seqattn::decode
