#include "attention_work.h"

#include <algorithm>

namespace seqattn {
namespace {

// A chunk has to be long enough that merging costs little beside reading it, and a tile's partial
// results together stay below 1/16 of the keys and values that it reads.
constexpr std::int64_t kMinChunkTokens = 768;
constexpr std::int64_t kChunkTokensPerRow = 16;

constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Only rows of a single tile are split: longer ones bring enough tiles to keep threads busy.
std::int64_t chunk_tokens(std::int64_t num_tokens, std::int64_t num_rows) {
  if (num_rows > kMaxTileRows) return std::max<std::int64_t>(num_tokens, 1);
  const std::int64_t least = std::max(kMinChunkTokens, kChunkTokensPerRow * num_rows);
  return std::max(least,
                  ceil_div(ceil_div(num_tokens, kMaxChunks), kMinChunkTokens) * kMinChunkTokens);
}

KVRange tile_keys(const AttentionShape& shape, const QueryTile& tile) {
  const int group = shape.group_size();
  const KVRange first = visible_keys(shape, tile.row, tile.first_row / group);
  const KVRange last = visible_keys(shape, tile.row, (tile.first_row + tile.num_rows - 1) / group);
  return {first.begin, std::max(first.begin, last.end)};
}

void add_items(AttentionWork& work, std::int64_t tile_index, KVRange kv, std::int64_t chunk) {
  QueryTile& tile = work.tiles[tile_index];
  tile.first_item = static_cast<std::int64_t>(work.items.size());
  tile.num_items = static_cast<int>(std::max<std::int64_t>(1, ceil_div(kv.end - kv.begin, chunk)));
  const bool split = tile.num_items > 1;
  for (int i = 0; i < tile.num_items; ++i) {
    const std::int64_t begin = kv.begin + i * chunk;
    work.items.push_back({.tile = tile_index,
                          .kv = {begin, std::min(begin + chunk, kv.end)},
                          .partial = split ? work.num_partials++ : -1});
  }
  work.max_rows = std::max(work.max_rows, tile.num_rows);
  if (split) {
    work.split_tiles.push_back(tile_index);
    work.max_partial_rows = std::max(work.max_partial_rows, tile.num_rows);
  }
}

}  // namespace

KVRange visible_keys(const AttentionShape& shape, const AttentionRow& row, std::int64_t token) {
  const std::int64_t position = row.kv_len - row.q_len + token;
  const std::int64_t begin =
      shape.window_left < 0 ? 0 : std::max<std::int64_t>(0, position - shape.window_left);
  const std::int64_t end =
      shape.causal ? std::clamp<std::int64_t>(position + 1, 0, row.kv_len) : row.kv_len;
  return {std::min(begin, row.kv_len), end};
}

AttentionWork cut_work(const AttentionShape& shape, const std::vector<AttentionRow>& rows) {
  AttentionWork work;
  for (const AttentionRow& row : rows) {
    const std::int64_t num_rows = row.q_len * shape.group_size();
    // Heads of one stretch of tokens follow one another, since they lie in the same pages.
    for (std::int64_t first = 0; first < num_rows; first += kMaxTileRows) {
      for (int head = row.kv_head_begin; head < row.kv_head_end; ++head) {
        QueryTile tile{.row = row, .kv_head = head, .first_row = first};
        tile.num_rows = static_cast<int>(std::min<std::int64_t>(kMaxTileRows, num_rows - first));
        const KVRange kv = tile_keys(shape, tile);
        work.tiles.push_back(tile);
        add_items(work, static_cast<std::int64_t>(work.tiles.size()) - 1, kv,
                  chunk_tokens(kv.end - kv.begin, num_rows));
      }
    }
  }
  return work;
}

}  // namespace seqattn
