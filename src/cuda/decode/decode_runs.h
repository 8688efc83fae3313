#pragma once

#include <cstdint>
#include <span>

#include "decode_items.h"

// Of which rows of a batch thread blocks take whole runs of chunks (decode_items.h). A run leaves
// one result, or none where it is all of its row, in place of one for each chunk, which cost more
// than anything else at a chunk's end; but it is a longer piece, and pieces have to fill all blocks
// alike. No bits depend on it. Computed where a batch is planned, on the host or on the device. No
// CUDA in here.
namespace seqattn::decode {

// Runs of up to so many tiles may be taken; 0: none are.
inline constexpr int kNumRunLimits = 5;
constexpr int run_limit(int index) { return index == 0 ? 0 : 32 << index; }

// Of a batch's rows, for each KV head, by one of the limits: their items, how many of these leave
// results, and how many tiles the longest has.
struct BatchItems {
  std::int32_t items = 0, results = 0, longest = 0;

  constexpr void add(const Cut& cut, int limit) {
    const bool is_run = takes_runs(cut, limit);
    const int count = num_items(cut, limit);
    const int tiles = is_run ? cut.run_tiles : cut.chunk_tiles;
    items += count;
    results += count > 1 ? count : 0;
    if (tiles > longest) longest = tiles;
  }
};

// When `num_blocks` blocks, each of which takes an item whenever it has none, should be through
// with a batch of so many tiles for each KV head: in tiles that a block reads while all do, times
// num_blocks. No sooner than with the longest item; and about when all are taken in rounds and are
// as long as that, or, where they differ, when all tiles are read and the last items end: half of
// one is left when no more are to be taken, and blocks read faster as others are through. What an
// item leaves in memory costs a block kResultTiles, of 8 bits twice as many.
inline constexpr int kResultTiles = 3;
constexpr std::int64_t end_of(const BatchItems& batch, std::int32_t num_tiles,
                              const ChunkRule& rule, int num_blocks) {
  const std::int64_t longest = std::int64_t{batch.longest} * num_blocks;
  const std::int64_t items = std::int64_t{batch.items} * rule.num_kv_heads;
  const std::int64_t in_rounds = (items + num_blocks - 1) / num_blocks * longest;
  const std::int64_t mixed = std::int64_t{num_tiles} * rule.num_kv_heads + longest / 4;
  const std::int64_t read = in_rounds < mixed ? in_rounds : mixed;
  const int result_tiles = rule.is_float8 ? 2 * kResultTiles : kResultTiles;
  return (read < longest ? longest : read) +
         std::int64_t{batch.results} * rule.num_kv_heads * result_tiles;
}

// The index of the limit with which the batch should end first; of equal ones the lowest.
constexpr int best_run_limit(const std::int64_t (&ends)[kNumRunLimits]) {
  int best = 0;
  for (int i = 1; i < kNumRunLimits; ++i) {
    if (ends[i] < ends[best]) best = i;
  }
  return best;
}

// The limit of a batch whose rows are cut like that, on the host.
constexpr int run_limit_of(std::span<const Cut> cuts, const ChunkRule& rule, int num_blocks) {
  std::int32_t num_tiles = 0;
  for (const Cut& cut : cuts) num_tiles += cut.num_tiles;
  std::int64_t ends[kNumRunLimits] = {};
  for (int i = 0; i < kNumRunLimits; ++i) {
    BatchItems batch;
    for (const Cut& cut : cuts) batch.add(cut, run_limit(i));
    ends[i] = end_of(batch, num_tiles, rule, num_blocks);
  }
  return run_limit(best_run_limit(ends));
}

}  // namespace seqattn::decode
