#pragma once

#include <cstdint>

// How a row's keys are cut into chunks, and which of these a thread block takes at once: the same
// on the host and in the planning kernel; blocks read what either worked out. Pure functions; a
// row's chunks depend on its lengths alone, and so do its bits. No CUDA in here.
namespace seqattn::decode {

inline constexpr int kTileTokens = 16;  // one box of the bulk copy engine; pages hold a multiple
inline constexpr int kMaxChunkTiles = 128;
// Query rows (tokens times group) of a row and KV head that kernels are compiled for.
inline constexpr int kFewQueryRows = 8, kMaxQueryRows = 16;
inline constexpr int kMaxKeys = 1 << 30;  // of a row; positions and windows then fit an int

constexpr int div_up(int a, int b) { return (a + b - 1) / b; }

// What the cutting depends on besides a row's lengths.
struct ChunkRule {
  int num_kv_heads = 1, group_size = 1;
  bool is_float8 = false;
};

// How many tiles of keys a chunk has, of as many as the row's queries see: of nothing that belongs
// to the batch, so that its bits do not depend on that. Rows are cut evenly. Short rows, those of
// few heads, and those so long that few of them fit a device, are cut finer, since few of them have
// to fill it; a chunk's end costs 1 us, in which twice as many keys of 8 bits are read, and twice
// as much memory for many query rows.
inline constexpr int kShortRowTiles = 64, kShortChunkTiles = 8;
inline constexpr int kMiddleRowTiles = 256, kMiddleChunkTiles = 40;
inline constexpr int kFewHeads = 2, kFewHeadsChunkTiles = 32;
inline constexpr int kLongRowTiles = 1024, kLongChunkTiles = 64;
inline constexpr int kVeryLongRowTiles = 4096;  // more pieces of few heads would only add merging
inline constexpr int kManyRowsRowTiles = 512;
constexpr int most_chunk_tiles(int num_tiles, int q_len, const ChunkRule& rule) {
  if (num_tiles <= kShortRowTiles) return kShortChunkTiles;
  const bool has_many_rows = q_len * rule.group_size > kFewQueryRows;
  if (has_many_rows && num_tiles <= kManyRowsRowTiles) return kMaxChunkTiles;
  if (rule.num_kv_heads <= kFewHeads) {
    return num_tiles < kVeryLongRowTiles ? kFewHeadsChunkTiles : kLongChunkTiles;
  }
  if (rule.is_float8) return num_tiles <= kLongRowTiles ? kMaxChunkTiles : kLongChunkTiles;
  const bool is_middle = num_tiles > kMiddleRowTiles / 2 && num_tiles <= kMiddleRowTiles;
  return is_middle ? kMiddleChunkTiles : kLongChunkTiles;
}

// The tiles that a row's queries see, by a window: those from `first` on.
struct Tiles {
  int first = 0, count = 0;
};
constexpr Tiles visible_tiles(int kv_len, int q_len, int window_left) {
  const int hidden = window_left >= 0 ? kv_len - q_len - window_left : 0;
  const int first = hidden > 0 ? hidden / kTileTokens : 0;
  return {first, div_up(kv_len, kTileTokens) - first};
}

// A row with queries, for each KV head: its chunks, one where there are no keys; and how many of
// them, one after the other, are a run. The results of a run's chunks are added in their order,
// then those of the row's runs: the same whether one block adds a run's as it goes, or another does
// from what all left in memory.
struct Cut {
  int num_tiles = 0, chunk_tiles = 0, num_chunks = 1;
  int run_tiles = 0, run_chunks = 1, num_runs = 1;
  friend bool operator==(const Cut&, const Cut&) = default;
};
inline constexpr int kFewChunks = 16;  // which one block merges
inline constexpr int kManyChunksRun = 8;
inline constexpr int kWholeRowTiles = 256, kFewHeadsWholeRowTiles = 128;  // which are one run
constexpr Cut cut_of(int num_tiles, int q_len, const ChunkRule& rule) {
  Cut cut;
  if (num_tiles == 0) return cut;
  cut.num_tiles = num_tiles;
  const int count = div_up(num_tiles, most_chunk_tiles(num_tiles, q_len, rule));
  cut.chunk_tiles = div_up(num_tiles, count);
  cut.num_chunks = div_up(num_tiles, cut.chunk_tiles);
  const bool has_few_heads = rule.num_kv_heads <= kFewHeads;
  if (cut.num_chunks > kFewChunks) {
    cut.run_chunks = kManyChunksRun;
    cut.num_runs = div_up(cut.num_chunks, kManyChunksRun);
  } else if (num_tiles <= (has_few_heads ? kFewHeadsWholeRowTiles : kWholeRowTiles)) {
    cut.run_chunks = cut.num_chunks;
  } else {
    cut.run_chunks = 2;
    cut.num_runs = div_up(cut.num_chunks, 2);
  }
  const int run_tiles = cut.run_chunks * cut.chunk_tiles;
  cut.run_tiles = run_tiles < num_tiles ? run_tiles : num_tiles;
  return cut;
}

// A block takes whole runs, of rows where these have no more tiles than the batch's limit
// (decode_runs.h), of others chunks: items. No bits depend on it.
constexpr bool takes_runs(const Cut& cut, int run_limit) { return cut.run_tiles <= run_limit; }
constexpr int num_items(const Cut& cut, int run_limit) {
  return takes_runs(cut, run_limit) ? cut.num_runs : cut.num_chunks;
}

// A row with queries as the device reads it, in two arrays: worked out when its batch is planned,
// since every block would do so in front of its first item otherwise.
struct alignas(16) PlannedRow {
  std::int32_t page_begin = 0, kv_len = 0, q_begin = 0, q_len = 0;
  friend bool operator==(const PlannedRow&, const PlannedRow&) = default;
};
struct alignas(16) PlannedItems {     // for each KV head
  std::int32_t begin = 0, count = 0;  // how many are in front of the row's; how many it has
  std::int32_t num_chunks = 1;        // of the row
  std::uint8_t chunk_tiles = 0;       // of a chunk; the last one may have fewer
  std::uint8_t item_chunks = 1, run_items = 1;  // chunks of an item; items that make a run
  std::uint8_t unused = 0;
  friend bool operator==(const PlannedItems&, const PlannedItems&) = default;
};
static_assert(sizeof(PlannedRow) == 16 && sizeof(PlannedItems) == 16);
static_assert(kMaxChunkTiles <= 255 && kFewChunks <= 255 && kManyChunksRun <= 255);
constexpr PlannedItems planned_items(const Cut& cut, int run_limit, std::int32_t begin) {
  const auto run_chunks = static_cast<std::uint8_t>(cut.run_chunks);
  PlannedItems items;
  items.begin = begin;
  items.count = num_items(cut, run_limit);
  items.num_chunks = cut.num_chunks;
  items.chunk_tiles = static_cast<std::uint8_t>(cut.chunk_tiles);
  if (takes_runs(cut, run_limit)) {
    items.item_chunks = run_chunks;
  } else {
    items.run_items = run_chunks;
  }
  return items;
}

// How what the items of a row and head leave is merged, of which `run_items` make a run (1: each is
// one): in groups of so many, each by the block whose item comes last of it, and then the groups.
// All are one group where they are few or runs; where runs are pairs, these are added first.
constexpr int merge_group_size(int num_items, int run_items) {
  return num_items <= kFewChunks || run_items == 1 ? num_items : run_items;
}
constexpr bool merges_in_pairs(int num_items, int run_items) {
  return run_items == 2 && num_items > 2;
}

// Thread blocks that a multiprocessor has at once: tiles of head_dim 256 fill its memory with one.
constexpr int blocks_per_sm(int head_dim) { return head_dim == 256 ? 1 : 2; }

// The most items, for each KV head, that so many rows with so many tiles in all can have: a row has
// no more than one for each kShortChunkTiles, nor than a short row's and a longer row's together.
constexpr std::int64_t most_items(std::int64_t num_rows, std::int64_t num_tiles,
                                  const ChunkRule& rule) {
  const int most = rule.num_kv_heads <= kFewHeads ? kFewHeadsChunkTiles : kLongChunkTiles;
  const std::int64_t if_short = num_rows + num_tiles / kShortChunkTiles;
  const std::int64_t if_longer =
      num_rows * (1 + kShortRowTiles / kShortChunkTiles) + num_tiles / most;
  return if_short < if_longer ? if_short : if_longer;
}

}  // namespace seqattn::decode
