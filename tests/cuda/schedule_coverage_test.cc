// What the schedule of the CUDA backend promises its kernels, checked without a device: the blocks
// of a batch cover every query of every row, and every key that it may see, exactly once.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <limits>
#include <map>
#include <random>
#include <string>
#include <vector>

#include "decode/decode_items.h"
#include "random_source.h"
#include "written_schedule.h"

namespace seqattn::testing {
namespace {

ScheduleOptions random_options(std::mt19937_64& random) {
  ScheduleOptions options;
  options.shape.num_kv_heads = std::vector{1, 2, 4, 8}[random() % 4];
  options.shape.num_qo_heads =
      options.shape.num_kv_heads * std::vector{1, 2, 4, 5, 7, 16, 71}[random() % 7];
  options.shape.head_dim = options.shape.head_dim_v = std::vector{64, 128, 256}[random() % 3];
  options.shape.page_size = std::vector{1, 5, 16, 64}[random() % 4];
  options.shape.causal = random() % 3 != 0;
  constexpr int kMaxInt = std::numeric_limits<int>::max();
  options.shape.window_left = random() % 3 != 0   ? -1
                              : random() % 4 == 0 ? kMaxInt
                                                  : static_cast<int>(random() % 3000);
  options.has_fa3 = random() % 2 == 0;
  options.decode_rows = std::array{0, 8, 16}[random() % 3];
  options.decode_blocks = std::array{1, 132, 264}[random() % 3];
  return options;
}

// Decode, short queries, prefill, empty rows; no more queries than keys.
std::vector<Lengths> random_lengths(std::mt19937_64& random, std::size_t most_rows = 20) {
  std::vector<Lengths> lengths(random() % (most_rows + 1));
  for (Lengths& row : lengths) {
    row.kv_len = static_cast<std::int64_t>(random() % (1u << random() % 17));
    const std::uint64_t most = std::vector<std::uint64_t>{1, 8, 300, 3000}[random() % 4];
    row.q_len = std::min(row.kv_len, static_cast<std::int64_t>(random() % (most + 1)));
    if (random() % 20 == 0) row = {static_cast<std::int64_t>(random() % 3), 0};  // sees nothing
    row.has_mask = random() % 3 == 0 && row.q_len * row.kv_len < 100'000;        // it takes memory
  }
  return lengths;
}

// The first key that FlashInfer's kernel looks at in the first query tile of a row.
std::int64_t first_key(const AttentionShape& shape, const AttentionRow& row) {
  if (shape.window_left < 0 || row.needs_mask()) return 0;
  return std::max<std::int64_t>(0, row.kv_len - row.q_len - shape.window_left);
}

// The chunks that FlashInfer's kernel counts, from which it derives where it writes.
std::int64_t kernel_chunks(const AttentionShape& shape, const AttentionRow& row, int tile,
                           std::int64_t chunk_size) {
  const bool has_window = shape.window_left >= 0 && !row.needs_mask();
  const std::int64_t window = has_window ? shape.window_left : row.kv_len;
  return ceil_div(std::min(std::max<std::int64_t>(row.kv_len, 1), window + kTileRows[tile]),
                  chunk_size);
}

// Blocks by row, in the order of the list.
std::map<std::int32_t, std::vector<Block>> by_row(const std::vector<Block>& blocks) {
  std::map<std::int32_t, std::vector<Block>> rows;
  for (const Block& block : blocks) rows[block.row].push_back(block);
  return rows;
}

class Coverage {
 public:
  Coverage(const ScheduleOptions& options, const AttentionPlan& plan)
      : options_(options), plan_(plan), written_(options, plan) {}

  void check() {
    EXPECT_TRUE(written_.margin_is_untouched());
    for (const bool has_mask : {false, true}) {
      check_small(has_mask);
      check_tiles(written_.large(has_mask), has_mask, RowPath::kLarge);
    }
    check_tiles(written_.fa3_as_fa2(), false, RowPath::kFa3);
    check_merges();
    check_decode_items();
    if (written_.schedule().one_chunk_each) check_one_chunk_each();
  }

 private:
  RowPath path(const AttentionRow& row) const { return path_of(options_, row); }

  void check_small(bool has_mask) {
    std::map<std::int32_t, std::vector<Block>> of[kNumTiles];
    for (int tile = 0; tile < kNumTiles; ++tile) of[tile] = by_row(written_.small(has_mask, tile));
    for (std::size_t i = 0; i < plan_.rows.size(); ++i) {
      const AttentionRow& row = plan_.rows[i];
      std::vector<Block> blocks;
      int in_tile = 0;
      for (int tile = 0; tile < kNumTiles; ++tile) {
        const auto& found = of[tile][static_cast<std::int32_t>(i)];
        if (found.empty()) continue;
        EXPECT_TRUE(blocks.empty()) << "row " << i << " is in lists of two tiles";
        blocks = found;
        in_tile = tile;
      }
      if (path(row) != RowPath::kSmall || row.kv_len == 0 || row.needs_mask() != has_mask) {
        EXPECT_TRUE(blocks.empty()) << "row " << i;
        continue;
      }
      ASSERT_FALSE(blocks.empty()) << "row " << i;
      EXPECT_LE(row.q_len * options_.shape.group_size(), kTileRows[in_tile]);
      // Chunks in order, without holes, from the first key that is seen to the last there is.
      std::int64_t next = first_key(options_.shape, row);
      for (std::size_t c = 0; c < blocks.size(); ++c) {
        EXPECT_EQ(blocks[c].q_tile, 0);
        EXPECT_EQ(blocks[c].chunk, static_cast<std::int32_t>(c));
        EXPECT_EQ(blocks[c].chunk_size, blocks[0].chunk_size);
        next += blocks[c].chunk_size;
      }
      EXPECT_GE(next, row.kv_len) << "row " << i << ": keys without a chunk";
      EXPECT_EQ(static_cast<std::int64_t>(blocks.size()),
                kernel_chunks(options_.shape, row, in_tile, blocks[0].chunk_size));
    }
  }

  void check_tiles(const std::vector<Block>& blocks, bool has_mask, RowPath expected) {
    auto rows = by_row(blocks);
    for (std::size_t i = 0; i < plan_.rows.size(); ++i) {
      const AttentionRow& row = plan_.rows[i];
      auto tiles = rows[static_cast<std::int32_t>(i)];
      if (path(row) != expected || row.needs_mask() != has_mask) {
        EXPECT_TRUE(tiles.empty()) << "row " << i;
        continue;
      }
      std::sort(tiles.begin(), tiles.end(),
                [](const Block& a, const Block& b) { return a.q_tile < b.q_tile; });
      const std::int64_t query_rows = row.q_len * options_.shape.group_size();
      ASSERT_EQ(static_cast<std::int64_t>(tiles.size()),
                ceil_div(query_rows, largest_tile_rows(options_.shape)));
      for (std::size_t t = 0; t < tiles.size(); ++t) {
        EXPECT_EQ(tiles[t].q_tile, static_cast<std::int32_t>(t));
        EXPECT_EQ(tiles[t].chunk, 0);
      }
    }
  }

  // Every query of a small row is merged once, from partial results that nobody else writes.
  void check_merges() {
    const std::int64_t count = written_.schedule().counts.small_tokens;
    const auto token = written_.ints(written_.layout().merge_token, count);
    const auto begin = written_.ints(written_.layout().merge_begin, count);
    const auto chunks = written_.ints(written_.layout().merge_chunks, count);
    std::vector<int> written(static_cast<std::size_t>(written_.schedule().counts.partials));
    std::map<std::int64_t, std::size_t> entry_of;
    for (std::size_t i = 0; i < token.size(); ++i) {
      EXPECT_TRUE(entry_of.emplace(token[i], i).second) << "token " << token[i] << " twice";
      for (std::int32_t c = 0; c < chunks[i]; ++c) ++written.at(begin[i] + c);
    }
    EXPECT_TRUE(std::all_of(written.begin(), written.end(), [](int n) { return n == 1; }));
    const auto rows = static_cast<std::int64_t>(plan_.rows.size());
    const auto out_begin = written_.ints(written_.layout().out_begin, rows);
    for (std::size_t i = 0; i < plan_.rows.size(); ++i) {
      const AttentionRow& row = plan_.rows[i];
      for (std::int64_t j = 0; j < row.q_len; ++j) {
        const auto found = entry_of.find(row.q_begin + j);
        ASSERT_EQ(found != entry_of.end(), path(row) == RowPath::kSmall) << "row " << i;
        if (found == entry_of.end()) continue;
        // Where the kernel puts it: fa2.h, Fa2Call::split.
        EXPECT_EQ(begin[found->second], out_begin[i] + j * chunks[found->second]);
      }
      if (path(row) != RowPath::kSmall) {
        EXPECT_EQ(out_begin[i], row.q_begin) << "row " << i << " is written in place";
      }
    }
  }

  // Items are counted in front of each row, by the tiles of keys that the row sees.
  void check_decode_items() {
    const auto rows = static_cast<std::int64_t>(plan_.rows.size());
    if (written_.schedule().counts.decode_items == 0) return;
    const auto indptr = written_.ints(written_.layout().item_indptr, rows + 1);
    const auto planned_rows = written_.at<decode::PlannedRow>(written_.layout().planned_rows, rows);
    const auto planned_items =
        written_.at<decode::PlannedItems>(written_.layout().planned_items, rows);
    EXPECT_EQ(indptr[0], 0);
    EXPECT_EQ(indptr[plan_.rows.size()], written_.schedule().counts.decode_items);
    for (std::size_t i = 0; i < plan_.rows.size(); ++i) {
      const AttentionRow& row = plan_.rows[i];
      const std::int64_t items = indptr[i + 1] - indptr[i];
      if (path(row) != RowPath::kDecode) {
        EXPECT_EQ(items, 0) << "row " << i;
        continue;
      }
      EXPECT_LE(row.q_len * options_.shape.group_size(), options_.decode_rows);
      const std::int64_t first = first_key(options_.shape, row) / decode::kTileTokens;
      const std::int64_t tiles = ceil_div(row.kv_len, decode::kTileTokens) - first;
      const decode::Cut cut = decode_cut(options_.shape, row.q_len, row.kv_len);
      EXPECT_EQ(cut.num_tiles, tiles) << "row " << i;
      const int limit = written_.schedule().counts.run_limit;
      EXPECT_EQ(items, decode::num_items(cut, limit)) << "row " << i;
      SCOPED_TRACE("row " + std::to_string(i));
      const decode::PlannedRow& of_row = planned_rows[i];
      EXPECT_EQ(of_row.page_begin, row.page_begin);
      EXPECT_EQ(of_row.kv_len, row.kv_len);
      EXPECT_EQ(of_row.q_begin, row.q_begin);
      EXPECT_EQ(of_row.q_len, row.q_len);
      const decode::PlannedItems& of_items = planned_items[i];
      EXPECT_EQ(of_items.begin, indptr[i]);
      EXPECT_EQ(of_items.count, items);
      EXPECT_EQ(of_items.num_chunks, cut.num_chunks);
      EXPECT_EQ(int{of_items.chunk_tiles}, cut.chunk_tiles);
      EXPECT_EQ(int{of_items.item_chunks}, decode::takes_runs(cut, limit) ? cut.run_chunks : 1);
      EXPECT_EQ(int{of_items.run_items}, decode::takes_runs(cut, limit) ? 1 : cut.run_chunks);
    }
    EXPECT_EQ(written_.ints(written_.layout().totals, kNumTotals)[kRunLimit],
              written_.schedule().counts.run_limit);
  }

  // Partial results are then the output itself, one a token in its place.
  void check_one_chunk_each() {
    const ScheduleCounts& counts = written_.schedule().counts;
    EXPECT_EQ(counts.large_tiles(), 0);
    EXPECT_EQ(counts.partials, plan_.num_q_tokens);
    const auto token = written_.ints(written_.layout().merge_token, plan_.num_q_tokens);
    const auto begin = written_.ints(written_.layout().merge_begin, plan_.num_q_tokens);
    const auto chunks = written_.ints(written_.layout().merge_chunks, plan_.num_q_tokens);
    for (std::size_t i = 0; i < token.size(); ++i) {
      EXPECT_EQ(token[i], static_cast<std::int32_t>(i));
      EXPECT_EQ(begin[i], static_cast<std::int32_t>(i));
      EXPECT_EQ(chunks[i], 1);
    }
  }

  const ScheduleOptions& options_;
  const AttentionPlan& plan_;
  WrittenSchedule written_;
};

TEST(CudaSchedule, CoversEveryQueryAndKeyOnce) {
  auto random = random_source(5000);
  for (int round = 0; round < 300; ++round) {
    const ScheduleOptions options = random_options(random);
    const auto lengths = random_lengths(random);
    SCOPED_TRACE("round " + std::to_string(round));
    Coverage(options, plan_of(lengths, options.shape.page_size)).check();
    if (HasFailure()) return;
  }
}

// A row's chunks, tile and kernel are its own affair: the promise behind bit-identical results.
TEST(CudaSchedule, OfARowDoesNotDependOnTheBatch) {
  auto random = random_source(5001);
  for (int round = 0; round < 100; ++round) {
    const ScheduleOptions options = random_options(random);
    const auto lengths = random_lengths(random);
    const AttentionPlan plan = plan_of(lengths, options.shape.page_size);
    const WrittenSchedule together(options, plan);
    auto next_cut = together.schedule().decode_cuts.begin();
    for (std::size_t i = 0; i < lengths.size(); ++i) {
      const AttentionPlan single = plan_of({lengths[i]}, options.shape.page_size);
      const WrittenSchedule alone(options, single);
      ASSERT_EQ(path_of(options, plan.rows[i]), path_of(options, single.rows[0]));
      const auto of_row = [&](std::vector<Block> blocks) {
        std::erase_if(blocks,
                      [&](Block& block) { return block.row != static_cast<std::int32_t>(i); });
        for (Block& block : blocks) block.row = 0;
        return blocks;
      };
      for (const bool has_mask : {false, true}) {
        for (int tile = 0; tile < kNumTiles; ++tile) {
          EXPECT_EQ(of_row(together.small(has_mask, tile)), alone.small(has_mask, tile)) << i;
        }
        EXPECT_EQ(of_row(together.large(has_mask)), alone.large(has_mask)) << i;
      }
      EXPECT_EQ(of_row(together.fa3_as_fa2()), alone.fa3_as_fa2()) << "row " << i;
      if (path_of(options, plan.rows[i]) != RowPath::kDecode) continue;
      EXPECT_EQ(*next_cut++, alone.schedule().decode_cuts.at(0)) << "row " << i;
    }
    EXPECT_EQ(next_cut, together.schedule().decode_cuts.end());
    if (HasFailure()) return;
  }
}

TEST(CudaSchedule, KnowsWhenOutputsAreWrittenInPlace) {
  const ScheduleOptions options = options_of(32, 8, 128);
  const auto in_place = [&](const std::vector<Lengths>& lengths) {
    const AttentionPlan plan = plan_of(lengths, 16);
    Coverage(options, plan).check();
    return measure_schedule(options, plan).one_chunk_each;
  };
  EXPECT_TRUE(in_place({{1, 2048}, {0, 16}, {3, 16}, {0, 9000}, {0, 0}, {2, 1000}, {30, 99}}));
  EXPECT_FALSE(in_place({{1, 20}, {1, 2049}}));      // two chunks
  EXPECT_FALSE(in_place({{1, 20}, {1, 0}}));         // none: zeros are to be written
  EXPECT_FALSE(in_place({{1, 20}, {40, 90}}));       // a large row
  EXPECT_FALSE(in_place({{1, 20}, {1, 20, true}}));  // whose query may see nothing
}

TEST(CudaSchedule, HoldsTheTablesOfTheBatch) {
  const ScheduleOptions options = options_of(4, 2, 64);
  const AttentionPlan plan = plan_of({{1, 33}, {0, 16}, {3, 16}, {0, 0}, {2, 1000}}, 16);
  const WrittenSchedule written(options, plan);
  const ScheduleLayout& layout = written.layout();
  const auto ints = [&](std::size_t offset, std::int64_t count) {
    const auto span = written.ints(offset, count);
    return std::vector<std::int32_t>(span.begin(), span.end());
  };
  EXPECT_EQ(ints(layout.page_indptr, 6), (std::vector<std::int32_t>{0, 3, 4, 5, 5, 68}));
  EXPECT_EQ(ints(layout.last_page_len, 5), (std::vector<std::int32_t>{1, 16, 16, 0, 8}));
  EXPECT_EQ(ints(layout.q_indptr, 6), (std::vector<std::int32_t>{0, 1, 1, 4, 4, 6}));
  EXPECT_EQ(ints(layout.q_position, 5), (std::vector<std::int32_t>{32, 16, 13, 0, 998}));
  EXPECT_TRUE(std::ranges::equal(ints(layout.page_indices, 68), plan.page_indices));
  EXPECT_EQ(ints(layout.totals, kNumTotals), (std::vector<std::int32_t>{5, 6, 6, 0}));
}

}  // namespace
}  // namespace seqattn::testing
