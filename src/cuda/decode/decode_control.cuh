#pragma once

#include "../whole.cuh"
#include "decode_merge.cuh"
#include "decode_shape.cuh"

// The warps of a block that do not compute: one finds work and hands it to the others (schedule),
// one thread of another has keys and values copied (load_tiles).
namespace seqattn::decode {

// --- The scheduler. The planning kernel may write the tables while blocks of this launch are there
// already, waiting for it: no loads of memory that nobody writes (__ldg).

// The row that has item number `item` of item_indptr, by a warp: the last one that begins no later.
// Rows without items begin where the next one does: the last of these has them.
__device__ __forceinline__ int row_of(const Batch& batch, int item, int lane) {
  int first = 0, count = batch.num_rows;  // among rows [first, first + count)
  while (count > 1) {
    const int step = div_up(count, 32);
    const int row = first + lane * step;
    const bool begins = lane * step < count && batch.item_indptr[row] <= item;
    const int chosen = __popc(__ballot_sync(~0u, begins)) - 1;
    first += chosen * step;
    count = min(step, count - chosen * step);
  }
  return first;
}

// Of an item: where the row's pages begin; how many tiles a chunk has, and the row's last one
// fewer; where the row's end.
struct ItemTiles {
  int page_begin = 0, chunk = 0, end = 0;
};

__device__ __forceinline__ void begin_at(Chunk& chunk, int tile, const ItemTiles& tiles) {
  chunk.first_tile = tile;
  chunk.num_tiles = max(0, min(tiles.chunk, tiles.end - tile));
}

// An item among all: heads of a row's item lie side by side.
struct Item {
  int index, in_rows, head;  // in_rows: its number among those of one head
  __device__ Item(int index, int num_heads)
      : index(index), in_rows(index / num_heads), head(index - in_rows * num_heads) {}
};

// The first chunk of an item of the row.
__device__ __forceinline__ Chunk first_of(const Call& call, const Item& item, int row,
                                          ItemTiles& tiles) {
  const PlannedRow planned = call.batch.planned_rows[row];
  const PlannedItems items = load_whole(call.batch.planned_items[row]);
  Chunk chunk;
  chunk.head = item.head;
  chunk.number = item.in_rows - items.begin;
  chunk.num_items = items.count;
  chunk.partial = item.index;
  chunk.kv_len = planned.kv_len;
  chunk.q_begin = planned.q_begin;
  chunk.q_len = planned.q_len;
  const int first = chunk.number * items.item_chunks;
  chunk.run_items = items.run_items;
  chunk.is_of_run = items.item_chunks > 1;
  chunk.num_left = min(int{items.item_chunks}, items.num_chunks - first) - 1;
  const Tiles visible = visible_tiles(planned.kv_len, planned.q_len, call.window_left);
  tiles = {planned.page_begin, items.chunk_tiles, visible.first + visible.count};
  begin_at(chunk, visible.first + first * items.chunk_tiles, tiles);
  return chunk;
}

// A token's heads at once where they lie side by side.
template <class T, int kDim>
__device__ __forceinline__ void load_queries(const Call& call, T (*to)[kDim], const Chunk& chunk,
                                             int group, std::uint32_t barrier) {
  const int at_once = call.q_head_stride == kDim ? group : 1;
  for (int row = 0; row < chunk.q_len * group; row += at_once) {
    const auto* const from = static_cast<const T*>(call.q) +
                             (chunk.q_begin + row / group) * call.q_token_stride +
                             (std::int64_t{chunk.head} * group + row % group) * call.q_head_stride;
    load_bytes(shared_address(to[row]), from, at_once * kDim * 2, barrier);
  }
}

template <class S>
__device__ __forceinline__ void schedule(const Call& call, Shared<S>& shared, int lane) {
  Item item(static_cast<int>(blockIdx.x), call.num_kv_heads);
  int next = 0;
  wait_for_predecessor();
  const int num_items = call.batch.item_indptr[call.batch.num_rows];
  const int run_limit = *call.batch.run_limit;
  int row = row_of(call.batch, item.in_rows, lane);  // while these are under way
  const int total = num_items * call.num_kv_heads;
  const int group = call.group_size;
  RingPosition<kChunkSlots> at;
  RingPosition<1> queries;
  PublicationCount count;
  Chunk chunk{};
  ItemTiles tiles;
  bool is_first = true;  // of its item
  if (lane == 0) shared.is_busy = 2 * total > static_cast<int>(gridDim.x) || run_limit > 0;
  while (true) {
    const bool is_end = item.index >= total;
    std::int32_t pages[S::kMaxChunkTiles / 32];
    if (!is_end) {
      if (is_first) {
        if (lane == 0) next = static_cast<int>(gridDim.x + atomicAdd(call.next_item, 1u));
        chunk = first_of(call, item, row, tiles);
      }
      const std::int32_t* const table = call.batch.page_indices + tiles.page_begin;
      const int tiles_per_page = call.page_size / kTileTokens;
#pragma unroll
      for (int i = 0; i < S::kMaxChunkTiles / 32; ++i) {
        int page = chunk.first_tile + i * 32 + lane;
        if (tiles_per_page > 1) page /= tiles_per_page;
        pages[i] = i * 32 + lane < chunk.num_tiles ? table[page] : 0;
      }
    }
    wait(address_of(shared.chunk_empty[at.slot]), at.parity ^ 1);
    if (is_end) {
      if (lane == 0) shared.chunks[at.slot].num_items = 0;  // no more
      arrive(address_of(shared.chunk_full[at.slot]));
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
    if (lane == 0) shared.chunks[at.slot] = chunk;
#pragma unroll
    for (int i = 0; i < S::kMaxChunkTiles / 32; ++i) {
      shared.pages[at.slot][i * 32 + lane] = pages[i];
    }
    arrive(address_of(shared.chunk_full[at.slot]));
    if (lane == 0) {
      if (is_first) {
        wait(address_of(shared.queries_empty), queries.parity ^ 1);
        const std::uint32_t full = address_of(shared.queries_full);
        arrive_expecting(full, chunk.q_len * group * S::kDim * 2);
        load_queries(call, shared.queries, chunk, group, full);
      }
      count.follow(call, shared, chunk);
    }
    if (is_first) queries.advance();
    __syncwarp();
    is_first = chunk.num_left == 0;
    if (is_first) {
      item = Item(__shfl_sync(~0u, next, 0), call.num_kv_heads);
      if (item.index < total) row = row_of(call.batch, item.in_rows, lane);
    } else {
      begin_at(chunk, chunk.first_tile + chunk.num_tiles, tiles);
      --chunk.num_left;
    }
    at.advance();
  }
}

// --- The loader: one tile after the other, on into the next chunk without a pause. Tile i of a
// chunk is warp i % kMathWarps's.

template <class S>
__device__ __forceinline__ void load_tiles(const Call& call, Shared<S>& shared) {
  const std::uint64_t policy = evict_first_policy();
  const int tiles_per_page = call.page_size / kTileTokens;
  RingPosition<S::kStages> stage, oldest;  // of tiles that may be under way
  int num_under_way = 0;
  RingPosition<kChunkSlots> at;
  while (true) {
    wait(address_of(shared.chunk_full[at.slot]), at.parity);
    const Chunk chunk = shared.chunks[at.slot];
    if (chunk.num_items == 0) return;
    const bool is_busy = shared.is_busy;
    const std::int32_t* const pages = shared.pages[at.slot];
    int page = pages[0], tile_of_page = 0;
    if (tiles_per_page > 1) tile_of_page = chunk.first_tile % tiles_per_page;
#pragma unroll 1  // copies would be instructions to fetch while the first tiles wait for them
    for (int tile = 0; tile < chunk.num_tiles; ++tile) {
      auto& to = shared.ring[stage.slot];
      const std::uint32_t full = address_of(shared.stage_full[stage.slot]);
      const int next_page = pages[min(tile + 1, chunk.num_tiles - 1)];
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
      load_box(shared_address(to.keys), &call.keys, full, token, chunk.head, page, policy);
      load_box(shared_address(to.values), &call.values, full, token, chunk.head, page, policy);
      stage.advance();
      page = next_page;
      if (++tile_of_page == tiles_per_page) tile_of_page = 0;
    }
    arrive(address_of(shared.chunk_empty[at.slot]));
    at.advance();
  }
}

}  // namespace seqattn::decode
