// Launches of a captured graph have a fixed size: no batch within the capacity may need more, and
// what lies behind a batch must end at once. Checked without a device.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "error_text.h"
#include "random_source.h"
#include "written_schedule.h"

namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

ScheduleOptions random_options(std::mt19937_64& random) {
  ScheduleOptions options;
  AttentionShape& shape = options.shape;
  shape.num_kv_heads = std::vector{1, 2, 3, 8, 32}[random() % 5];
  shape.num_qo_heads = shape.num_kv_heads * std::vector{1, 4, 7, 16}[random() % 4];
  shape.head_dim = shape.head_dim_v = std::vector{64, 128, 256}[random() % 3];
  shape.page_size = std::vector{1, 3, 16, 128}[random() % 4];
  shape.window_left = random() % 4 == 0 ? static_cast<int>(random() % 5000) : -1;
  options.has_fa3 = true;
  options.decode_rows = std::array{0, 8, 16}[random() % 3];
  options.decode_blocks = std::array{1, 132, 264}[random() % 3];
  return options;
}

PlanCapacity random_capacity(const AttentionShape& shape, std::mt19937_64& random) {
  const auto below = [&](std::uint64_t n) { return static_cast<std::int64_t>(random() % n); };
  const std::int64_t longest = largest_tile_rows(shape) / shape.group_size();
  PlanCapacity capacity;
  capacity.max_sequences = 1 + below(40);
  capacity.max_q_len = random() % 2 == 0 ? 0 : 1 + below(static_cast<std::uint64_t>(longest));
  capacity.max_q_tokens = 1 + below(200);
  capacity.max_pages = 1 + below(1u << random() % 14);
  return capacity;
}

// A batch that uses the capacity up in a random direction: few long rows, many short ones.
std::vector<Lengths> random_batch(const ScheduleOptions& options, std::mt19937_64& random) {
  const PlanCapacity& capacity = options.capacity;
  const std::int64_t longest = capacity.max_q_len > 0
                                   ? capacity.max_q_len
                                   : largest_tile_rows(options.shape) / options.shape.group_size();
  std::int64_t pages = capacity.max_pages, tokens = capacity.max_q_tokens;
  const std::int64_t num_rows =
      random() % 2 == 0 ? capacity.max_sequences
                        : 1 + static_cast<std::int64_t>(random() % capacity.max_sequences);
  const bool greedy = random() % 2 == 0, even = random() % 2 == 0;
  std::vector<Lengths> lengths;
  for (std::int64_t i = 0; i < num_rows; ++i) {
    Lengths row;
    const std::int64_t share = even ? pages / (num_rows - i) : pages;
    std::int64_t row_pages = greedy ? share : static_cast<std::int64_t>(random() % (share + 1));
    if (i + 1 == num_rows && random() % 2 == 0) row_pages = pages;
    pages -= row_pages;
    // The last page full, or holding one token.
    row.kv_len = row_pages * options.shape.page_size;
    if (row_pages > 0 && random() % 2 == 0) row.kv_len -= options.shape.page_size - 1;
    row.q_len = std::min({longest, tokens, row.kv_len});
    if (!greedy) row.q_len = static_cast<std::int64_t>(random() % (row.q_len + 1));
    tokens -= row.q_len;
    lengths.push_back(row);
  }
  return lengths;
}

void expect_fits(const ScheduleCounts& counts, const ScheduleCounts& size) {
  EXPECT_LE(counts.rows, size.rows);
  EXPECT_LE(counts.pages, size.pages);
  EXPECT_LE(counts.small_tokens, size.small_tokens);
  EXPECT_LE(counts.partials, size.partials);
  EXPECT_LE(counts.decode_items, size.decode_items);
  for (int tile = 0; tile < kNumTiles; ++tile) {
    EXPECT_LE(counts.small_blocks[false][tile], size.small_blocks[false][tile]) << "tile " << tile;
  }
  EXPECT_EQ(counts.large_tiles(), 0);
}

TEST(CudaCapacity, HoldsEveryBatchWithinIt) {
  auto random = random_source(5100);
  for (int round = 0; round < 3000; ++round) {
    ScheduleOptions options = random_options(random);
    options.capacity = random_capacity(options.shape, random);
    const auto lengths = random_batch(options, random);
    const AttentionPlan plan = plan_of(lengths, options.shape.page_size);
    ASSERT_LE(static_cast<std::int64_t>(plan.page_indices.size()), options.capacity.max_pages);
    const WrittenSchedule written(options, plan);
    std::string text = "round " + std::to_string(round) + ", rows";
    for (const Lengths& row : lengths) {
      text += " (" + std::to_string(row.q_len) + ", " + std::to_string(row.kv_len) + ")";
    }
    SCOPED_TRACE(text);
    expect_fits(written.schedule().counts, written.layout().size);
    EXPECT_TRUE(written.margin_is_untouched());
    if (HasFailure()) return;
  }
}

// Room for partial results is bounded by the queries that there may be, not by the longest row's.
TEST(CudaCapacity, TakesNoMoreRoomForPartialsThanQueriesHave) {
  ScheduleOptions options = options_of(32, 32, 128);
  options.capacity = {.max_sequences = 256, .max_q_tokens = 256, .max_pages = 1 << 16};
  EXPECT_LE(measure_schedule(options, {}).layout.size.partials, 256 * 32);
}

// So that a graph's pointers stay good.
TEST(CudaCapacity, GivesEveryBatchTheSameLayout) {
  auto random = random_source(5101);
  for (int round = 0; round < 200; ++round) {
    ScheduleOptions options = random_options(random);
    options.capacity = random_capacity(options.shape, random);
    const WrittenSchedule empty(options, {});
    const AttentionPlan plan = plan_of(random_batch(options, random), options.shape.page_size);
    const WrittenSchedule full(options, plan);
    EXPECT_EQ(empty.layout().bytes, full.layout().bytes);
    EXPECT_EQ(empty.layout().page_indices, full.layout().page_indices);
    EXPECT_EQ(empty.layout().merge_begin, full.layout().merge_begin);
    for (int tile = 0; tile < kNumTiles; ++tile) {
      EXPECT_EQ(empty.layout().small[false][tile].row, full.layout().small[false][tile].row);
      EXPECT_EQ(empty.layout().size.small_blocks[false][tile],
                full.layout().size.small_blocks[false][tile]);
    }
    EXPECT_LE(full.schedule().used_bytes(), full.layout().bytes);
  }
}

TEST(CudaCapacity, PadsBlocksAndRows) {
  ScheduleOptions options = options_of(8, 8, 128);
  options.capacity = {.max_sequences = 9, .max_q_tokens = 30, .max_pages = 700};
  const AttentionPlan plan = plan_of({{1, 3000}, {4, 9}, {0, 33}}, 16);
  const WrittenSchedule written(options, plan);
  const ScheduleLayout& layout = written.layout();
  const std::int64_t pages = static_cast<std::int64_t>(plan.page_indices.size());
  for (std::int64_t i = 3; i <= 9; ++i) {
    EXPECT_EQ(written.ints(layout.page_indptr, i + 1).back(), pages) << "row " << i;
    EXPECT_EQ(written.ints(layout.q_indptr, i + 1).back(), 5) << "row " << i;
  }
  for (int tile = 0; tile < kNumTiles; ++tile) {
    const std::int64_t used = written.schedule().counts.small_blocks[false][tile];
    const auto valid =
        written.bytes(layout.small[false][tile].is_valid, layout.size.small_blocks[false][tile]);
    EXPECT_TRUE(std::all_of(valid.begin(), valid.begin() + used, [](int v) { return v == 1; }));
    EXPECT_TRUE(std::all_of(valid.begin() + used, valid.end(), [](int v) { return v == 0; }));
  }
  EXPECT_EQ(written.ints(layout.totals, kNumTotals)[kTotalTokens], 5);
  EXPECT_EQ(written.ints(layout.totals, kNumTotals)[kTotalSmallTokens], 5);
}

TEST(CudaCapacity, RefusesWhatAReplayCannotFollow) {
  ScheduleOptions options = options_of(8, 2, 128);
  options.capacity = {.max_sequences = 4, .max_q_tokens = 99, .max_pages = 99};
  const AttentionPlan fits = plan_of({{32, 40}, {32, 40}}, 16);
  EXPECT_NO_THROW(measure_schedule(options, fits));
  EXPECT_THAT(error_of<UnsupportedError>([&] {
                measure_schedule(options, plan_of({{1, 9}, {33, 40}}, 16));
              }),
              AllOf(HasSubstr("row 1"), HasSubstr("33 queries"), HasSubstr("up to 32")));
  AttentionPlan masked = fits;
  masked.mask.resize(2 * 32 * 40, 1);
  for (AttentionRow& row : masked.rows) row.num_masked_keys = row.kv_len;
  EXPECT_THAT(error_of<UnsupportedError>([&] { measure_schedule(options, masked); }),
              HasSubstr("mask"));
  AttentionPlan windowed = fits;
  windowed.rows[1].window = 8;
  EXPECT_THAT(error_of<UnsupportedError>([&] { measure_schedule(options, windowed); }),
              HasSubstr("window"));
  AttentionPlan with_tree = fits;  // as core plans one: the mask covers the drafts
  const std::vector<std::int64_t> depths{1, 2, 2};
  with_tree.mask.resize(32 * depths.size(), 1);
  with_tree.rows[1].tree_depths = depths;
  with_tree.rows[1].num_masked_keys = std::ssize(depths);
  EXPECT_THAT(error_of<UnsupportedError>([&] { measure_schedule(options, with_tree); }),
              HasSubstr("tree"));
}

// A capacity of decode's rows alone has no room for what another kernel would take.
TEST(CudaCapacity, RefusesARowThatIsTooLongForDecode) {
  ScheduleOptions options = options_of(8, 2, 128, 128);
  options.decode_rows = 16;
  options.capacity = {.max_sequences = 2, .max_q_tokens = 2, .max_q_len = 1, .max_pages = 1 << 24};
  AttentionPlan plan = plan_of({{1, 9}, {1, 1}}, 128);
  plan.rows[1].kv_len = decode::kMaxKeys;
  EXPECT_NO_THROW(measure_schedule(options, plan));
  ++plan.rows[1].kv_len;
  EXPECT_THAT(error_of<UnsupportedError>([&] { measure_schedule(options, plan); }),
              AllOf(HasSubstr("row 1"), HasSubstr("1073741825 keys"), HasSubstr("1073741824")));
  plan.rows[1].q_len = 0;  // which no kernel takes
  EXPECT_NO_THROW(measure_schedule(options, plan));
  plan.rows[1].q_len = 1;
  options.capacity.max_q_len = 9;  // 36 query rows: another kernel's too
  EXPECT_NO_THROW(measure_schedule(options, plan));
}

// As plan() has them: 2^32 tokens, of the capacity where there is one.
TEST(CudaSchedule, KeepsTablesOfWhat32BitsCount) {
  ScheduleOptions options = options_of(8, 2, 128, 16);
  EXPECT_TRUE(kept_tables_fit(options, 4096, (1 << 28) - 1));
  EXPECT_FALSE(kept_tables_fit(options, 4096, 1 << 28));
  options.capacity = {.max_sequences = 2, .max_q_tokens = 2, .max_pages = 1 << 28};
  EXPECT_FALSE(kept_tables_fit(options, 2, 3));
  options.capacity.max_pages -= 1;
  EXPECT_TRUE(kept_tables_fit(options, 2, 3));
  options = options_of(8, 2, 128, 1);
  EXPECT_FALSE(kept_tables_fit(options, 4096, std::int64_t{1} << 31));  // entries of the tables
}

TEST(CudaSchedule, RefusesWhatIndicesOf32BitsDoNotHold) {
  const ScheduleOptions options = options_of(128, 8, 256);
  AttentionPlan plan = plan_of({{1, 1}}, 16);
  plan.num_q_tokens = std::int64_t{1} << 17;  // x 2^15 elements a token: one more than fit
  EXPECT_THAT(error_of<UnsupportedError>([&] { measure_schedule(options, plan); }),
              AllOf(HasSubstr("query tokens"), HasSubstr("4294967296")));
  --plan.num_q_tokens;
  EXPECT_NO_THROW(measure_schedule(options, plan));
}

}  // namespace
}  // namespace seqattn::testing
