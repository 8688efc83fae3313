// The kernel that brings kept tables up to date, against the same written out on the host: every
// entry, and by which limit decode's items are counted, for updates of all the ways they travel.
#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "decode/decode_runs.h"
#include "gpu_support.h"
#include "random_source.h"
#include "table_kernels.h"

namespace seqattn::testing {
namespace {

struct TableCase {
  std::string name;
  std::int32_t num_rows, max_rows;
  std::int32_t q_len, kv_len;  // of every row; -1: they differ
  int window_left = -1;
  decode::ChunkRule rule = {.num_kv_heads = 8, .group_size = 4};
  std::int32_t run_limit = -1;  // that the case is for; -1: any
  int most_runs = 30;           // of new page entries
};

constexpr std::int32_t kPoison = 0x7f7f7f7f;
constexpr int kNumPages = 4000, kNumBlocks = 264;

// What DeviceTables point to.
struct Tables {
  std::vector<std::int32_t> page_indices, page_begin, q_position, q_indptr, item_indptr;
  std::vector<decode::PlannedRow> planned_rows;
  std::vector<decode::PlannedItems> planned_items;
  std::int32_t num_rows = 0, num_tokens = 0, run_limit = 0;
};

class CudaTables : public ::testing::TestWithParam<TableCase> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
    const auto rows = static_cast<std::size_t>(param.max_rows);
    sizes = {ints_of<decode::PlannedRow>(rows),
             ints_of<decode::PlannedItems>(rows),
             kNumPages,
             rows,
             rows,
             rows + 1,
             rows + 1,
             3};
    std::size_t total = 0;
    for (const std::size_t size : sizes) total += size;
    check(cudaMalloc(reinterpret_cast<void**>(&memory), total * sizeof(std::int32_t)));
    check(cudaMemset(memory, 0x7f, total * sizeof(std::int32_t)));
    check(cudaDeviceSynchronize());
  }
  void TearDown() override { cudaFree(memory); }

  template <class T>
  static std::size_t ints_of(std::size_t count) {
    return count * sizeof(T) / sizeof(std::int32_t);
  }

  std::int32_t draw(std::int32_t least, std::int32_t most) {
    return std::uniform_int_distribution<std::int32_t>(least, most)(random);
  }

  // A batch; its update, and the tables behind it. Some page entries are new.
  TableUpdate draw_update(Tables& expected) {
    TableUpdate update;
    update.num_rows = param.num_rows;
    update.q_len = param.q_len;
    std::vector<std::int32_t> page_begin, kv_lens, q_lens, runs, pages;
    for (int row = 0; row < param.num_rows; ++row) {
      const std::int32_t q_len = param.q_len < 0 ? draw(0, 4) : param.q_len;
      constexpr std::int32_t kMost[] = {4, 16, 17, 300, 1024, 4096, 8200, 70'001};
      page_begin.push_back(draw(0, kNumPages - 1));
      kv_lens.push_back(param.kv_len >= 0 ? param.kv_len : draw(q_len, kMost[draw(0, 7)]));
      q_lens.push_back(q_len);
    }
    expected.page_indices.resize(kNumPages, kPoison);
    std::int32_t place = draw(0, 50);
    for (; update.num_runs < param.most_runs && place < kNumPages - 100; place += draw(100, 300)) {
      const std::int32_t count = draw(1, 70);
      runs.insert(runs.end(), {place, count, static_cast<std::int32_t>(pages.size())});
      ++update.num_runs;
      for (std::int32_t i = 0; i < count; ++i) {
        pages.push_back(draw(0, 1 << 30));
        expected.page_indices[static_cast<std::size_t>(place + i)] = pages.back();
      }
    }
    update.words = page_begin;
    update.words.insert(update.words.end(), kv_lens.begin(), kv_lens.end());
    if (param.q_len < 0) update.words.insert(update.words.end(), q_lens.begin(), q_lens.end());
    update.words.insert(update.words.end(), runs.begin(), runs.end());
    update.words.insert(update.words.end(), pages.begin(), pages.end());

    std::vector<decode::Cut> cuts;
    for (int row = 0; row < param.num_rows; ++row) {
      const auto i = static_cast<std::size_t>(row);
      const auto tiles = decode::visible_tiles(kv_lens[i], q_lens[i], param.window_left);
      cuts.push_back(q_lens[i] == 0 ? decode::Cut{.num_chunks = 0, .num_runs = 0}
                                    : decode::cut_of(tiles.count, q_lens[i], param.rule));
    }
    expected.run_limit = decode::run_limit_of(cuts, param.rule, kNumBlocks);
    expected.page_begin = page_begin;
    expected.q_position.clear();
    expected.planned_rows.clear();
    expected.planned_items.clear();
    expected.q_indptr = expected.item_indptr = {0};
    for (std::size_t i = 0; i < cuts.size(); ++i) {
      expected.q_position.push_back(kv_lens[i] - q_lens[i]);
      expected.planned_rows.push_back(
          {page_begin[i], kv_lens[i], expected.q_indptr.back(), q_lens[i]});
      expected.planned_items.push_back(
          decode::planned_items(cuts[i], expected.run_limit, expected.item_indptr.back()));
      expected.q_indptr.push_back(expected.q_indptr.back() + q_lens[i]);
      expected.item_indptr.push_back(expected.item_indptr.back() +
                                     decode::num_items(cuts[i], expected.run_limit));
    }
    const auto all = static_cast<std::size_t>(param.max_rows) + 1;
    expected.q_indptr.resize(all, expected.q_indptr.back());
    expected.item_indptr.resize(all, expected.item_indptr.back());
    expected.num_rows = param.num_rows;
    expected.num_tokens = expected.q_indptr.back();
    return update;
  }

  DeviceTables on_device() const {
    std::vector<std::int32_t*> at;
    std::int32_t* next = memory;
    for (const std::size_t size : sizes) {
      at.push_back(next);
      next += size;
    }
    return {.max_rows = param.max_rows,
            .page_indices = at[2],
            .page_begin = at[3],
            .planned_rows = reinterpret_cast<decode::PlannedRow*>(at[0]),
            .planned_items = reinterpret_cast<decode::PlannedItems*>(at[1]),
            .q_position = at[4],
            .q_indptr = at[5],
            .item_indptr = at[6],
            .num_rows = at[7],
            .num_tokens = at[7] + 1,
            .run_limit = at[7] + 2};
  }

  // Entry by entry; those of rows behind the batch's are not looked at.
  void expect_on_device(const Tables& expected) const {
    const DeviceTables tables = on_device();
    const auto read = []<class T>(const T* from, std::size_t count) {
      std::vector<T> values(count);
      check(cudaMemcpy(values.data(), from, count * sizeof(T), cudaMemcpyDeviceToHost));
      return values;
    };
    const auto rows = static_cast<std::size_t>(param.num_rows);
    EXPECT_EQ(read(tables.page_indices, kNumPages), expected.page_indices);
    EXPECT_EQ(read(tables.page_begin, rows), expected.page_begin);
    const auto planned_rows = read(tables.planned_rows, rows);
    const auto planned_items = read(tables.planned_items, rows);
    for (std::size_t i = 0; i < rows; ++i) {
      if (expected.planned_rows[i].q_len == 0) continue;
      EXPECT_TRUE(planned_rows[i] == expected.planned_rows[i]) << "row " << i;
      EXPECT_TRUE(planned_items[i] == expected.planned_items[i]) << "row " << i;
    }
    EXPECT_EQ(read(tables.q_position, rows), expected.q_position);
    EXPECT_EQ(read(tables.q_indptr, expected.q_indptr.size()), expected.q_indptr);
    EXPECT_EQ(read(tables.item_indptr, expected.item_indptr.size()), expected.item_indptr);
    EXPECT_EQ(read(tables.num_rows, 3),
              (std::vector{expected.num_rows, expected.num_tokens, expected.run_limit}));
  }

  const TableCase param = GetParam();
  std::mt19937_64 random = random_source(6100);
  std::vector<std::size_t> sizes;  // of the arrays in memory, one behind the other
  std::int32_t* memory = nullptr;
};

TEST_P(CudaTables, AreThoseOfTheHost) {
  Staging staging(/*wants_device=*/true);
  const OwnStream stream;
  Tables expected;
  for (int batch = 0; batch < 3; ++batch) {
    SCOPED_TRACE("batch " + std::to_string(batch));
    const TableUpdate update = draw_update(expected);
    launch_update_tables(on_device(), update, param.window_left, param.rule, kNumBlocks, staging,
                         /*overlaps=*/is_hopper(), stream.handle());
    stream.wait();
    expect_on_device(expected);
    if (param.run_limit >= 0) {
      EXPECT_EQ(expected.run_limit, param.run_limit);
    }
  }
}

const std::vector<TableCase> kCases = {
    {"None", 0, 16, 1, -1},
    {"One", 1, 1, 1, -1},
    {"Some", 100, 256, -1, -1},
    {"AsManyAsFewThreads", 256, 256, 1, -1, -1, {8, 4, false}, -1, 3},
    {"OneMore", 257, 257, 1, -1, -1, {8, 4, false}, -1, 3},
    {"AllWarpsOfFewThreads", 230, 256, -1, -1, -1, {8, 4, false}, -1, 2},
    {"WithManyNewPages", 256, 256, 1, -1},
    {"FewOfManyThatFit", 30, 5000, 1, -1},
    {"AlikeThatTakeRuns", 128, 128, 1, 4096, -1, {8, 4, false}, 256},
    {"AlikeThatTakeNone", 1, 1, 1, 32'768, -1, {8, 4, false}, 0},
    {"WithoutKeys", 400, 400, 1, 0},
    {"Window", 200, 200, -1, -1, 100},
    {"Float8", 200, 200, 1, -1, -1, {8, 4, true}},
    {"FewHeads", 200, 200, 1, -1, -1, {1, 8, false}},
    {"ManyQueryRows", 200, 200, -1, 8192, -1, {8, 4, false}},
    {"Thousand", 1000, 1024, 1, -1},
    {"MoreThanThousand", 1025, 1025, -1, -1},
    {"Thousands", 3000, 3000, 1, -1},
    {"TooManyForParameters", 5000, 6000, 1, -1},
};
INSTANTIATE_TEST_SUITE_P(, CudaTables, ::testing::ValuesIn(kCases),
                         [](const auto& of) { return of.param.name; });

}  // namespace
}  // namespace seqattn::testing
