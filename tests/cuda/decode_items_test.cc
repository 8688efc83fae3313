// How decode cuts rows into chunks and runs, which of these a batch's blocks take, and who merges
// what they leave; without a device.
#include "decode/decode_items.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <string>
#include <vector>

#include "decode/decode_runs.h"
#include "written_schedule.h"

namespace seqattn::testing {
namespace {

using decode::ChunkRule;
using decode::Cut;

void for_each_cut(
    const std::function<void(const ChunkRule&, int tiles, int q_len, const Cut&)>& f) {
  for (const int num_kv_heads : {1, 2, 3, 8}) {
    for (const int group_size : {1, 4, 16}) {
      for (const bool is_float8 : {false, true}) {
        const ChunkRule rule{num_kv_heads, group_size, is_float8};
        for (int tiles = 1; tiles <= 20000; tiles += tiles < 700 ? 1 : 97) {
          for (const int q_len : {1, 2, 4}) {
            SCOPED_TRACE(std::to_string(tiles) + " tiles, " + std::to_string(q_len) +
                         " queries, heads " + std::to_string(num_kv_heads) + " x " +
                         std::to_string(group_size) + (is_float8 ? ", 8 bits" : ""));
            f(rule, tiles, q_len, decode::cut_of(tiles, q_len, rule));
            if (::testing::Test::HasFailure()) return;
          }
        }
      }
    }
  }
}

TEST(CudaDecodeCut, HasEveryTileInOneChunkAndEveryChunkInOneRun) {
  for_each_cut([](const ChunkRule& rule, int tiles, int q_len, const Cut& cut) {
    EXPECT_EQ(cut.num_tiles, tiles);
    EXPECT_GE(cut.num_chunks * cut.chunk_tiles, tiles) << "keys without a chunk";
    EXPECT_LT((cut.num_chunks - 1) * cut.chunk_tiles, tiles) << "an empty chunk";
    EXPECT_GE(cut.num_runs * cut.run_chunks, cut.num_chunks) << "chunks without a run";
    EXPECT_LT((cut.num_runs - 1) * cut.run_chunks, cut.num_chunks) << "an empty run";
    EXPECT_EQ(cut.run_tiles, std::min(tiles, cut.run_chunks * cut.chunk_tiles));
    // Of 16 bits and few query rows a kernel has room for so many pages of a chunk, no more.
    const bool is_large = rule.is_float8 || q_len * rule.group_size > decode::kFewQueryRows;
    EXPECT_LE(cut.chunk_tiles, is_large ? decode::kMaxChunkTiles : decode::kLongChunkTiles);
  });
}

TEST(CudaDecodeCut, OfARowWithoutKeysIsOneChunk) {
  const Cut cut = decode::cut_of(0, 1, {8, 4, false});
  EXPECT_EQ(cut.num_chunks, 1);
  EXPECT_EQ(cut.num_runs, 1);
  EXPECT_EQ(decode::num_items(cut, 0), 1);
}

// Whoever merges adds a run's results first: a group is all items, or those of one run.
TEST(CudaDecodeMerges, AreOfAllItemsOrOfOneRun) {
  for_each_cut([](const ChunkRule&, int, int, const Cut& cut) {
    for (const int run_items : {1, cut.run_chunks}) {  // items are runs, or chunks
      const int items = run_items == 1 ? cut.num_runs : cut.num_chunks;
      const int size = decode::merge_group_size(items, run_items);
      EXPECT_TRUE(size == items || size == run_items) << size << " of " << items;
      if (run_items > 1 && items > decode::kFewChunks) {
        EXPECT_EQ(size, run_items);
      }
      // One block adds chunks two by two, or all in their order: no other runs may come to it.
      if (run_items > 1 && size == items) {
        EXPECT_TRUE(run_items == 2 || run_items == items) << run_items << " of " << items;
      }
    }
  });
}

TEST(CudaDecodeItems, AreNoMoreThanACapacityAllows) {
  for_each_cut([](const ChunkRule& rule, int tiles, int, const Cut& cut) {
    EXPECT_LE(cut.num_chunks, decode::most_items(1, tiles, rule));
    int before = cut.num_chunks;
    for (int i = 0; i < decode::kNumRunLimits; ++i) {
      const int items = decode::num_items(cut, decode::run_limit(i));
      EXPECT_LE(items, before);
      before = items;
    }
  });
}

struct RunCase {
  std::string name;
  std::vector<Lengths> rows;
  int limit;  // in tiles
  int num_qo_heads = 32, num_kv_heads = 8, head_dim = 128;
  DType kv_dtype = DType::kFloat16;
};

std::vector<Lengths> rows_of(std::size_t count, std::int64_t kv_len, std::int64_t q_len = 1) {
  return std::vector<Lengths>(count, Lengths{q_len, kv_len});
}

std::vector<RunCase> run_cases() {
  std::vector<Lengths> skewed = rows_of(8, 32768), short_rows = rows_of(56, 1024);
  skewed.insert(skewed.end(), short_rows.begin(), short_rows.end());
  return {
      // Few rows fill the device by their chunks alone.
      {"1x1k", rows_of(1, 1024), 0},
      {"1x4k", rows_of(1, 4096), 0},
      {"1x32k", rows_of(1, 32768), 0},
      {"20x1k", rows_of(20, 1024), 0},
      {"8,1 1x131k", rows_of(1, 131072), 0, 8, 1},
      // As many runs as blocks.
      {"8x8k", rows_of(8, 8192), 128},
      {"8,1 64x4k", rows_of(64, 4096), 64, 8, 1},
      {"8,1 256x2k", rows_of(256, 2048), 128, 8, 1},
      // Whole rows, several for each block.
      {"64x4k", rows_of(64, 4096), 256},
      {"64x4k, q_len 4", rows_of(64, 4096, 4), 256},
      {"64x4k, 8 bits", rows_of(64, 4096), 256, 32, 8, 128, DType::kFloat8E4M3},
      {"64x4k, head_dim 256", rows_of(64, 4096), 256, 32, 8, 256},
      {"256x2k", rows_of(256, 2048), 128},
      // Runs of eight chunks.
      {"200x9k", rows_of(200, 9000), 256, 8, 2},
      {"64x32k", rows_of(64, 32768), 512},
      // The short ones whole, the long ones not: eight blocks would be late with them.
      {"8x32k+56x1k", skewed, 64},
  };
}

TEST(CudaDecodeRuns, AreTakenWhereTheyFillAllBlocksAlike) {
  for (const RunCase& c : run_cases()) {
    SCOPED_TRACE(c.name);
    ScheduleOptions options = options_of(c.num_qo_heads, c.num_kv_heads, c.head_dim);
    options.shape.kv_dtype = c.kv_dtype;
    options.decode_rows = c.head_dim == 256 ? 8 : 16;
    options.decode_blocks = 132 * decode::blocks_per_sm(c.head_dim);
    const ScheduleCounts counts = measure_schedule(options, plan_of(c.rows, 16)).counts;
    EXPECT_EQ(counts.run_limit, c.limit);
    std::int64_t items = 0;
    for (const Lengths& row : c.rows) {
      items += decode::num_items(decode_cut(options.shape, row.q_len, row.kv_len), c.limit);
    }
    EXPECT_EQ(counts.decode_items, items);
  }
}

}  // namespace
}  // namespace seqattn::testing
