#pragma once

#include <cstdint>
#include <vector>

#include "attention_plan.h"

// How a batch is cut into pieces of work. Everything in here is a pure function of a row's lengths
// and the shape: never of the batch around it, of the pages or of the threads.
namespace seqattn {

// Queries of one KV head are numbered token by token, within a token by the head's place in its
// group: "query row" r is token r / group_size, head r % group_size of the group.
inline constexpr int kMaxTileRows = 96;

// A tile's keys are split over at most so many items.
inline constexpr int kMaxChunks = 32;

// Tokens [begin, end) of a row.
struct KVRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  bool empty() const noexcept { return begin >= end; }
};

// Query rows [first_row, first_row + num_rows) of one KV head of one row. They share every key and
// value that is read.
struct QueryTile {
  AttentionRow row;
  int kv_head = 0;
  std::int64_t first_row = 0;
  int num_rows = 0;
  std::int64_t first_item = 0;  // its KV chunks are items [first_item, first_item + num_items)
  int num_items = 0;
};

// One query tile against one KV chunk: what a thread takes at a time.
struct WorkItem {
  std::int64_t tile = 0;
  KVRange kv;
  std::int64_t partial = -1;  // where the state goes until the chunks are merged; -1: only chunk
};

struct AttentionWork {
  std::vector<QueryTile> tiles;
  std::vector<WorkItem> items;
  std::vector<std::int64_t> split_tiles;  // tiles of several items, to be merged after them
  std::int64_t num_partials = 0;
  int max_rows = 0;          // of a tile
  int max_partial_rows = 0;  // of a tile that is split
};

// Keys that one query may see by position; `causal`, `window_left` as in AttentionOptions.
KVRange visible_keys(const AttentionShape& shape, const AttentionRow& row, std::int64_t token);

// O(items).
AttentionWork cut_work(const AttentionShape& shape, const std::vector<AttentionRow>& rows);

}  // namespace seqattn
