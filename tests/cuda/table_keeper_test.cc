// Page tables that are kept: whatever a batch is, an array that all updates were applied to holds
// the pages of its rows, and the rows' regions are apart.
#include "table_keeper.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

#include "random_source.h"

namespace seqattn::testing {
namespace {

struct Table {
  std::uint64_t version = 0;
  std::vector<PageId> pages;
};

void add(SequenceBatch& batch, const Table& table, std::int64_t q_len) {
  batch.rows.push_back({.pages = table.pages,
                        .table_version = table.version,
                        .kv_len = 16 * static_cast<std::int64_t>(table.pages.size()),
                        .q_len = q_len});
  batch.totals.add(batch.rows.back(), batch.rows.size() == 1);
}

SequenceBatch rows_of(const std::vector<const Table*>& tables, std::int64_t q_len = 1) {
  SequenceBatch batch;
  for (const Table* table : tables) add(batch, *table, q_len);
  return batch;
}

// A device's side of it.
class Device {
 public:
  explicit Device(std::int64_t room) { keeper_.forget(room), array_.assign(room, -1); }
  // Returns how many entries the update sent.
  std::int64_t apply(const SequenceBatch& batch) {
    const std::vector<SequenceRow>& rows = batch.rows;
    const TableUpdate& update = keeper_.update(batch);
    const auto num_rows = static_cast<std::size_t>(update.num_rows);
    EXPECT_EQ(num_rows, rows.size());
    const std::int32_t* const runs = update.words.data() + (update.q_len < 0 ? 3 : 2) * num_rows;
    const std::int32_t* const pages = runs + 3 * update.num_runs;
    std::int64_t sent = 0;
    for (int run = 0; run < update.num_runs; ++run) {
      const std::int32_t place = runs[3 * run], count = runs[3 * run + 1];
      EXPECT_LE(place + count, static_cast<std::int64_t>(array_.size()));
      std::copy_n(pages + runs[3 * run + 2], count, array_.begin() + place);
      sent += count;
    }
    EXPECT_EQ(pages + sent, update.words.data() + update.words.size());
    std::map<std::int32_t, std::uint64_t> owners;
    for (std::size_t i = 0; i < num_rows; ++i) {
      const std::int32_t begin = update.words[i];
      EXPECT_EQ(update.words[num_rows + i], rows[i].kv_len);
      EXPECT_EQ(update.q_len < 0 ? update.words[2 * num_rows + i] : update.q_len, rows[i].q_len);
      EXPECT_TRUE(std::equal(rows[i].pages.begin(), rows[i].pages.end(), array_.begin() + begin));
      for (std::size_t k = 0; k < rows[i].pages.size(); ++k) {
        const auto [owner, is_new] =
            owners.try_emplace(begin + static_cast<std::int32_t>(k), rows[i].table_version);
        EXPECT_EQ(owner->second, rows[i].table_version) << "regions meet";
      }
    }
    return sent;
  }

 private:
  TableKeeper keeper_;
  std::vector<PageId> array_;
};

TEST(TableKeeper, SendsWhatIsNew) {
  Device device(TableKeeper::room_for(3, 60));
  Table a{1, {4, 5, 6}}, b{2, {9}}, c{3, {7, 8}};
  EXPECT_EQ(device.apply(rows_of({&a, &b})), 4);
  EXPECT_EQ(device.apply(rows_of({&a, &b})), 0);
  a.pages.push_back(10);
  EXPECT_EQ(device.apply(rows_of({&a, &b})), 1);
  EXPECT_EQ(device.apply(rows_of({&c, &b, &a})), 2);  // in another order, one more
  EXPECT_EQ(device.apply(rows_of({&b, &b})), 0);      // one of them twice
  c = {4, {8, 7}};                                    // another table
  EXPECT_EQ(device.apply(rows_of({&c, &a})), 2);
  EXPECT_EQ(device.apply({}), 0);
  EXPECT_EQ(device.apply(rows_of({&a, &c, &b})), 0);  // it was not forgotten
}

TEST(TableKeeper, ListsQueriesThatDiffer) {
  Device device(TableKeeper::room_for(3, 60));
  const Table a{1, {4, 5, 6}}, b{2, {9}};
  SequenceBatch batch = rows_of({&a}, 2);
  add(batch, b, 0);
  EXPECT_EQ(device.apply(batch), 4);
}

TEST(TableKeeper, HoldsTheTablesOfAnyHistory) {
  auto random = random_source(6300);
  for (int round = 0; round < 30; ++round) {
    constexpr std::int64_t kMostRows = 12, kMostPages = 300;
    Device device(round % 3 == 0 ? TableKeeper::least_room(kMostRows, kMostPages)
                                 : TableKeeper::room_for(kMostRows, kMostPages));
    std::uint64_t next_version = 1;
    PageId next_page = 0;
    std::vector<Table> tables;
    for (int step = 0; step < 200; ++step) {
      if (tables.size() < 20 && random() % 3 == 0) tables.push_back({next_version++, {}});
      for (Table& table : tables) {
        const auto action = random() % 20;
        if (action < 12) {
          for (auto n = random() % 3; n > 0; --n) table.pages.push_back(next_page++);
        } else if (action == 12) {
          table.pages.resize(table.pages.size() / 2);
          table.version = next_version++;
        } else if (action == 13) {
          table = {next_version++, {}};
        }
      }
      std::vector<const Table*> batch;
      std::size_t num_pages = 0;
      for (const Table& table : tables) {
        if (batch.size() == kMostRows || random() % 4 == 0) continue;
        if (num_pages + table.pages.size() > kMostPages) continue;
        batch.push_back(&table);
        num_pages += table.pages.size();
      }
      std::shuffle(batch.begin(), batch.end(), random);
      device.apply(rows_of(batch));
      ASSERT_FALSE(HasFailure()) << "round " << round << ", step " << step;
    }
  }
}

// Growing by a token a step, a batch costs its new pages and little more.
TEST(TableKeeper, CostsLittleMoreThanWhatIsNew) {
  Device device(TableKeeper::room_for(64, 64 * 64));
  std::vector<Table> tables;
  PageId next_page = 0;
  for (std::uint64_t i = 0; i < 64; ++i) tables.push_back({i + 1, {next_page++}});
  std::int64_t sent = 0, grown = 64;
  for (int step = 0; step < 1000; ++step) {
    std::vector<const Table*> batch;
    for (std::size_t i = 0; i < tables.size(); ++i) {
      if ((static_cast<std::size_t>(step) + i) % 16 == 0) {
        tables[i].pages.push_back(next_page++);
        ++grown;
      }
      batch.push_back(&tables[i]);
    }
    sent += device.apply(rows_of(batch));
  }
  EXPECT_GE(sent, grown);
  EXPECT_LE(sent, 4 * grown);
}

}  // namespace
}  // namespace seqattn::testing
