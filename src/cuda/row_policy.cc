#include "row_policy.h"

#include <algorithm>
#include <bit>

#include "decode/decode_items.h"

namespace seqattn {
namespace {

// FA3 fills tiles of 128 rows of one head. Shorter queries leave it idle, and few tiles leave
// multiprocessors idle that FA2, which packs the heads of a group, would use.
constexpr std::int64_t kMinFa3Queries = 128;
constexpr std::int64_t kMinFa3Tiles = 64;

// A chunk of kLongestChunk reads as fast as memory is: a shorter row is one chunk, a longer one is
// chunks of that size, which fill a device with a few sequences. More chunks than kManyChunks would
// only add merging: those of very long rows are longer. With fewer KV heads than kFullHeads there
// are fewer blocks a chunk: chunks are shorter instead.
constexpr std::int64_t kShortestChunk = 512;
constexpr std::int64_t kLongestChunk = 2048;
constexpr std::int64_t kManyChunks = 32;
constexpr std::int64_t kFullHeads = 8;

// A power of two, as all sizes are.
std::int64_t longest_chunk(const AttentionShape& shape) {
  const auto heads =
      std::min<std::uint64_t>(static_cast<std::uint64_t>(shape.num_kv_heads), kFullHeads);
  return std::max(kShortestChunk,
                  kLongestChunk * static_cast<std::int64_t>(std::bit_floor(heads)) / kFullHeads);
}

// Chunks are made longer rather than more than so many.
std::int64_t many_chunks(const AttentionShape& shape) {
  return kManyChunks * kLongestChunk / longest_chunk(shape);
}

std::int64_t chunk_tokens(const AttentionShape& shape, std::int64_t num_keys) {
  std::int64_t size = longest_chunk(shape);
  while (size * many_chunks(shape) < num_keys) size *= 2;
  return size;
}

}  // namespace

int largest_tile_rows(const AttentionShape& shape) { return shape.head_dim == 256 ? 64 : 128; }

int small_tile(const AttentionShape& shape, std::int64_t num_query_rows) {
  if (num_query_rows > largest_tile_rows(shape)) return kNumTiles;
  int tile = 0;
  while (kTileRows[tile] < num_query_rows) ++tile;
  return tile;
}

int fa3_tile_rows(const AttentionShape& shape) { return shape.head_dim == 64 ? 192 : 128; }

RowPath path_of(const ScheduleOptions& options, const AttentionRow& row) {
  const AttentionShape& shape = options.shape;
  if (row.q_len == 0) return RowPath::kNone;
  if (!row.needs_mask() && row.kv_len <= decode::kMaxKeys &&
      row.q_len * shape.group_size() <= options.decode_rows) {
    return RowPath::kDecode;
  }
  if (row.kv_len == 0) return RowPath::kSmall;  // of no blocks: the merge writes zeros
  if (small_tile(shape, row.q_len * shape.group_size()) < kNumTiles) return RowPath::kSmall;
  const std::int64_t tiles = ceil_div(row.q_len, fa3_tile_rows(shape)) * shape.num_qo_heads;
  const bool gains = row.q_len >= kMinFa3Queries && tiles >= kMinFa3Tiles;
  return options.has_fa3 && !row.needs_mask() && gains ? RowPath::kFa3 : RowPath::kLarge;
}

Chunks chunks_of(const AttentionShape& shape, const AttentionRow& row, int tile) {
  if (row.kv_len == 0) return {};
  std::int64_t num_keys = row.kv_len;
  // A mask holds the window too (mask_bit), and the kernel then reads all keys.
  if (shape.window_left >= 0 && !row.needs_mask()) {
    num_keys = std::min<std::int64_t>(num_keys, std::int64_t{shape.window_left} + kTileRows[tile]);
  }
  const std::int64_t size = chunk_tokens(shape, num_keys);
  return {size, ceil_div(num_keys, size)};
}

std::int64_t most_chunks_of_row(const AttentionShape& shape, std::int64_t num_keys) {
  return std::min(many_chunks(shape), ceil_div(num_keys, longest_chunk(shape)));
}

// By chunk_tokens, all chunks but a row's last hold longest_chunk or more.
std::int64_t most_chunks(const AttentionShape& shape, std::int64_t num_rows,
                         std::int64_t num_keys) {
  return num_rows + num_keys / longest_chunk(shape);
}

std::int64_t mask_bytes_of(const AttentionRow& row) {
  return row.needs_mask() ? ceil_div(row.q_len * row.kv_len, 8) : 0;
}

}  // namespace seqattn
