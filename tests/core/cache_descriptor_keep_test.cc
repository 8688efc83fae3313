#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <numeric>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

// keep: which slots stay, what moves where, and what the sequence is afterwards.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::state_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class Keep : public ::testing::Test {
 protected:
  Keep() { descriptor_.allocate({1}, {10}); }  // pages 0 1 2
  PagePool pool_{8, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(Keep, MovesTokensTogether) {
  EXPECT_THAT(descriptor_.keep(1, {0, 1, 4, 9}),
              ElementsAre(TokenMove{1, 0, 0, 2}, TokenMove{2, 1, 0, 3}));
  EXPECT_EQ(descriptor_.length(1), 10);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 4);
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0));
  EXPECT_THAT(pool_.free_pages(), ElementsAre(3, 4, 5, 6, 7, 1, 2));
  EXPECT_EQ(descriptor_.sequence(1).kept_from(), 10);
  EXPECT_EQ(descriptor_.stats().num_dropped_tokens, 6);
  descriptor_.allocate({1}, {3});
  EXPECT_EQ(descriptor_.length(1), 13);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 7);
  descriptor_.check_invariants();
}

TEST_F(Keep, OfAllTokensChangesNothing) {
  std::vector<std::int64_t> all(10);
  std::iota(all.begin(), all.end(), 0);
  const auto before = state_of(descriptor_);
  EXPECT_THAT(descriptor_.keep(1, all), IsEmpty());
  EXPECT_EQ(state_of(descriptor_), before);
}

TEST_F(Keep, OfNoneFreesAll) {
  EXPECT_THAT(descriptor_.keep(1, {}), IsEmpty());
  EXPECT_EQ(pool_.available_pages_count(), 8);
  EXPECT_EQ(descriptor_.length(1), 10);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 0);
  descriptor_.allocate({1}, {1});
  EXPECT_EQ(descriptor_.length(1), 11);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 1);
  descriptor_.check_invariants();
}

// Every choice of up to nine tokens in pages of two and three.
TEST_F(Keep, OfEveryChoiceIsThatChoice) {
  for (const int page_size : {1, 2, 3}) {
    for (unsigned choice = 0; choice < 512; ++choice) {
      PagePool pool(20, page_size);
      CacheDescriptor descriptor(pool);
      descriptor.allocate({1}, {9});
      if (choice % 3 == 0) descriptor.fork(1, 2, static_cast<std::int64_t>(choice) % 10);
      std::vector<std::int64_t> slots;
      for (int i = 0; i < 9; ++i) {
        if ((choice >> i & 1u) != 0) slots.push_back(i);
      }
      // What each slot of each page holds: the number of the token.
      std::vector<std::vector<std::int64_t>> storage(
          20, std::vector<std::int64_t>(static_cast<std::size_t>(page_size), -1));
      for (std::int64_t i = 0; i < 9; ++i) {
        storage[static_cast<std::size_t>(descriptor.pages(1)[i / page_size])][i % page_size] = i;
      }
      const auto shared = storage;
      for (const TokenMove& move : descriptor.keep(1, slots)) {
        ASSERT_EQ(pool.ref_count(move.target_page), 1);
        storage[move.target_page][move.target_slot] = storage[move.source_page][move.source_slot];
      }
      for (std::size_t i = 0; i < slots.size(); ++i) {
        const PageId page = descriptor.pages(1)[i / page_size];
        ASSERT_EQ(storage[page][i % page_size], slots[i]) << "choice " << choice;
      }
      if (descriptor.contains(2)) {
        for (const PageId page : descriptor.pages(2)) ASSERT_EQ(storage[page], shared[page]);
      }
      descriptor.check_invariants();
    }
  }
}

TEST_F(Keep, CopiesWhatLiesInASharedPage) {
  descriptor_.fork(1, 2);
  EXPECT_THAT(descriptor_.keep(1, {0, 1, 2, 3, 4, 6}),
              ElementsAre(TokenMove{1, 0, 3, 0}, TokenMove{1, 2, 3, 1}));
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 3));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1, 2));
  EXPECT_THAT(pool_.ref_counts().first(4), ElementsAre(2, 1, 1, 1));
}

TEST_F(Keep, NeedsPagesForWhatIsShared) {
  descriptor_.fork(1, 2);
  descriptor_.allocate({3}, {20});
  const auto before = state_of(descriptor_);
  EXPECT_THROW(descriptor_.keep(1, {1}), NoPageError);
  EXPECT_EQ(state_of(descriptor_), before);
  descriptor_.keep(1, {0, 1, 2});  // which writes nothing
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0));
}

TEST_F(Keep, ForgetsPositions) {
  descriptor_.keep(1, {2, 5});
  descriptor_.allocate({1}, {2});
  const auto before = state_of(descriptor_);
  EXPECT_THAT(error_of([&] { descriptor_.truncate(1, 9); }), HasSubstr("expected 10 to 12"));
  EXPECT_THROW(descriptor_.fork(1, 2, 2), InvalidArgumentError);
  EXPECT_EQ(state_of(descriptor_), before);
  descriptor_.fork(1, 2, 11);
  EXPECT_EQ(descriptor_.num_kv_tokens(2), 3);
  descriptor_.truncate(1, 10);
  EXPECT_EQ(descriptor_.num_kv_tokens(1), 2);
  descriptor_.keep(1, {1});
  EXPECT_EQ(descriptor_.length(1), 10);
  descriptor_.check_invariants();
}

TEST_F(Keep, OfAWindowTakesWhatIsAlive) {
  descriptor_.set_window(1, {.window = 4, .num_sink_tokens = 3});  // next: slots 0 1 2, 7 8 9
  const auto before = state_of(descriptor_);
  EXPECT_EQ(error_of([&] {
              descriptor_.keep(1, {0, 3});
            }),
            "token_indices: got 3 at entry 1; the window of 4 has left that token behind; expected "
            "one of the 3 sinks or from 7 on");
  EXPECT_THROW(descriptor_.keep(1, {6}), InvalidArgumentError);
  EXPECT_EQ(state_of(descriptor_), before);
  descriptor_.keep(1, {0, 2, 7, 9});
  EXPECT_EQ(descriptor_.window(1), (SlidingWindow{.window = 4, .num_sink_tokens = 2}));
  EXPECT_EQ(descriptor_.length(1), 10);
  descriptor_.allocate({1}, {20});
  descriptor_.allocate({1}, {1});
  EXPECT_EQ(descriptor_.length(1), 31);
  descriptor_.check_invariants();
}

TEST_F(Keep, RefusesWrongIndices) {
  const auto before = state_of(descriptor_);
  const auto refusal = [&](SeqId seq_id, const std::vector<std::int64_t>& indices) {
    return error_of([&] { descriptor_.keep(seq_id, indices); });
  };
  EXPECT_EQ(refusal(1, {9, 10}),
            "token_indices: got 10 at entry 1; expected 0 to 9, the tokens that are held");
  EXPECT_EQ(refusal(1, {7, 4}),
            "token_indices: got 4 at entry 1, behind 7; expected each token once, in ascending "
            "order");
  descriptor_.allocate({3}, {0});
  EXPECT_EQ(refusal(3, {0}),
            "token_indices: got 0 for a sequence that holds no tokens; expected none");
  descriptor_.release({3});
  for (const std::vector<std::int64_t>& wrong :
       std::vector<std::vector<std::int64_t>>{{-1}, {3, 3}, {4, 2}, {0, 1, 99}}) {
    EXPECT_THROW(descriptor_.keep(1, wrong), InvalidArgumentError);
  }
  EXPECT_THROW(descriptor_.keep(2, {}), UnknownSequenceError);
  EXPECT_EQ(state_of(descriptor_), before);
}

}  // namespace
}  // namespace seqattn
