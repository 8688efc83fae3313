// The deal of FA3's tiles, which rows decode takes, and the bits of masks; without a device.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "decode/decode_items.h"
#include "random_source.h"
#include "written_schedule.h"

namespace seqattn::testing {
namespace {

// What a tile costs, in keys; the schedule balances it.
std::int64_t cost_of(const ScheduleOptions& options, const AttentionRow& row, int tile) {
  const std::int64_t rows = fa3_tile_rows(options.shape);
  const std::int64_t position = row.kv_len - row.q_len + tile * rows;
  const std::int64_t end =
      options.shape.causal ? std::min<std::int64_t>(row.kv_len, position + rows) : row.kv_len;
  return end + 2 * rows;
}

TEST(CudaFa3Deal, GivesEveryTileOfEveryHeadToOneBlockEvenly) {
  auto random = random_source(5200);
  for (int round = 0; round < 60; ++round) {
    ScheduleOptions options = options_of(std::vector{16, 28, 32}[random() % 3], 4,
                                         std::vector{64, 128, 256}[random() % 3]);
    options.shape.causal = random() % 2 == 0;
    options.has_fa3 = true;
    const int num_blocks = std::vector{1, 78, 132}[random() % 3];
    std::vector<Lengths> lengths(1 + random() % 12);
    for (Lengths& row : lengths) {
      row.q_len = 1 + static_cast<std::int64_t>(random() % 2000);
      row.kv_len = row.q_len + static_cast<std::int64_t>(random() % 9000);
    }
    lengths.push_back({2000, 5000});  // one at least that FA3 serves
    const AttentionPlan plan = plan_of(lengths, 16);
    const WrittenSchedule written(options, plan);

    std::set<std::tuple<int, int, int>> dealt, expected;
    std::vector<std::int64_t> loads;
    std::int64_t largest = 0;
    for (const auto& block : written.fa3(num_blocks, options.shape.num_qo_heads)) {
      loads.push_back(0);
      for (const Fa3Item& item : block) {
        const auto [row, tile] = item.tile;
        EXPECT_TRUE(dealt.insert({row, tile, item.head}).second) << "dealt twice";
        const std::int64_t cost =
            cost_of(options, plan.rows.at(static_cast<std::size_t>(row)), tile);
        loads.back() += cost;
        largest = std::max(largest, cost);
      }
    }
    for (std::size_t i = 0; i < plan.rows.size(); ++i) {
      if (path_of(options, plan.rows[i]) != RowPath::kFa3) continue;
      const std::int64_t tiles = ceil_div(plan.rows[i].q_len, fa3_tile_rows(options.shape));
      for (int tile = 0; tile < tiles; ++tile) {
        for (int head = 0; head < options.shape.num_qo_heads; ++head) {
          expected.insert({static_cast<int>(i), tile, head});
        }
      }
    }
    EXPECT_EQ(dealt, expected);
    const auto [least, most] = std::minmax_element(loads.begin(), loads.end());
    EXPECT_LE(*most - *least, largest) << "blocks differ by more than the costliest tile";
    const auto is_large = written.bytes(written.layout().is_large, written.layout().size.rows);
    for (std::size_t i = 0; i < plan.rows.size(); ++i) {
      const RowPath path = path_of(options, plan.rows[i]);
      EXPECT_EQ(is_large[i] != 0, path == RowPath::kLarge || path == RowPath::kFa3);
    }
    if (HasFailure()) return;
  }
}

// FA3 takes a row for its own length and the device, whatever else is in the batch; a mask or a
// short query leaves it to FA2.
TEST(CudaRowPolicy, ChoosesByTheRowAlone) {
  ScheduleOptions options = options_of(32, 8, 128);
  options.has_fa3 = true;
  const auto path = [&](std::int64_t q_len, std::int64_t kv_len, bool has_mask = false) {
    return path_of(options,
                   {.kv_len = kv_len, .q_len = q_len, .num_masked_keys = has_mask ? 1 : 0});
  };
  EXPECT_EQ(path(0, 100), RowPath::kNone);
  EXPECT_EQ(path(1, 0), RowPath::kSmall);
  EXPECT_EQ(path(1, 100000), RowPath::kSmall);
  EXPECT_EQ(path(32, 100), RowPath::kSmall);
  EXPECT_EQ(path(33, 100), RowPath::kLarge);
  EXPECT_EQ(path(4000, 4000), RowPath::kFa3);
  EXPECT_EQ(path(4000, 4000, true), RowPath::kLarge);
  options.has_fa3 = false;
  EXPECT_EQ(path(4000, 4000), RowPath::kLarge);
}

// A device with a decode kernel gives it what fits, by the queries of the row alone.
TEST(CudaRowPolicy, GivesDecodeTheRowsThatFit) {
  for (const auto& [head_dim, decode_rows] : {std::pair{128, 16}, {64, 16}, {256, 8}}) {
    for (const int num_kv_heads : {32, 8, 4, 2}) {
      ScheduleOptions options = options_of(32, num_kv_heads, head_dim);
      options.decode_rows = decode_rows;
      options.has_fa3 = true;
      const std::int64_t most = decode_rows / options.shape.group_size();
      SCOPED_TRACE(::testing::Message() << "head_dim " << head_dim << ", " << most << " queries");
      for (const std::int64_t kv_len : {std::int64_t{0}, std::int64_t{1}, std::int64_t{100000},
                                        std::int64_t{decode::kMaxKeys}}) {
        EXPECT_EQ(path_of(options, {.kv_len = kv_len, .q_len = 0}), RowPath::kNone);
        if (most > 0) {
          EXPECT_EQ(path_of(options, {.kv_len = kv_len, .q_len = most}), RowPath::kDecode)
              << kv_len;
        }
        EXPECT_EQ(path_of(options, {.kv_len = kv_len, .q_len = most + 1}), RowPath::kSmall)
            << kv_len;
      }
      if (most == 0) continue;
      EXPECT_EQ(path_of(options, {.kv_len = std::int64_t{decode::kMaxKeys} + 1, .q_len = 1}),
                RowPath::kSmall);
      EXPECT_EQ(path_of(options, {.kv_len = 100, .q_len = 1, .num_masked_keys = 1}),
                RowPath::kSmall);
      EXPECT_EQ(path_of(options, {.kv_len = 100, .q_len = 1, .window = 7}), RowPath::kSmall);
    }
  }
}

TEST(CudaMaskBits, HoldMaskWindowAndCausality) {
  auto random = random_source(5201);
  for (int round = 0; round < 60; ++round) {
    ScheduleOptions options = options_of(4, 2, 64);
    options.shape.causal = random() % 2 == 0;
    if (random() % 2 == 0) options.shape.window_left = static_cast<int>(random() % 20);
    AttentionPlan plan = plan_of({{3, 9}, {0, 4}, {1, 1}, {17, 40}, {5, 5}, {80, 90}}, 16);
    for (AttentionRow& row : plan.rows) {
      row.mask_begin = static_cast<std::int64_t>(plan.mask.size());
      // Of the last keys only, as a tree has it, or of all, as the caller's.
      row.num_masked_keys = row.kv_len - (random() % 2 == 0 ? row.kv_len / 3 : 0);
      if (random() % 2 == 0) {
        row.window = 1 + static_cast<std::int64_t>(random() % 20);
        row.num_sink_tokens = static_cast<std::int64_t>(random() % 6);
      }
      for (std::int64_t i = 0; i < row.q_len * row.num_masked_keys; ++i) {
        plan.mask.push_back(random() % 3 == 0 ? 0 : static_cast<std::uint8_t>(1 + random() % 255));
      }
    }
    const WrittenSchedule written(options, plan);
    const auto bits = written.bytes(written.layout().mask_bits, written.layout().size.mask_bytes);
    const auto begin = written.ints(written.layout().mask_indptr, written.layout().size.rows);
    for (std::size_t i = 0; i < plan.rows.size(); ++i) {
      const AttentionRow& row = plan.rows[i];
      for (std::int64_t j = 0; j < row.q_len; ++j) {
        for (std::int64_t t = 0; t < row.kv_len; ++t) {
          const std::int64_t at = j * row.kv_len + t, position = row.kv_len - row.q_len + j;
          const std::int64_t masked = t - (row.kv_len - row.num_masked_keys);
          const std::int64_t entry = row.mask_begin + j * row.num_masked_keys + masked;
          const bool visible =
              (masked < 0 || plan.mask[static_cast<std::size_t>(entry)] != 0) &&
              (row.window == 0 || t < row.num_sink_tokens || position - t < row.window) &&
              (!options.shape.causal || t <= position) &&
              (options.shape.window_left < 0 || t >= position - options.shape.window_left);
          const auto byte = bits[static_cast<std::size_t>(begin[i] + at / 8)];
          ASSERT_EQ((byte >> at % 8 & 1) != 0, visible) << "row " << i << ", " << j << ", " << t;
        }
      }
    }
  }
}

}  // namespace
}  // namespace seqattn::testing
