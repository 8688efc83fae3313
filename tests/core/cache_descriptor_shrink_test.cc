#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>

#include "descriptor_state.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

// release, truncate, clear and the destructor: which pages become free, in which order.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::state_of;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class Shrinking : public ::testing::Test {
 protected:
  Shrinking() { descriptor_.allocate({1, 2, 3}, {10, 3, 5}); }

  PagePool pool_{8, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(Shrinking, ReleaseFreesPagesInTheOrderOfIdsAndTables) {
  EXPECT_EQ(descriptor_.release({3, 1}), 2);
  EXPECT_THAT(pool_.free_pages(), ElementsAre(6, 7, 4, 5, 0, 1, 2));
  EXPECT_FALSE(descriptor_.contains(1));
  EXPECT_TRUE(descriptor_.contains(2));
  descriptor_.check_invariants();
}

TEST_F(Shrinking, ReleaseIgnoresUnknownIdsAndCountsRepeatedOnesOnce) {
  EXPECT_EQ(descriptor_.release({77, 2, 2, -1, 2}), 1);
  EXPECT_EQ(descriptor_.release({2}), 0);
  EXPECT_EQ(descriptor_.release({}), 0);
  EXPECT_EQ(descriptor_.num_sequences(), 2);
  EXPECT_EQ(pool_.available_pages_count(), 3);
}

TEST_F(Shrinking, ASharedPageIsFreeWhenItsLastSequenceGoes) {
  descriptor_.fork(1, 4, 6);
  descriptor_.release({1});
  EXPECT_THAT(pool_.free_pages(), ElementsAre(6, 7, 2));
  descriptor_.release({4});
  EXPECT_THAT(pool_.free_pages(), ElementsAre(6, 7, 2, 0, 1));
}

TEST_F(Shrinking, TruncateKeepsThePagesOfTheTokensThatAreLeft) {
  for (std::int64_t length = 10; length >= 0; --length) {
    descriptor_.truncate(1, length);
    EXPECT_EQ(descriptor_.length(1), length);
    EXPECT_EQ(descriptor_.num_kv_tokens(1), length);
    EXPECT_EQ(descriptor_.pages(1).size(), static_cast<std::size_t>((length + 3) / 4));
    descriptor_.check_invariants();
  }
  EXPECT_THAT(pool_.free_pages(), ElementsAre(6, 7, 2, 1, 0));
  EXPECT_TRUE(descriptor_.contains(1));
  descriptor_.allocate({1}, {1});
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(6));
}

TEST_F(Shrinking, TruncateFreesPagesInTheOrderOfTheTable) {
  descriptor_.truncate(1, 0);
  EXPECT_THAT(pool_.free_pages(), ElementsAre(6, 7, 0, 1, 2));
}

TEST_F(Shrinking, TruncateLeavesSharersAlone) {
  descriptor_.fork(1, 4);
  descriptor_.truncate(1, 3);
  EXPECT_THAT(descriptor_.pages(4), ElementsAre(0, 1, 2));
  EXPECT_THAT(pool_.ref_counts().first(3), ElementsAre(2, 1, 1));
  EXPECT_EQ(descriptor_.length(4), 10);
}

TEST_F(Shrinking, TruncateRefusesWhatIsNotThere) {
  const auto before = state_of(descriptor_);
  EXPECT_EQ(error_of<UnknownSequenceError>([&] { descriptor_.truncate(9, 0); }),
            "Sequence ID 9 not found in cache descriptor");
  EXPECT_EQ(error_of([&] { descriptor_.truncate(1, 11); }),
            "num_tokens: got 11; expected 0 to 10, the length of sequence 1");
  EXPECT_EQ(error_of([&] { descriptor_.truncate(1, -1); }),
            "num_tokens: got -1; expected 0 to 10, the length of sequence 1");
  EXPECT_THROW(descriptor_.truncate(1, std::numeric_limits<std::int64_t>::min()),
               InvalidArgumentError);
  EXPECT_EQ(state_of(descriptor_), before);
}

TEST_F(Shrinking, ClearReleasesEverySequence) {
  descriptor_.fork(1, 4);
  descriptor_.clear();
  EXPECT_EQ(descriptor_.num_sequences(), 0);
  EXPECT_THAT(descriptor_.seq_ids(), IsEmpty());
  EXPECT_EQ(pool_.available_pages_count(), 8);
  descriptor_.clear();
  descriptor_.check_invariants();
}

TEST_F(Shrinking, TheDestructorReleasesWhatIsLeft) {
  auto other = std::make_unique<CacheDescriptor>(pool_);
  other->attach(1, {0}, 4);
  other->allocate({2}, {8});
  EXPECT_EQ(pool_.available_pages_count(), 0);
  other.reset();
  EXPECT_EQ(pool_.available_pages_count(), 2);
  EXPECT_EQ(pool_.ref_count(0), 1);
  descriptor_.check_invariants();
}

// The caller has dropped a reference that was the sequence's.
class StolenReference : public Shrinking {
 protected:
  StolenReference() { pool_.unref({4}); }
};

TEST_F(StolenReference, IsNoticedByTheInvariants) {
  EXPECT_EQ(error_of<Error>([&] { descriptor_.check_invariants(); }),
            "CacheDescriptor: page 4 has 0 references for 1 holders");
}

TEST_F(StolenReference, MakesReleaseFailWithNothingChanged) {
  const auto before = state_of(descriptor_);
  EXPECT_EQ(error_of([&] {
              descriptor_.release({2, 1, 3});
            }),
            "unref: page 4 at entry 0 is free; expected a page in use");
  EXPECT_EQ(state_of(descriptor_), before);
  EXPECT_THROW(descriptor_.clear(), InvalidArgumentError);
  EXPECT_EQ(state_of(descriptor_), before);
}

TEST_F(StolenReference, MakesForkAndTruncateFailWithNothingChanged) {
  const auto before = state_of(descriptor_);
  EXPECT_THROW(descriptor_.fork(3, 9), InvalidArgumentError);
  EXPECT_THROW(descriptor_.truncate(3, 0), InvalidArgumentError);
  EXPECT_EQ(state_of(descriptor_), before);
}

TEST(StolenReferences, DoNotKeepTheDestructorFromReleasingTheRest) {
  PagePool pool(4, 4);
  {
    CacheDescriptor descriptor(pool);
    descriptor.allocate({1, 2}, {4, 8});
    pool.unref({0});
  }
  EXPECT_EQ(pool.available_pages_count(), 4);
  pool.check_invariants();
}

}  // namespace
}  // namespace seqattn
