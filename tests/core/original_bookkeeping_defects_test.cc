#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <set>
#include <vector>

#include "descriptor_state.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/head_id_generator.h"
#include "seqattn/paged_kv_cache_manager.h"

// What the original package's bookkeeping did wrong, by the behaviour that is right.
namespace seqattn {
namespace {

using ::seqattn::testing::state_of;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class OriginalBookkeeping : public ::testing::Test {
 protected:
  // Whatever the test did, no page has been lost and none is held twice.
  void TearDown() override {
    descriptor_.check_invariants();
    descriptor_.clear();
    EXPECT_EQ(pool_.available_pages_count(), pool_.num_pages());
    pool_.check_invariants();
  }

  PagePool pool_{4, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(OriginalBookkeeping, DecodeOnFullPoolLeavesStateUnchanged) {
  descriptor_.allocate({1, 2, 3}, {4, 3, 8});
  const auto before = state_of(descriptor_);
  EXPECT_THROW(descriptor_.allocate_decoding({2, 1}), NoPageError);
  EXPECT_EQ(state_of(descriptor_), before);
  EXPECT_EQ(descriptor_.sequence(1).last_page_len, 4);
}

TEST_F(OriginalBookkeeping, DecodeWithAnUnknownIdLeavesTheOthersUnchanged) {
  descriptor_.allocate({1, 2}, {4, 3});
  const auto before = state_of(descriptor_);
  EXPECT_THROW(descriptor_.allocate_decoding({1, 2, 77}), UnknownSequenceError);
  EXPECT_EQ(state_of(descriptor_), before);
}

TEST_F(OriginalBookkeeping, ARepeatedIdGrowsTwice) {
  descriptor_.allocate({1, 1}, {3, 3});
  EXPECT_EQ(descriptor_.length(1), 6);
  EXPECT_EQ(descriptor_.pages(1).size(), 2u);
  descriptor_.allocate({2, 2, 2}, {4, 1, 1});
  EXPECT_EQ(descriptor_.length(2), 6);
  EXPECT_EQ(descriptor_.pages(2).size(), 2u);
}

TEST_F(OriginalBookkeeping, ReleasingAnIdTwiceInOneCallReleasesItOnce) {
  descriptor_.allocate({1}, {8});
  descriptor_.fork(1, 2);
  EXPECT_EQ(descriptor_.release({1, 1}), 1);
  EXPECT_THAT(pool_.ref_counts(), ElementsAre(1, 1, 0, 0));
  descriptor_.allocate({3}, {8});
  EXPECT_THAT(descriptor_.pages(3), ElementsAre(2, 3));
}

TEST_F(OriginalBookkeeping, NegativeLengthsAreErrors) {
  const auto before = state_of(descriptor_);
  EXPECT_THROW(descriptor_.allocate({1, 2}, {-5, 8}), InvalidArgumentError);
  EXPECT_THROW(pool_.allocate(-3), InvalidArgumentError);
  EXPECT_EQ(state_of(descriptor_), before);
}

TEST_F(OriginalBookkeeping, AnEmptySequencePacksNoPageAndLengthZero) {
  descriptor_.allocate({1}, {0});
  const auto packed = descriptor_.pack_for_flashinfer({1});
  EXPECT_THAT(packed.kv_page_indices(), IsEmpty());
  EXPECT_THAT(packed.kv_page_indptr(), ElementsAre(0, 0));
  EXPECT_THAT(packed.kv_last_page_len(), ElementsAre(0));
}

TEST_F(OriginalBookkeeping, UnrefOfAFreePageIsAnErrorAndThePageStaysGood) {
  EXPECT_THROW(pool_.unref({2}), InvalidArgumentError);
  EXPECT_EQ(pool_.ref_count(2), 0);
  const auto pages = pool_.allocate(4);
  EXPECT_THAT(pages, ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(pool_.ref_counts(), ElementsAre(1, 1, 1, 1));
  pool_.unref(pages);
}

TEST_F(OriginalBookkeeping, RefOfAFreePageIsAnErrorAndThePageIsNotShared) {
  EXPECT_THROW(pool_.ref({0}), InvalidArgumentError);
  descriptor_.allocate({1}, {1});
  EXPECT_EQ(pool_.ref_count(0), 1);
}

TEST_F(OriginalBookkeeping, APageIsNeverInTheFreeListTwice) {
  const auto page = pool_.allocate(1).front();
  pool_.unref({page});
  EXPECT_THROW(pool_.ref({page}), InvalidArgumentError);
  EXPECT_THROW(pool_.ref({page}), InvalidArgumentError);
  EXPECT_THROW(pool_.unref({page}), InvalidArgumentError);
  EXPECT_THAT(pool_.free_pages(), ElementsAre(1, 2, 3, 0));
}

TEST_F(OriginalBookkeeping, NegativePageIdsDoNotWrapAround) {
  const auto pages = pool_.allocate(4);
  const auto before = state_of(pool_);
  EXPECT_THROW(pool_.ref({-1}), InvalidArgumentError);
  EXPECT_THROW(pool_.unref({-1}), InvalidArgumentError);
  EXPECT_THROW(pool_.unref({4}), InvalidArgumentError);
  EXPECT_THROW(pool_.ref_count(-1), InvalidArgumentError);
  EXPECT_EQ(state_of(pool_), before);
  pool_.unref(pages);
}

TEST_F(OriginalBookkeeping, PagesCanBeForkedAndAttached) {
  descriptor_.allocate({1}, {10});
  descriptor_.fork(1, 2, 5);
  descriptor_.attach(3, descriptor_.pages(1).first(2), 8);
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1));
  EXPECT_THAT(descriptor_.pages(3), ElementsAre(0, 1));
  EXPECT_THAT(pool_.ref_counts(), ElementsAre(3, 3, 1, 0));
}

TEST_F(OriginalBookkeeping, AnUnknownIdIsOneTypeOfErrorExceptWhereItIsIgnored) {
  EXPECT_EQ(descriptor_.release({7}), 0);
  EXPECT_THROW(descriptor_.allocate_decoding({7}), UnknownSequenceError);
  EXPECT_THROW(descriptor_.pack_for_flashinfer({7}), UnknownSequenceError);
  EXPECT_THROW(descriptor_.length(7), UnknownSequenceError);
  EXPECT_THROW(descriptor_.truncate(7, 0), UnknownSequenceError);
  EXPECT_THROW(descriptor_.fork(7, 8), UnknownSequenceError);
}

TEST_F(OriginalBookkeeping, LengthTruncateClearAndStatisticsAreThere) {
  descriptor_.allocate({1, 2}, {10, 3});
  EXPECT_EQ(descriptor_.length(1), 10);
  descriptor_.truncate(1, 4);
  EXPECT_EQ(descriptor_.length(1), 4);
  EXPECT_EQ(descriptor_.stats().num_tokens, 7);
  EXPECT_EQ(descriptor_.stats().num_free_pages, 2);
  descriptor_.clear();
  EXPECT_EQ(descriptor_.num_sequences(), 0);
}

TEST(OriginalHeadIds, NeverCollideWhateverTheNumberOfHeads) {
  for (const std::int64_t num_heads : {1, 2, 3, 5, 6, 7, 8, 10, 12, 24}) {
    const HeadIDGenerator generator(num_heads);
    std::set<SeqId> ids;
    for (SeqId seq_id = 0; seq_id < 50; ++seq_id) {
      for (std::int64_t head = 0; head < num_heads; ++head) {
        ids.insert(generator.get_head_id(seq_id, head));
      }
    }
    EXPECT_EQ(static_cast<std::int64_t>(ids.size()), 50 * num_heads);
    EXPECT_THROW(generator.get_head_id(0, num_heads), InvalidArgumentError);
  }
  EXPECT_THROW(HeadIDGenerator(0), InvalidArgumentError);
}

}  // namespace
}  // namespace seqattn
