#include "attention_work.h"

#include <algorithm>

#include "ceil_div.h"

namespace seqattn {
namespace {

// A chunk has to be long enough that merging costs little beside reading it: a row's partial result
// is about 1/16 of the 16 tokens in 16 bits, keys and values, that it has to itself.
constexpr std::int64_t kMinChunkTokens = 768;
constexpr std::int64_t kChunkTokensPerRow = 16;

// Only rows of a single tile are split: longer ones bring enough tiles to keep threads busy. (A
// single query of more than kMaxTileRows heads a KV head counts as one of those.)
std::int64_t chunk_tokens(std::int64_t num_tokens, std::int64_t num_rows) {
  if (num_rows > kMaxTileRows) return std::max<std::int64_t>(num_tokens, 1);
  const std::int64_t least = std::max(kMinChunkTokens, kChunkTokensPerRow * num_rows);
  return std::max(least,
                  ceil_div(ceil_div(num_tokens, kMaxChunks), kMinChunkTokens) * kMinChunkTokens);
}

// What the tiles of some query rows, one for each head, have in common.
struct TileRows {
  std::int64_t first = 0;
  int count = 0;
  KeySet kv;
  std::int64_t chunk = 0;         // in tokens
  std::int64_t state_floats = 0;  // of one tile and chunk

  int num_chunks() const {
    return static_cast<int>(std::max<std::int64_t>(1, ceil_div(kv.size(), chunk)));
  }
};

// What at least one of these queries sees.
KeySet keys_of(const AttentionShape& shape, const AttentionRow& row, std::int64_t first,
               std::int64_t last) {
  KeySet keys = hull(visible_keys(shape, row, first), visible_keys(shape, row, last));
  if (row.tree_depths.empty()) return keys;  // those between see nothing outside
  for (std::int64_t query = first + 1; query < last; ++query) {
    keys = hull(keys, visible_keys(shape, row, query));
  }
  return keys;
}

std::vector<TileRows> cut_rows(const AttentionShape& shape, const AttentionRow& row) {
  const int group = shape.group_size();
  const std::int64_t num_rows = row.q_len * group;
  std::vector<TileRows> pieces;
  for (std::int64_t first = 0; first < num_rows; first += kMaxTileRows) {
    const std::int64_t end = std::min(first + kMaxTileRows, num_rows);
    const KeySet kv = keys_of(shape, row, first / group, (end - 1) / group);
    const auto count = static_cast<int>(end - first);
    pieces.push_back({first, count, kv, chunk_tokens(kv.size(), num_rows),
                      SoftmaxState::num_floats(count, shape.head_dim_v)});
  }
  return pieces;
}

// Two items a thread, of equal length, keep threads busy; beyond that heads stay together.
int heads_per_item(std::int64_t num_chunks, int num_heads, int num_threads) {
  if (num_threads == 1) return num_heads;
  const std::int64_t pieces = ceil_div(2 * std::int64_t{num_threads}, num_chunks);
  return static_cast<int>(ceil_div(num_heads, std::min<std::int64_t>(pieces, num_heads)));
}

void add_tiles(AttentionWork& work, const AttentionRow& row, const TileRows& rows) {
  const int num_chunks = rows.num_chunks();
  for (int head = row.kv_head_begin; head < row.kv_head_end; ++head) {
    if (num_chunks > 1) work.split_tiles.push_back(static_cast<std::int64_t>(work.tiles.size()));
    work.tiles.push_back({.row = row,
                          .kv_head = head,
                          .first_row = rows.first,
                          .num_rows = rows.count,
                          .num_chunks = num_chunks,
                          .partials = work.num_partial_floats});
    if (num_chunks > 1) work.num_partial_floats += num_chunks * rows.state_floats;
  }
}

void add_items(AttentionWork& work, std::int64_t first_tile, const TileRows& rows,
               int heads_at_once) {
  const auto end_tile = static_cast<std::int64_t>(work.tiles.size());
  for (int chunk = 0; chunk < rows.num_chunks(); ++chunk) {
    const KeySet kv = rows.kv.part(chunk * rows.chunk, (chunk + 1) * rows.chunk);
    for (std::int64_t tile = first_tile; tile < end_tile; tile += heads_at_once) {
      const auto count = static_cast<int>(std::min<std::int64_t>(heads_at_once, end_tile - tile));
      work.items.push_back({tile, count, chunk, kv});
      work.max_tiles = std::max(work.max_tiles, count);
      if (rows.num_chunks() > 1) continue;
      work.max_own_floats = std::max(work.max_own_floats, count * rows.state_floats);
    }
  }
}

}  // namespace

AttentionWork cut_work(const AttentionShape& shape, const std::vector<AttentionRow>& rows,
                       int num_threads) {
  std::vector<std::vector<TileRows>> pieces;
  std::int64_t num_chunks = 0;
  for (const AttentionRow& row : rows) {
    pieces.push_back(cut_rows(shape, row));
    for (const TileRows& tile_rows : pieces.back()) num_chunks += tile_rows.num_chunks();
  }
  AttentionWork work;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    const int num_heads = rows[i].kv_head_end - rows[i].kv_head_begin;
    if (num_heads == 0) continue;
    for (const TileRows& tile_rows : pieces[i]) {
      const auto first_tile = static_cast<std::int64_t>(work.tiles.size());
      add_tiles(work, rows[i], tile_rows);
      const bool few = tile_rows.count <= kFewRows;
      add_items(work, first_tile, tile_rows,
                few ? heads_per_item(num_chunks, num_heads, num_threads) : 1);
    }
  }
  return work;
}

}  // namespace seqattn
