#pragma once

#include <cstdint>

// How a row's keys are cut into items of work: the same on the host, which counts them, and on the
// device, which finds its own. Pure functions of the row's lengths, so that its bits depend on
// nothing else. No CUDA in here.
namespace seqattn::decode {

inline constexpr int kTileTokens = 16;  // one box of the bulk copy engine; pages hold a multiple
inline constexpr int kMaxItemTiles = 128;
// Query rows (tokens times group) of a row and KV head that kernels are compiled for.
inline constexpr int kFewQueryRows = 8, kMaxQueryRows = 16;
inline constexpr int kMaxKeys = 1 << 30;  // of a row; positions and windows then fit an int

constexpr int div_up(int a, int b) { return (a + b - 1) / b; }

// What the cutting depends on besides a row's lengths.
struct ItemRule {
  int num_kv_heads = 1, group_size = 1;
  bool is_float8 = false;
};

// How many tiles of keys an item takes, of as many as the row's queries see: of nothing that
// belongs to the batch, so that its bits do not depend on that. Rows are cut evenly. Short rows,
// those of few heads, and those so long that few of them fit a device, are cut finer, since few of
// them have to fill it; an item's end costs 1 us, in which twice as many keys of 8 bits are read,
// and twice as much memory for many query rows.
inline constexpr int kShortRowTiles = 64, kShortItemTiles = 8;
inline constexpr int kMiddleRowTiles = 256, kMiddleItemTiles = 40;
inline constexpr int kFewHeads = 2, kFewHeadsItemTiles = 32;
inline constexpr int kLongRowTiles = 1024, kLongItemTiles = 64;
inline constexpr int kVeryLongRowTiles = 4096;  // more pieces of few heads would only add merging
inline constexpr int kManyRowsRowTiles = 512;
constexpr int most_item_tiles(int num_tiles, int q_len, const ItemRule& rule) {
  if (num_tiles <= kShortRowTiles) return kShortItemTiles;
  const bool has_many_rows = q_len * rule.group_size > kFewQueryRows;
  if (has_many_rows && num_tiles <= kManyRowsRowTiles) return kMaxItemTiles;
  if (rule.num_kv_heads <= kFewHeads) {
    return num_tiles < kVeryLongRowTiles ? kFewHeadsItemTiles : kLongItemTiles;
  }
  if (rule.is_float8) return num_tiles <= kLongRowTiles ? kMaxItemTiles : kLongItemTiles;
  const bool is_middle = num_tiles > kMiddleRowTiles / 2 && num_tiles <= kMiddleRowTiles;
  return is_middle ? kMiddleItemTiles : kLongItemTiles;
}
constexpr int item_tiles(int num_tiles, int q_len, const ItemRule& rule) {
  const int most = most_item_tiles(num_tiles, q_len, rule);
  const int count = num_tiles == 0 ? 1 : div_up(num_tiles, most);
  return div_up(num_tiles, count);
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

// Of a row with queries, for each KV head; one where there are no keys, which writes zeros.
constexpr int num_items(int num_tiles, int q_len, const ItemRule& rule) {
  const int tiles = item_tiles(num_tiles, q_len, rule);
  return tiles == 0 ? 1 : div_up(num_tiles, tiles);
}

// The results of a row's items are merged in the order of their chunks: all at once where they are
// few; else first in groups of kMergeChunks, by several thread blocks at a time, then the groups.
inline constexpr int kMergeChunks = 8, kFewMergeChunks = 16;
struct MergeGroup {
  int first_chunk = 0, num_chunks = 0;
};
constexpr MergeGroup merge_group(int chunk, int num_chunks) {
  if (num_chunks <= kFewMergeChunks) return {0, num_chunks};
  const int first = chunk / kMergeChunks * kMergeChunks, left = num_chunks - first;
  return {first, left < kMergeChunks ? left : kMergeChunks};
}
constexpr int num_merge_groups(int num_chunks) {
  return num_chunks <= kFewMergeChunks ? 1 : div_up(num_chunks, kMergeChunks);
}

// The most items, for each KV head, that so many rows with so many tiles in all can have: a row has
// no more than one for each kShortItemTiles, nor than a short row's and a longer row's together.
constexpr std::int64_t most_items(std::int64_t num_rows, std::int64_t num_tiles,
                                  const ItemRule& rule) {
  const int most = rule.num_kv_heads <= kFewHeads ? kFewHeadsItemTiles : kLongItemTiles;
  const std::int64_t if_short = num_rows + num_tiles / kShortItemTiles;
  const std::int64_t if_longer =
      num_rows * (1 + kShortRowTiles / kShortItemTiles) + num_tiles / most;
  return if_short < if_longer ? if_short : if_longer;
}

}  // namespace seqattn::decode
