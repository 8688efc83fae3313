#pragma once

#include <array>
#include <cstdint>

#include "attention_plan.h"
#include "ceil_div.h"
#include "seqattn/batch_attention.h"

// Which kernel, tile and split serve a row of a batch: one place, and a pure function of the row's
// own lengths and mask, of the shape and of what the device has, so that a row's output does not
// depend on the rest of the batch.
namespace seqattn {

inline constexpr int kNumTiles = 3;
inline constexpr std::array<int, kNumTiles> kTileRows = {16, 64, 128};

struct ScheduleOptions {
  AttentionShape shape;
  bool has_fa3 = false;   // on this device, in this build, for this shape
  int decode_rows = 0;    // query rows that decode takes there; 0: there is none
  int decode_blocks = 1;  // thread blocks of it that the device runs at once
  PlanCapacity capacity;  // where there is one: sizes are those of the largest batch
  bool has_decode() const noexcept { return decode_rows > 0; }
  bool fixed_size() const noexcept { return static_cast<bool>(capacity); }
};

enum class RowPath {
  kNone,  // no queries
  // Our own kernel, where the device has it: it takes so many query rows, and there is no mask. It
  // splits keys and merges them by itself, and writes outputs in place.
  kDecode,
  // The query rows (tokens times group) fit one FA2 tile: one thread block for each KV head and
  // chunk of keys. Blocks write float32 partial results, which are merged in the order of the
  // chunks; one chunk, or none, too. Where all rows of a batch are of one chunk and nothing but
  // the output is asked for, blocks write that: the same bits.
  kSmall,
  kLarge,  // FA2 with as many tiles as it takes, keys not split, output written in place
  kFa3,    // the same by FA3, where the device has it and the row is long enough to gain by it
};

RowPath path_of(const ScheduleOptions& options, const AttentionRow& row);

// Whether kernels of the path take pages of 16 bits only.
constexpr bool reads_wide_pages(RowPath path) {
  return path != RowPath::kNone && path != RowPath::kDecode;
}

// Query rows of the largest FA2 tile: 64 for head_dim 256, else 128.
int largest_tile_rows(const AttentionShape& shape);
// Index of the tile that a row of so many query rows takes; kNumTiles for one that is not small.
int small_tile(const AttentionShape& shape, std::int64_t num_query_rows);
// Queries of an FA3 tile.
int fa3_tile_rows(const AttentionShape& shape);

// The chunks of a small row's keys. The kernel computes `count` itself, from `size` and the keys
// that a tile sees.
struct Chunks {
  std::int64_t size = 1;  // in tokens
  std::int64_t count = 0;
};
Chunks chunks_of(const AttentionShape& shape, const AttentionRow& row, int tile);

// Bounds the chunks of a small row with so many keys.
std::int64_t most_chunks_of_row(const AttentionShape& shape, std::int64_t num_keys);

// Bounds the chunks of so many small rows with so many keys in all.
std::int64_t most_chunks(const AttentionShape& shape, std::int64_t num_rows, std::int64_t num_keys);

// Bytes of a row's mask with a bit for each (query, key); 0 for a row without one.
std::int64_t mask_bytes_of(const AttentionRow& row);

}  // namespace seqattn
