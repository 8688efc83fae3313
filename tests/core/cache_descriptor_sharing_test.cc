#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

// fork, attach and adopt: sequences over pages that live already.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::state_of;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

class Sharing : public ::testing::Test {
 protected:
  Sharing() { descriptor_.allocate({1}, {10}); }

  // The message of the InvalidArgumentError that the call throws, changing nothing.
  template <class Exception = InvalidArgumentError, class Call>
  std::string refusal(const Call& call) {
    const auto before = state_of(descriptor_);
    const std::string message = error_of<Exception>(call);
    EXPECT_EQ(state_of(descriptor_), before);
    return message;
  }

  PagePool pool_{8, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(Sharing, ForkSharesEveryPage) {
  descriptor_.fork(1, 2);
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1, 2));
  EXPECT_EQ(descriptor_.length(2), 10);
  EXPECT_EQ(descriptor_.sequence(2).last_page_len, 2);
  EXPECT_THAT(pool_.ref_counts().first(4), ElementsAre(2, 2, 2, 0));
  descriptor_.check_invariants();
}

TEST_F(Sharing, ForkTakesThePagesOfAPrefixAtAnyToken) {
  for (std::int64_t num_tokens = 0; num_tokens <= 10; ++num_tokens) {
    descriptor_.fork(1, 2, num_tokens);
    EXPECT_EQ(descriptor_.length(2), num_tokens);
    EXPECT_EQ(descriptor_.num_kv_tokens(2), num_tokens);
    EXPECT_EQ(descriptor_.pages(2).size(), static_cast<std::size_t>((num_tokens + 3) / 4));
    descriptor_.check_invariants();
    descriptor_.release({2});
  }
}

TEST_F(Sharing, ForkOfAnEmptySequenceIsEmpty) {
  descriptor_.allocate({5}, {0});
  descriptor_.fork(5, 6);
  EXPECT_THAT(descriptor_.pages(6), IsEmpty());
  EXPECT_EQ(descriptor_.length(6), 0);
}

TEST_F(Sharing, TheForkOutlivesItsParent) {
  descriptor_.fork(1, 2, 5);
  descriptor_.release({1});
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1));
  EXPECT_EQ(pool_.available_pages_count(), 6);
  descriptor_.check_invariants();
}

// Sequence 1 has pages 0 1 2 and 10 tokens; each child is shorter than its parent.
TEST_F(Sharing, ForksOfForksOutliveThemAndTheirPagesAreRecycled) {
  descriptor_.fork(1, 2, 9);
  descriptor_.fork(2, 3, 6);
  descriptor_.fork(3, 4, 5);
  descriptor_.release({1});
  EXPECT_EQ(pool_.available_pages_count(), 5);
  descriptor_.release({2});
  EXPECT_EQ(pool_.available_pages_count(), 6);
  descriptor_.allocate({5}, {24});  // all the others, page 2 among them
  EXPECT_EQ(descriptor_.pages(5).back(), 2);
  EXPECT_THAT(descriptor_.pages(4), ElementsAre(0, 1));
  EXPECT_FALSE(descriptor_.try_allocate({4}, {1}));  // page 1 is shared, and none is left
  descriptor_.release({3});
  EXPECT_TRUE(descriptor_.allocate({4}, {3}).empty());
  descriptor_.release({5});
  descriptor_.fork(4, 6, 7);
  EXPECT_THAT(descriptor_.allocate({6}, {1}), ElementsAre(PageCopy{1, 3}));
  descriptor_.release({4, 6});
  EXPECT_EQ(pool_.available_pages_count(), 8);
  descriptor_.check_invariants();
}

// Child and parent share two full pages and part of a third.
TEST_F(Sharing, TruncationIntoASharedPrefixLeavesItToTheOther) {
  descriptor_.fork(1, 2);
  descriptor_.truncate(1, 6);
  EXPECT_THAT(pool_.ref_counts().first(3), ElementsAre(2, 2, 1));
  EXPECT_THAT(descriptor_.allocate({1}, {1}), ElementsAre(PageCopy{1, 3}));
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 3));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1, 2));
  EXPECT_TRUE(descriptor_.allocate({2}, {2}).empty());
  descriptor_.truncate(2, 4);
  EXPECT_TRUE(descriptor_.allocate({2}, {4}).empty());  // at the end of a page nothing is copied
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 4));
  EXPECT_EQ(descriptor_.length(1), 7);
  descriptor_.check_invariants();
}

TEST_F(Sharing, ForkRefusesWhatIsNotThere) {
  EXPECT_EQ(refusal<UnknownSequenceError>([&] { descriptor_.fork(7, 2); }),
            "Sequence ID 7 not found in cache descriptor");
  EXPECT_EQ(refusal([&] { descriptor_.fork(1, 2, 11); }),
            "num_tokens: got 11; expected 0 to 10, the length of sequence 1");
  EXPECT_EQ(refusal([&] { descriptor_.fork(1, 2, -2); }),
            "num_tokens: got -2; expected 0 to 10, the length of sequence 1");
  EXPECT_EQ(refusal([&] { descriptor_.fork(1, 2, std::numeric_limits<std::int64_t>::max()); }),
            "num_tokens: got 9223372036854775807; expected 0 to 10, the length of sequence 1");
}

TEST_F(Sharing, ForkRefusesAChildThatExists) {
  descriptor_.allocate({2}, {1});
  EXPECT_EQ(refusal([&] { descriptor_.fork(1, 2); }),
            "sequence 2 exists; expected a new id: release it first");
  EXPECT_EQ(refusal([&] { descriptor_.fork(1, 1); }),
            "sequence 1 exists; expected a new id: release it first");
}

TEST_F(Sharing, AttachTakesAReferenceToEachPage) {
  descriptor_.attach(2, {2, 0}, 7);
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(2, 0));
  EXPECT_EQ(descriptor_.length(2), 7);
  EXPECT_EQ(descriptor_.sequence(2).last_page_len, 3);
  EXPECT_THAT(pool_.ref_counts().first(3), ElementsAre(2, 1, 2));
  descriptor_.attach(3, {}, 0);
  EXPECT_EQ(descriptor_.length(3), 0);
  descriptor_.check_invariants();
}

TEST_F(Sharing, AttachAndAdoptRefusePagesThatDoNotLive) {
  EXPECT_EQ(refusal([&] {
              descriptor_.attach(2, {0, 3}, 8);
            }),
            "attach: page 3 at entry 1 is free; expected a page in use");
  EXPECT_EQ(refusal([&] {
              descriptor_.attach(2, {0, 8}, 8);
            }),
            "attach: got page 8 at entry 1; expected 0 <= page < 8");
  EXPECT_EQ(refusal([&] { descriptor_.attach(2, {-1}, 1); }),
            "attach: got page -1 at entry 0; expected 0 <= page < 8");
  pool_.ref({0});
  EXPECT_EQ(refusal([&] {
              descriptor_.adopt(2, {0, 3}, 8);
            }),
            "adopt: page 3 is free; expected a page in use");
  EXPECT_EQ(refusal([&] {
              descriptor_.adopt(2, {0, 8}, 8);
            }),
            "adopt: got page 8; expected 0 <= page < 8");
  EXPECT_EQ(refusal([&] { descriptor_.adopt(2, {-1}, 1); }),
            "adopt: got page -1; expected 0 <= page < 8");
}

TEST_F(Sharing, AttachAndAdoptRefuseAnotherNumberOfPagesThanTheTokensTake) {
  pool_.ref({0, 1});
  const auto refusals = [&](PageIds pages, std::int64_t num_tokens) {
    const auto message = refusal([&] { descriptor_.attach(2, pages, num_tokens); });
    EXPECT_EQ(refusal([&] { descriptor_.adopt(2, pages, num_tokens); }), message);
    return message;
  };
  EXPECT_EQ(refusals({0, 1}, 9), "pages: got 2 for 9 tokens in pages of 4; expected 3");
  EXPECT_EQ(refusals({0, 1}, 4), "pages: got 2 for 4 tokens in pages of 4; expected 1");
  EXPECT_EQ(refusals({0}, 0), "pages: got 1 for 0 tokens in pages of 4; expected 0");
  EXPECT_EQ(refusals({0}, -1), "num_tokens: got -1; expected at least 0");
  EXPECT_EQ(refusals({0}, std::numeric_limits<std::int64_t>::max()),
            "pages: got 1 for 9223372036854775807 tokens in pages of 4; expected "
            "2305843009213693952");
}

TEST_F(Sharing, AttachRefusesASequenceThatExists) {
  EXPECT_EQ(refusal([&] { descriptor_.attach(1, {0}, 4); }),
            "sequence 1 exists; expected a new id: release it first");
}

TEST_F(Sharing, AdoptTakesOverReferencesOfTheCallers) {
  const auto pages = pool_.allocate(2);
  pool_.ref({0});
  descriptor_.adopt(2, {0, 3, 4}, 9);
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 3, 4));
  EXPECT_THAT(pool_.ref_counts().first(5), ElementsAre(2, 1, 1, 1, 1));
  descriptor_.check_invariants();
  descriptor_.release({2});
  EXPECT_THAT(pool_.free_pages(), ElementsAre(5, 6, 7, 3, 4));
}

TEST_F(Sharing, AdoptReplacesATableAndGivesItsReferencesBack) {
  const auto page = pool_.allocate(1).front();
  descriptor_.adopt(1, {0, page}, 8);
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 3));
  EXPECT_EQ(descriptor_.length(1), 8);
  EXPECT_THAT(pool_.ref_counts().first(4), ElementsAre(1, 1, 1, 1));
  descriptor_.check_invariants();
  pool_.unref({1, 2});  // the caller's now
  EXPECT_EQ(pool_.available_pages_count(), 6);
}

TEST_F(Sharing, AdoptMayBeGivenTheSequencesOwnTable) {
  descriptor_.adopt(1, descriptor_.pages(1), 9);
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 1, 2));
  EXPECT_EQ(descriptor_.length(1), 9);
}

TEST_F(Sharing, AdoptRefusesReferencesThatNobodyHolds) {
  EXPECT_EQ(refusal([&] { descriptor_.adopt(2, {0}, 4); }),
            "adopt: page 0 has 1 references for 2 holders; expected one for each: call ref first, "
            "or attach");
  pool_.ref({0});
  EXPECT_EQ(refusal([&] {
              descriptor_.adopt(2, {0, 0}, 8);
            }),
            "adopt: page 0 has 2 references for 3 holders; expected one for each: call ref first, "
            "or attach");
  descriptor_.adopt(2, {0}, 4);
  descriptor_.check_invariants();
}

}  // namespace
}  // namespace seqattn
