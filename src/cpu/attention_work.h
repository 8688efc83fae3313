#pragma once

#include <cstdint>
#include <vector>

#include "attention_plan.h"
#include "softmax_state.h"
#include "visible_keys.h"

// How a batch is cut into pieces of work. Everything in here is a pure function of a row's lengths
// and the shape: never of the batch around it, of the pages or of the threads.
namespace seqattn {

// Queries of one KV head are numbered token by token, within a token by the head's place in its
// group: "query row" r is token r / group_size, head r % group_size of the group.
inline constexpr int kMaxTileRows = 96;

// A tile's keys are split over at most so many items.
inline constexpr int kMaxChunks = 32;

// Query rows [first_row, first_row + num_rows) of one KV head of one row. They share every key and
// value that is read. Tiles of the same query rows, head by head, follow one another.
struct QueryTile {
  AttentionRow row;
  int kv_head = 0;
  std::int64_t first_row = 0;
  int num_rows = 0;
  int num_chunks = 0;
  // Where the states of its chunks lie among those of all tiles, in floats, if they are several.
  std::int64_t partials = 0;
};

// What a thread takes at a time: one KV chunk for some neighbouring heads. How many heads changes
// nothing but the order of work: pages hold the heads side by side, so that few query rows, which
// have to wait for memory, do best to take them together.
struct WorkItem {
  std::int64_t first_tile = 0;
  int num_tiles = 0;
  int chunk = 0;
  KeySet kv;
};

struct AttentionWork {
  std::vector<QueryTile> tiles;
  std::vector<WorkItem> items;
  std::vector<std::int64_t> split_tiles;  // those of several chunks, to be merged after the items
  int max_tiles = 0;                      // of an item
  // Floats of the states that an item finishes itself, at most, and of all that are merged later.
  std::int64_t max_own_floats = 0;
  std::int64_t num_partial_floats = 0;
};

// Tiles and chunks depend on a row alone; the number of heads to an item also on the threads that
// there are to keep busy. O(items).
AttentionWork cut_work(const AttentionShape& shape, const std::vector<AttentionRow>& rows,
                       int num_threads);

}  // namespace seqattn
