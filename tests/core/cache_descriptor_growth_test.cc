#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

// Growth without sharing: which pages a sequence gets, and what lengths it has then.
namespace seqattn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class CacheDescriptorGrowth : public ::testing::Test {
 protected:
  void TearDown() override { descriptor_.check_invariants(); }

  PagePool pool_{16, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(CacheDescriptorGrowth, StartsAndGrowsSequences) {
  EXPECT_THAT(descriptor_.allocate({7, 9}, {9, 4}), IsEmpty());
  EXPECT_THAT(descriptor_.pages(7), ElementsAre(0, 1, 2));
  EXPECT_THAT(descriptor_.pages(9), ElementsAre(3));
  descriptor_.allocate_decoding({7, 9});
  EXPECT_THAT(descriptor_.pages(7), ElementsAre(0, 1, 2));
  EXPECT_THAT(descriptor_.pages(9), ElementsAre(3, 4));
  EXPECT_EQ(descriptor_.length(7), 10);
  EXPECT_EQ(descriptor_.num_kv_tokens(9), 5);
}

TEST_F(CacheDescriptorGrowth, TakesAPageExactlyWhenTheLastIsFull) {
  for (int length = 1; length <= 13; ++length) {
    descriptor_.allocate({1}, {1});
    const SequenceData& data = descriptor_.sequence(1);
    EXPECT_EQ(data.length, length);
    EXPECT_EQ(data.kv_page_indices.size(), static_cast<std::size_t>((length + 3) / 4));
    EXPECT_EQ(data.last_page_len, (length - 1) % 4 + 1);
    EXPECT_EQ(descriptor_.num_kv_tokens(1), length);
  }
}

TEST_F(CacheDescriptorGrowth, FillsTheLastPageBeforeItTakesOthers) {
  for (int first = 0; first <= 9; ++first) {
    for (int more = 0; more <= 9; ++more) {
      descriptor_.allocate({1}, {first});
      descriptor_.allocate({1}, {more});
      EXPECT_EQ(descriptor_.length(1), first + more);
      EXPECT_EQ(descriptor_.pages(1).size(), static_cast<std::size_t>((first + more + 3) / 4));
      descriptor_.check_invariants();
      descriptor_.release({1});
    }
  }
}

TEST_F(CacheDescriptorGrowth, TakesPagesFirstInFirstOut) {
  descriptor_.allocate({1, 2, 3}, {8, 8, 8});
  descriptor_.release({2});
  descriptor_.release({1});
  descriptor_.allocate({4}, {40});
  EXPECT_THAT(descriptor_.pages(4), ElementsAre(6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
  descriptor_.allocate({5}, {16});
  EXPECT_THAT(descriptor_.pages(5), ElementsAre(2, 3, 0, 1));
}

TEST_F(CacheDescriptorGrowth, HandsOutPagesInTheOrderOfTheIds) {
  descriptor_.allocate({9, -3, 5}, {5, 1, 4});
  EXPECT_THAT(descriptor_.pages(9), ElementsAre(0, 1));
  EXPECT_THAT(descriptor_.pages(-3), ElementsAre(2));
  EXPECT_THAT(descriptor_.pages(5), ElementsAre(3));
  descriptor_.allocate_decoding({5, 9, 5, -3});
  EXPECT_THAT(descriptor_.pages(5), ElementsAre(3, 4));
  EXPECT_EQ(descriptor_.length(5), 6);
}

TEST_F(CacheDescriptorGrowth, ARepeatedIdGrowsOnceForEachTime) {
  descriptor_.allocate({1, 2, 1, 1}, {3, 1, 3, 4});
  EXPECT_EQ(descriptor_.length(1), 10);
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 2, 3));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(1));
  descriptor_.allocate_decoding({2, 2, 2, 2});
  EXPECT_EQ(descriptor_.length(2), 5);
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(1, 4));
}

TEST_F(CacheDescriptorGrowth, AnUnknownIdWithLengthZeroBecomesAnEmptySequence) {
  descriptor_.allocate({8}, {0});
  EXPECT_TRUE(descriptor_.contains(8));
  EXPECT_THAT(descriptor_.pages(8), IsEmpty());
  EXPECT_EQ(descriptor_.length(8), 0);
  EXPECT_EQ(descriptor_.sequence(8).last_page_len, 0);
  EXPECT_EQ(pool_.available_pages_count(), 16);
  descriptor_.allocate_decoding({8});
  EXPECT_THAT(descriptor_.pages(8), ElementsAre(0));
}

TEST_F(CacheDescriptorGrowth, AnEmptyBatchDoesNothing) {
  EXPECT_THAT(descriptor_.allocate({}, {}), IsEmpty());
  EXPECT_THAT(descriptor_.allocate_decoding({}), IsEmpty());
  EXPECT_TRUE(descriptor_.try_allocate({}, {}).ok);
  EXPECT_EQ(descriptor_.num_sequences(), 0);
}

TEST_F(CacheDescriptorGrowth, AnyInt64IsAnId) {
  const std::vector<SeqId> ids = {std::numeric_limits<SeqId>::min(), -1, 0,
                                  std::numeric_limits<SeqId>::max()};
  descriptor_.allocate(ids, std::vector<std::int64_t>(4, 2));
  EXPECT_THAT(descriptor_.seq_ids(), UnorderedElementsAre(ids[0], -1, 0, ids[3]));
  EXPECT_EQ(descriptor_.release(ids), 4);
}

TEST_F(CacheDescriptorGrowth, CanUseEveryPageOfThePool) {
  descriptor_.allocate({1, 2}, {60, 4});
  EXPECT_EQ(pool_.available_pages_count(), 0);
  descriptor_.release({1, 2});
  descriptor_.allocate({3}, {64});
  EXPECT_EQ(descriptor_.pages(3).size(), 16u);
}

// Steps list the ids of the step before in the same places, and are not searched for again.
TEST_F(CacheDescriptorGrowth, MeetsTheSequenceThatHasTheIdToday) {
  descriptor_.allocate({1, 2, 3}, {2, 2, 2});
  descriptor_.allocate_decoding({1, 2, 3});
  descriptor_.release({2});
  EXPECT_THROW(descriptor_.allocate_decoding({1, 2, 3}), UnknownSequenceError);
  descriptor_.allocate({2}, {7});
  descriptor_.allocate_decoding({1, 2, 3});
  EXPECT_EQ(descriptor_.length(1), 4);
  EXPECT_EQ(descriptor_.length(2), 8);
  EXPECT_EQ(descriptor_.length(3), 4);
  descriptor_.fork(1, 4);
  descriptor_.allocate_decoding({3, 4, 1, 2});
  EXPECT_EQ(descriptor_.length(4), 5);
  EXPECT_EQ(descriptor_.length(1), 5);
}

TEST_F(CacheDescriptorGrowth, ForgetsASequenceThatWasTakenBack) {
  EXPECT_THROW(descriptor_.allocate({5, 6}, {4, 4 * 16}), NoPageError);
  EXPECT_THROW(descriptor_.allocate_decoding({5}), UnknownSequenceError);
  descriptor_.allocate({5, 6}, {1, 2});
  EXPECT_THROW(descriptor_.allocate({5, 6, 7, 8}, {1, 1, 1, -1}), InvalidArgumentError);
  EXPECT_THROW(descriptor_.allocate_decoding({5, 6, 7}), UnknownSequenceError);
  descriptor_.allocate_decoding({5, 6});
  EXPECT_EQ(descriptor_.length(6), 3);
}

TEST(CacheDescriptorPageSizes, OfOneTokenHaveNoRoomLeft) {
  PagePool pool(8, 1);
  CacheDescriptor descriptor(pool);
  descriptor.allocate({1}, {3});
  descriptor.allocate_decoding({1});
  EXPECT_THAT(descriptor.pages(1), ElementsAre(0, 1, 2, 3));
  EXPECT_EQ(descriptor.sequence(1).last_page_len, 1);
  descriptor.check_invariants();
}

TEST(CacheDescriptorPageSizes, OfTheLargestIntHoldLongSequences) {
  constexpr int kPageSize = std::numeric_limits<int>::max();
  PagePool pool(4, kPageSize);
  CacheDescriptor descriptor(pool);
  descriptor.allocate({1}, {std::int64_t{kPageSize} * 3 + 1});
  EXPECT_EQ(descriptor.pages(1).size(), 4u);
  EXPECT_EQ(descriptor.sequence(1).last_page_len, 1);
  descriptor.allocate({1}, {kPageSize - 1});
  EXPECT_EQ(descriptor.num_kv_tokens(1), std::int64_t{kPageSize} * 4);
  descriptor.check_invariants();
}

}  // namespace
}  // namespace seqattn
