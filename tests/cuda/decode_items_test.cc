// How decode cuts rows into chunks and runs, which of these a batch's blocks take, and who merges
// what they leave; without a device.
#include "decode/decode_items.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "decode/decode_runs.h"
#include "decode_run_cases.h"
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

// Additions as they are written, of results named by their numbers.
std::string sum_of(const std::vector<std::string>& results) {
  std::string sum = "(";
  for (const std::string& result : results) sum += result + " ";
  return sum + ")";
}
std::vector<std::string> sums_of_each(const std::vector<std::string>& results, int count) {
  std::vector<std::string> sums;
  for (std::size_t i = 0; i < results.size(); i += static_cast<std::size_t>(count)) {
    const std::size_t end = std::min(i + static_cast<std::size_t>(count), results.size());
    sums.push_back(sum_of({results.begin() + static_cast<std::ptrdiff_t>(i),
                           results.begin() + static_cast<std::ptrdiff_t>(end)}));
  }
  return sums;
}

// A row's output from what its items leave, each the result of `run_items` of which make a run.
std::string merged(const std::vector<std::string>& results, int run_items) {
  const auto count = static_cast<int>(results.size());
  if (count == 1) return results[0];
  if (decode::merges_in_pairs(count, run_items)) return sum_of(sums_of_each(results, 2));
  const std::vector<std::string> groups =
      sums_of_each(results, decode::merge_group_size(count, run_items));
  return groups.size() == 1 ? groups[0] : sum_of(groups);
}

TEST(CudaDecodeMerges, AddInTheSameOrderWhetherItemsAreRunsOrChunks) {
  for_each_cut([](const ChunkRule&, int, int, const Cut& cut) {
    if (cut.num_chunks == 1) return;
    if (cut.num_chunks > 200 && cut.num_chunks % 64 > 1) return;  // it takes time
    std::vector<std::string> chunks;
    for (int i = 0; i < cut.num_chunks; ++i) chunks.push_back(std::to_string(i));
    EXPECT_EQ(merged(sums_of_each(chunks, cut.run_chunks), 1), merged(chunks, cut.run_chunks));
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

void expect_run_limit(const RunCase& c) {
  SCOPED_TRACE(c.name);
  ScheduleOptions options = options_of(c.num_qo_heads, c.num_kv_heads, c.head_dim);
  options.shape.kv_dtype = c.float8_scaling ? DType::kFloat8E4M3 : DType::kFloat16;
  options.shape.window_left = c.window_left;
  options.decode_rows = c.head_dim == 256 ? 8 : 16;
  options.decode_blocks = 132 * decode::blocks_per_sm(c.head_dim);
  std::vector<Lengths> rows;
  for (const auto& [kv_len, count] : c.rows) {
    rows.insert(rows.end(), static_cast<std::size_t>(count), Lengths{c.q_len, kv_len});
  }
  const ScheduleCounts counts = measure_schedule(options, plan_of(rows, 16)).counts;
  std::int64_t items = 0;
  for (const Lengths& row : rows) {
    items += decode::num_items(decode_cut(options.shape, row.q_len, row.kv_len), c.run_limit);
  }
  EXPECT_EQ(counts.run_limit, c.run_limit);
  EXPECT_EQ(counts.decode_items, items);
}

TEST(CudaDecodeRunLimit, TakesRunsOfLargeBatches) {
  for (const RunCase& c : run_cases()) expect_run_limit(c);
  for (const RunCase& c : ragged_cases()) expect_run_limit(c);
}

TEST(CudaDecodeRunLimit, TakesAsManyRunsAsBlocksWhereThatIsOneRound) {
  const RunCase cases[] = {
      {.name = "8x8k", .rows = {{8192, 8}}, .run_limit = 128},
      {.name = "64x4k",
       .rows = {{4096, 64}},
       .run_limit = 64,
       .num_qo_heads = 8,
       .num_kv_heads = 1},
      {.name = "256x2k",
       .rows = {{2048, 256}},
       .run_limit = 128,
       .num_qo_heads = 8,
       .num_kv_heads = 1},
  };
  for (const RunCase& c : cases) expect_run_limit(c);
}

TEST(CudaDecodeRunLimit, LeavesFewRowsInChunks) {
  for (const std::int64_t kv_len : {1, 128, 1024, 4096, 32768, 131072}) {
    for (const int num_kv_heads : {1, 2, 8}) {
      for (const auto float8_scaling :
           {std::optional<KVScaling>(), std::optional(KVScaling::kFixed)}) {
        expect_run_limit({.name = std::to_string(kv_len) + " keys",
                          .rows = {{kv_len, 1}},
                          .run_limit = 0,
                          .num_qo_heads = 8,
                          .num_kv_heads = num_kv_heads,
                          .float8_scaling = float8_scaling});
      }
    }
  }
}

}  // namespace
}  // namespace seqattn::testing
