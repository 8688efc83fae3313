#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

// Trees of draft tokens: the slots that they take, and what becomes of them.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::state_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Tree : public ::testing::Test {
 protected:
  Tree() { descriptor_.allocate({1}, {6}); }  // pages 0 1
  PagePool pool_{8, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(Tree, TakesTheLastSlots) {
  EXPECT_THAT(descriptor_.allocate_tree(1, {-1, 0, 0, -1, 3}), IsEmpty());
  EXPECT_EQ(descriptor_.length(1), 6);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 11);
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 1, 2));
  EXPECT_EQ(descriptor_.stats().num_draft_tokens, 5);
  EXPECT_EQ(descriptor_.stats().num_tokens, 11);
  const auto packed = descriptor_.pack_for_flashinfer({1});
  EXPECT_THAT(packed.columns().trees, ElementsAre(ElementsAre(-1, 0, 0, -1, 3)));
  EXPECT_EQ(packed.kv_len(0, 4), 11);
  descriptor_.check_invariants();
}

TEST_F(Tree, ComesBehindTokensOfTheSequence) {
  descriptor_.allocate_tree(1, {-1, 0}, 3);
  EXPECT_EQ(descriptor_.length(1), 9);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 11);
}

TEST_F(Tree, CommitsAPath) {
  descriptor_.allocate_tree(1, {-1, 0, 0, -1, 3});  // slots 6 to 10
  EXPECT_THAT(descriptor_.commit_tree(1, {3, 4}),
              ElementsAre(TokenMove{2, 1, 1, 2}, TokenMove{2, 2, 1, 3}));
  EXPECT_EQ(descriptor_.length(1), 8);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 8);
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 1));
  EXPECT_EQ(pool_.ref_count(2), 0);
  descriptor_.allocate({1}, {1});  // grows again
  descriptor_.check_invariants();
}

TEST_F(Tree, MovesNothingForAPathInPlace) {
  descriptor_.allocate_tree(1, {-1, 0, 1});
  EXPECT_THAT(descriptor_.commit_tree(1, {0, 1}), IsEmpty());
  EXPECT_EQ(descriptor_.length(1), 8);
  descriptor_.allocate_tree(1, {-1});
  EXPECT_THAT(descriptor_.commit_tree(1, {}), IsEmpty());
  EXPECT_EQ(descriptor_.length(1), 8);
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 1));
}

// At every boundary of pages: a chain of which part is accepted behind a token that is not.
TEST_F(Tree, CommitsAtEveryBoundary) {
  for (std::int64_t length = 0; length < 10; ++length) {
    for (std::int32_t accepted = 0; accepted < 9; ++accepted) {
      PagePool pool(8, 4);
      CacheDescriptor descriptor(pool);
      descriptor.allocate({1}, {length});
      descriptor.allocate_tree(1, {-1, -1, 1, 2, 3, 4, 5, 6, 7});
      std::vector<std::int32_t> path;
      for (std::int32_t i = 1; i <= accepted; ++i) path.push_back(i);
      const auto moves = descriptor.commit_tree(1, path);
      ASSERT_EQ(moves.size(), path.size());
      ASSERT_EQ(descriptor.length(1), length + accepted);
      ASSERT_EQ(descriptor.num_kv_tokens(1), length + accepted);
      descriptor.check_invariants();
    }
  }
}

TEST_F(Tree, EndsWithTruncate) {
  const auto before = state_of(descriptor_).sequences;
  descriptor_.allocate_tree(1, {-1, 0, 1, 2, 3});
  descriptor_.truncate(1, 6);
  EXPECT_EQ(state_of(descriptor_).sequences, before);
  descriptor_.allocate_tree(1, {-1, 0});
  descriptor_.truncate(1, 3);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 3);
  EXPECT_THAT(descriptor_.sequence(1).tree_parents, IsEmpty());
}

TEST_F(Tree, KeepsItsSequenceFromGrowing) {
  descriptor_.allocate_tree(1, {-1, 0});
  const auto before = state_of(descriptor_);
  const auto expect_refusal = [&](const auto& call) {
    EXPECT_THAT(error_of(call), HasSubstr("sequence 1: has a pending tree of 2 draft tokens"));
    EXPECT_THAT(error_of(call), HasSubstr("commit_tree, or truncate to its length"));
    EXPECT_EQ(state_of(descriptor_), before);
  };
  expect_refusal([&] { descriptor_.allocate({2, 1}, {3, 1}); });
  expect_refusal([&] { descriptor_.try_allocate({1}, {1}); });
  expect_refusal([&] { descriptor_.allocate_decoding({1}); });
  expect_refusal([&] { descriptor_.allocate_tree(1, {-1}); });
  expect_refusal([&] { descriptor_.keep(1, {0, 1}); });
  EXPECT_THROW(descriptor_.truncate(1, 7), InvalidArgumentError);
  descriptor_.allocate({1, 2}, {0, 1});  // by nothing it may
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 8);
}

TEST_F(Tree, IsNotForked) {
  descriptor_.allocate_tree(1, {-1, -1, 0});
  descriptor_.fork(1, 2);
  EXPECT_EQ(descriptor_.num_kv_tokens(2), 6);
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1));
  // Page 1 is shared now, and the path has to move within it: to a page of its own, with the
  // tokens in front.
  EXPECT_THAT(descriptor_.commit_tree(1, {1}),
              ElementsAre(TokenMove{1, 0, 3, 0}, TokenMove{1, 1, 3, 1}, TokenMove{1, 3, 3, 2}));
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 3));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1));
  EXPECT_EQ(pool_.ref_count(1), 1);
  descriptor_.check_invariants();
}

TEST_F(Tree, TakesACopyOfASharedPage) {
  descriptor_.fork(1, 2);
  EXPECT_THAT(descriptor_.allocate_tree(1, {-1, -1}), ElementsAre(PageCopy{1, 2}));
  EXPECT_THAT(descriptor_.commit_tree(1, {1}), ElementsAre(TokenMove{2, 3, 2, 2}));
}

TEST_F(Tree, NeedsPages) {
  descriptor_.allocate({2}, {24});
  EXPECT_EQ(pool_.available_pages_count(), 0);
  auto before = state_of(descriptor_);
  EXPECT_THROW(descriptor_.allocate_tree(1, {-1, -1, -1}), NoPageError);
  EXPECT_EQ(state_of(descriptor_), before);
  descriptor_.allocate_tree(1, {-1, -1});
  descriptor_.fork(1, 3);
  before = state_of(descriptor_);
  EXPECT_EQ(error_of<NoPageError>([&] { descriptor_.commit_tree(1, {1}); }).substr(0, 33),
            "Need 1 pages but only 0 available");
  EXPECT_EQ(state_of(descriptor_), before);
  descriptor_.release({3});
  descriptor_.commit_tree(1, {1});
}

TEST_F(Tree, OfAWindowDropsWhatTheFirstDraftSeesNothingOf) {
  descriptor_.set_window(1, {.window = 2, .num_sink_tokens = 0});
  descriptor_.allocate_tree(1, {-1, 0, 1, 2});  // the first at position 6 sees 5
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(1, 2));
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 6);
  descriptor_.commit_tree(1, {0, 1});
  EXPECT_EQ(descriptor_.length(1), 8);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 4);
  descriptor_.check_invariants();
}

TEST_F(Tree, RefusesWrongArguments) {
  auto before = state_of(descriptor_);
  EXPECT_EQ(error_of([&] { descriptor_.allocate_tree(1, {}); }),
            "parents: got none; expected one for each draft token");
  EXPECT_EQ(error_of([&] {
              descriptor_.allocate_tree(1, {-1, 1});
            }),
            "parents: got 1 at entry 1; expected a token before it, or -1 for the last token");
  EXPECT_THROW(descriptor_.allocate_tree(1, {-2}), InvalidArgumentError);
  EXPECT_THROW(descriptor_.allocate_tree(1, {-1}, -1), InvalidArgumentError);
  EXPECT_THROW(descriptor_.allocate_tree(2, {-1}), UnknownSequenceError);
  EXPECT_THROW(descriptor_.commit_tree(2, {}), UnknownSequenceError);
  EXPECT_THAT(error_of([&] { descriptor_.commit_tree(1, {}); }), HasSubstr("no pending tree"));
  EXPECT_EQ(state_of(descriptor_), before);
  descriptor_.allocate_tree(1, {-1, 0, -1});
  before = state_of(descriptor_);
  EXPECT_EQ(error_of([&] { descriptor_.commit_tree(1, {1}); }),
            "path: got token 1 at entry 0, a child of 0; expected a child of -1, the sequence's "
            "last token");
  EXPECT_EQ(error_of([&] {
              descriptor_.commit_tree(1, {0, 2});
            }),
            "path: got token 2 at entry 1, a child of -1; expected a child of 0");
  EXPECT_THROW(descriptor_.commit_tree(1, {3}), InvalidArgumentError);
  EXPECT_THROW(descriptor_.commit_tree(1, {-1}), InvalidArgumentError);
  EXPECT_EQ(state_of(descriptor_), before);
}

}  // namespace
}  // namespace seqattn
