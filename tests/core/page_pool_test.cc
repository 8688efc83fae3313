#include "seqattn/page_pool.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "seqattn/error.h"

namespace seqattn {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(PagePool, HandsOutPagesFirstInFirstOutFromZero) {
  PagePool pool(4);
  EXPECT_THAT(pool.allocate(3), ElementsAre(0, 1, 2));
  pool.unref({1});
  pool.unref({0, 2});
  EXPECT_THAT(pool.free_pages(), ElementsAre(3, 1, 0, 2));
  EXPECT_THAT(pool.allocate(4), ElementsAre(3, 1, 0, 2));
  pool.check_invariants();
}

TEST(PagePool, WrapsAroundManyTimes) {
  PagePool pool(5);
  for (int round = 0; round < 100; ++round) {
    const auto pages = pool.allocate(1 + round % 5);
    pool.unref(pages);
    pool.check_invariants();
  }
  EXPECT_EQ(pool.available_pages_count(), 5);
}

TEST(PagePool, AllocatedPagesHaveOneReference) {
  PagePool pool(3);
  pool.allocate(2);
  EXPECT_THAT(pool.ref_counts(), ElementsAre(1, 1, 0));
  EXPECT_EQ(pool.ref_count(0), 1);
  EXPECT_EQ(pool.ref_count(2), 0);
}

TEST(PagePool, AllocatingNothingGivesNothing) {
  PagePool pool(2);
  EXPECT_THAT(pool.allocate(0), IsEmpty());
  EXPECT_EQ(pool.available_pages_count(), 2);
}

TEST(PagePool, AllocatingTooManySaysHowManyThereAre) {
  PagePool pool(8);
  pool.allocate(1);
  try {
    pool.allocate(9);
    FAIL();
  } catch (const NoPageError& error) {
    EXPECT_EQ(error.needed(), 9);
    EXPECT_EQ(error.available(), 7);
    EXPECT_TRUE(
        std::string(error.what()).starts_with("Need 9 pages but only 7 available: release"));
  }
  EXPECT_THROW(pool.allocate(std::numeric_limits<std::int64_t>::max()), NoPageError);
  EXPECT_EQ(pool.available_pages_count(), 7);
}

TEST(PagePool, RefusesNegativeSizes) {
  EXPECT_THROW(PagePool(-1), InvalidArgumentError);
  EXPECT_THROW(PagePool(std::int64_t{1} << 31), InvalidArgumentError);
  EXPECT_THROW(PagePool(1, 0), InvalidArgumentError);
  EXPECT_THROW(PagePool(1, -16), InvalidArgumentError);
  PagePool pool(1);
  EXPECT_THROW(pool.allocate(-3), InvalidArgumentError);
}

TEST(PagePool, APoolWithoutPagesIsFull) {
  PagePool pool(0);
  EXPECT_THROW(pool.allocate(1), NoPageError);
  EXPECT_THROW(pool.ref({0}), InvalidArgumentError);
  EXPECT_THROW(pool.unref({0}), InvalidArgumentError);
  EXPECT_THAT(pool.allocate(0), IsEmpty());
  pool.unref({});
  pool.check_invariants();
}

TEST(PagePool, APageIsFreeWhenItsLastReferenceGoes) {
  PagePool pool(2);
  pool.allocate(1);
  pool.ref({0, 0});
  EXPECT_EQ(pool.ref_count(0), 3);
  pool.unref({0});
  pool.release_pages({0});
  EXPECT_EQ(pool.available_pages_count(), 1);
  pool.unref({0});
  EXPECT_THAT(pool.free_pages(), ElementsAre(1, 0));
}

TEST(PagePool, RepeatedPagesBecomeFreeWhereTheListDropsTheLastReference) {
  PagePool pool(3);
  pool.allocate(3);
  pool.ref({0});
  pool.unref({0, 1, 0, 2});
  EXPECT_THAT(pool.free_pages(), ElementsAre(1, 0, 2));
  pool.check_invariants();
}

TEST(PagePool, AFailedRefOrUnrefChangesNothing) {
  PagePool pool(4);
  pool.allocate(3);
  pool.ref({2});
  const std::vector<std::int32_t> counts(pool.ref_counts().begin(), pool.ref_counts().end());
  const auto free_pages = pool.free_pages();
  const std::vector<std::vector<PageId>> bad_to_both = {
      {0, 3}, {0, -1}, {0, 4}, {1, 2, std::numeric_limits<PageId>::min()}};
  for (const auto& pages : bad_to_both) {
    EXPECT_THROW(pool.ref(pages), InvalidArgumentError);
    EXPECT_THROW(pool.unref(pages), InvalidArgumentError);
  }
  EXPECT_THROW(pool.unref({0, 2, 1, 2, 2}), InvalidArgumentError);
  EXPECT_THROW(pool.unref({0, 0}), InvalidArgumentError);
  EXPECT_THAT(pool.ref_counts(), ::testing::ElementsAreArray(counts));
  EXPECT_EQ(pool.free_pages(), free_pages);
  pool.check_invariants();
}

TEST(PagePool, ErrorsNameThePageAndTheEntry) {
  PagePool pool(2);
  pool.allocate(1);
  const auto error_of = [](const auto& call) {
    try {
      call();
    } catch (const InvalidArgumentError& error) {
      return std::string(error.what());
    }
    return std::string("no error");
  };
  EXPECT_EQ(error_of([&] {
              pool.ref({0, 1});
            }),
            "ref: page 1 at entry 1 is free; expected a page in use");
  EXPECT_EQ(error_of([&] { pool.unref({-1}); }),
            "unref: got page -1 at entry 0; expected 0 <= page < 2");
  EXPECT_THAT(error_of([&] { pool.unref({0, 0}); }), HasSubstr("page 0 has 1 references"));
  EXPECT_THAT(error_of([&] { pool.ref_count(2); }), HasSubstr("got page 2"));
}

// The count is put there by force: 2^31 references take a while.
TEST(PagePool, RefusesMoreReferencesThanInt32Counts) {
  PagePool pool(2);
  pool.allocate(2);
  const_cast<std::int32_t&>(pool.ref_counts()[1]) = std::numeric_limits<std::int32_t>::max() - 1;
  pool.ref({0, 1});
  EXPECT_THROW(pool.ref({0, 1}), InvalidArgumentError);
  EXPECT_THAT(pool.ref_counts(), ElementsAre(2, std::numeric_limits<std::int32_t>::max()));
  pool.unref({1});
  EXPECT_THROW(pool.ref({1, 1}), InvalidArgumentError);
  EXPECT_EQ(pool.ref_count(1), std::numeric_limits<std::int32_t>::max() - 1);
}

// Corrupt pools, made by force as well.
TEST(PagePool, CheckInvariantsNamesWhatIsWrong) {
  const auto complaint = [](std::int32_t allocated, PageId page, std::int32_t count) {
    PagePool pool(4);
    pool.allocate(allocated);
    const_cast<std::int32_t&>(pool.ref_counts()[static_cast<std::size_t>(page)]) = count;
    try {
      pool.check_invariants();
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string("nothing");
  };
  EXPECT_EQ(complaint(2, 1, 1), "nothing");
  EXPECT_EQ(complaint(2, 1, -1), "PagePool: page 1 has a count of -1");
  EXPECT_EQ(complaint(2, 1, 0), "PagePool: page 1 has a count of 0 and is not free");
  EXPECT_EQ(complaint(2, 3, 1), "PagePool: page 3 in the free list has a count of 1");
}

TEST(PagePool, EveryPoolHasItsOwnId) {
  PagePool a(1), b(1);
  EXPECT_NE(a.id(), 0u);
  EXPECT_NE(a.id(), b.id());
}

TEST(PagePool, DebugBuildsCountHowOftenAPageWasFreed) {
  PagePool pool(2);
  pool.unref(pool.allocate(1));
  EXPECT_THROW(pool.unref({1}), InvalidArgumentError);
#ifdef NDEBUG
  EXPECT_EQ(pool.generation(0), 0u);
#else
  EXPECT_EQ(pool.generation(0), 1u);
#endif
  EXPECT_EQ(pool.generation(1), 0u);
}

// Gives up pages that it holds, as a prefix cache does.
class HoldingReclaimer : public Reclaimer {
 public:
  HoldingReclaimer(PagePool& pool, std::vector<PageId> held)
      : pool_(pool), held_(std::move(held)) {}
  bool reclaim(std::int64_t num_pages) override {
    asked.push_back(num_pages);
    if (num_pages > static_cast<std::int64_t>(held_.size())) return false;
    pool_.unref(std::span(held_).first(static_cast<std::size_t>(num_pages)));
    held_.erase(held_.begin(), held_.begin() + num_pages);
    return true;
  }
  std::vector<std::int64_t> asked;

 private:
  PagePool& pool_;
  std::vector<PageId> held_;
};

TEST(PagePool, AsksTheReclaimerForWhatIsMissing) {
  PagePool pool(5);
  HoldingReclaimer reclaimer(pool, pool.allocate(3));
  pool.set_reclaimer(&reclaimer);
  EXPECT_THAT(pool.allocate(2), ElementsAre(3, 4));
  EXPECT_THAT(reclaimer.asked, IsEmpty());
  EXPECT_THAT(pool.allocate(2), ElementsAre(0, 1));
  EXPECT_THROW(pool.allocate(2), NoPageError);
  EXPECT_THROW(pool.allocate(6), NoPageError);  // more than the pool has: not worth asking
  EXPECT_THAT(reclaimer.asked, ElementsAre(2, 2));
  pool.set_reclaimer(nullptr);
  EXPECT_THROW(pool.allocate(1), NoPageError);
  EXPECT_THAT(reclaimer.asked, ElementsAre(2, 2));
}

TEST(PagePool, IsPrintable) {
  PagePool pool(8, 4);
  pool.allocate(1);
  EXPECT_EQ(pool.to_string(), "PagePool(num_pages=8, page_size=4, available=7)");
}

}  // namespace
}  // namespace seqattn
