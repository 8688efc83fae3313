#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "descriptor_state.h"
#include "prefix_cache_fixture.h"
#include "seqattn/error.h"

// What goes first when the pool is short, and what stays.
namespace seqattn {
namespace {

using testing::PrefixCacheTest;
using testing::state_of;
using testing::tokens;
using testing::Tokens;
using testing::operator+;
using std::chrono::seconds;
using ::testing::ElementsAre;

class PrefixCacheEviction : public PrefixCacheTest {};

TEST_F(PrefixCacheEviction, TakesTheLeastRecentlyUsedFirst) {
  const Tokens a = tokens(0, 8), b = tokens(20, 8), c = tokens(40, 8);
  for (const Tokens& list : {a, b, c}) store(list);
  cache_.match(a + tokens(90, 1));
  EXPECT_EQ(cache_.evict(2), 2);
  EXPECT_EQ(cached(b), 0);
  EXPECT_EQ(cache_.evict(1), 1);
  EXPECT_EQ(cached(c), 4);
  EXPECT_EQ(cached(a), 8);
}

TEST_F(PrefixCacheEviction, TakesWhatIsBehindBeforeWhatIsInFront) {
  const Tokens front = tokens(0, 4);
  store(front + tokens(20, 4));
  store(front + tokens(40, 4));
  cache_.evict(1);
  EXPECT_EQ(cached(front + tokens(20, 4)), 4);
  EXPECT_EQ(cached(front + tokens(40, 4)), 8);
  cache_.evict(1);
  EXPECT_EQ(cached(front + tokens(40, 4)), 4);
  EXPECT_EQ(cache_.evict(9), 1);
  EXPECT_EQ(pool_.available_pages_count(), 8);
}

TEST_F(PrefixCacheEviction, AnInsertIsAUse) {
  const Tokens a = tokens(0, 4), b = tokens(20, 4);
  store(a);
  store(b);
  store(a);
  cache_.evict(1);
  EXPECT_EQ(cached(a), 4);
  EXPECT_EQ(cached(b), 0);
}

// The part of a prefix that a match did not reach is as old as it was.
TEST_F(PrefixCacheEviction, AMatchIsAUseOfWhatItFoundOnly) {
  const Tokens a = tokens(0, 12), b = tokens(40, 4);
  store(a);
  store(b);
  cache_.match(tokens(0, 5) + tokens(90, 1));
  cache_.evict(1);
  EXPECT_EQ(cached(a), 8);
  EXPECT_EQ(cached(b), 4);
  cache_.evict(1);
  EXPECT_EQ(cached(a), 8);
  EXPECT_EQ(cached(b), 0);
}

TEST_F(PrefixCacheEviction, LowerPrioritiesGoFirst) {
  const Tokens a = tokens(0, 4), b = tokens(20, 4), c = tokens(40, 4);
  store(a, {}, {.priority = 1});
  store(b, {}, {.priority = -1});
  store(c);
  cache_.match(b + tokens(90, 1));
  cache_.evict(1);
  EXPECT_EQ(cached(b), 0);
  cache_.evict(1);
  EXPECT_EQ(cached(c), 0);
  EXPECT_EQ(cached(a), 4);
}

TEST_F(PrefixCacheEviction, APriorityIsRaisedAndNeverLowered) {
  const Tokens a = tokens(0, 8), b = tokens(20, 4);
  store(a);
  store(tokens(0, 4), {}, {.priority = 5});
  store(b, {}, {.priority = 3});
  store(a);
  cache_.evict(1);
  EXPECT_EQ(cached(a), 4);
  EXPECT_EQ(cached(b), 4);
  cache_.evict(1);
  EXPECT_EQ(cached(b), 0);
  EXPECT_EQ(cached(a), 4);
}

TEST_F(PrefixCacheEviction, PagesPastTheirTtlGoFirst) {
  const Tokens a = tokens(0, 4), b = tokens(20, 4), c = tokens(40, 4);
  store(a);
  store(b, {}, {.priority = 9, .ttl = seconds(10)});
  store(c, {}, {.priority = 9, .ttl = seconds(5)});
  now_ += seconds(10);
  cache_.evict(1);
  EXPECT_EQ(cached(c), 0);
  cache_.evict(1);
  EXPECT_EQ(cached(b), 0);
  EXPECT_EQ(cached(a), 4);
}

TEST_F(PrefixCacheEviction, AUseRenewsTheTtl) {
  const Tokens a = tokens(0, 4), b = tokens(20, 4);
  store(a, {}, {.priority = 0, .ttl = seconds(10)});
  store(b, {}, {.priority = 0, .ttl = seconds(10)});
  now_ += seconds(9);
  cache_.match(a + tokens(90, 1));
  EXPECT_EQ(cache_.evict_expired(), 0);
  now_ += seconds(1);
  EXPECT_EQ(cache_.evict_expired(), 1);
  EXPECT_EQ(cached(b), 0);
  now_ += seconds(100);
  store(a);  // for ever, from now on
  now_ += seconds(100);
  EXPECT_EQ(cache_.evict_expired(), 0);
  EXPECT_EQ(cached(a), 4);
}

TEST_F(PrefixCacheEviction, AClockMayBeginBelowZero) {
  now_ -= seconds(100);
  store(tokens(0, 4), {}, {.priority = 0, .ttl = seconds(10)});
  store(tokens(20, 4));
  now_ += seconds(10);
  EXPECT_EQ(cache_.evict_expired(), 1);
  EXPECT_EQ(cached(tokens(20, 4)), 4);
}

TEST_F(PrefixCacheEviction, EvictExpiredTakesWholePrefixes) {
  store(tokens(0, 4) + tokens(20, 4), {}, {.priority = 0, .ttl = seconds(1)});
  store(tokens(0, 4) + tokens(40, 8), {}, {.priority = 0, .ttl = seconds(2)});
  now_ += seconds(1);
  EXPECT_EQ(cache_.evict_expired(), 1);
  now_ += seconds(1);
  EXPECT_EQ(cache_.evict_expired(), 3);
}

TEST_F(PrefixCacheEviction, PinnedPagesAndWhatLeadsToThemStay) {
  store(tokens(0, 4) + tokens(20, 4));
  store(tokens(0, 4) + tokens(40, 4));
  PrefixHandle handle = cache_.match(tokens(0, 4) + tokens(20, 5));
  EXPECT_EQ(cache_.evict(8), 1);
  EXPECT_EQ(cache_.stats().num_pages, 2);
  handle.release();
  EXPECT_EQ(cache_.evict(8), 2);
}

TEST_F(PrefixCacheEviction, PagesThatSequencesHoldStay) {
  store(tokens(0, 12));
  cache_.attach(sequences_, 1, cache_.match(tokens(0, 6)));
  EXPECT_EQ(cache_.evict(8), 1);
  EXPECT_EQ(cached(tokens(0, 12)), 8);
  sequences_.release({1});
  EXPECT_EQ(cache_.evict(8), 2);
}

// A sequence that computed the same tokens itself holds no page of the front.
TEST_F(PrefixCacheEviction, WhatLeadsToPagesInUseStays) {
  store(tokens(0, 4));
  start(1, tokens(0, 8));
  cache_.insert(sequences_, 1, tokens(0, 8));
  EXPECT_EQ(cache_.evict(8), 0);
  EXPECT_EQ(cached(tokens(0, 8)), 8);
  sequences_.release({1});
  EXPECT_EQ(cache_.evict(8), 2);
}

TEST_F(PrefixCacheEviction, BeingInUseIsAUse) {
  const Tokens a = tokens(0, 4), b = tokens(20, 4), c = tokens(40, 4);
  for (const Tokens& list : {a, b, c}) store(list);
  cache_.attach(sequences_, 1, cache_.pin(a));
  EXPECT_EQ(cache_.evict(1), 1);
  EXPECT_EQ(cached(b), 0);
  sequences_.release({1});
  EXPECT_EQ(cache_.evict(1), 1);
  EXPECT_EQ(cached(c), 0);
  EXPECT_EQ(cached(a), 4);
}

TEST_F(PrefixCacheEviction, ThePoolIsServedInTheSameTransaction) {
  store(tokens(0, 16));
  start(1, tokens(50, 12));
  EXPECT_EQ(pool_.available_pages_count(), 1);
  sequences_.allocate({1}, {8});
  EXPECT_EQ(cached(tokens(0, 16)), 12);
  EXPECT_EQ(pool_.allocate(2).size(), 2u);
  EXPECT_EQ(cached(tokens(0, 16)), 4);
  EXPECT_EQ(cache_.stats().num_pages_evicted, 3);
}

TEST_F(PrefixCacheEviction, AReclaimOfTooMuchChangesNothing) {
  const Tokens a = tokens(0, 8), b = tokens(20, 8), c = tokens(40, 4);
  store(a);
  store(b);
  start(1, c);
  cache_.insert(sequences_, 1, c);
  const PrefixHandle handle = cache_.pin(tokens(0, 4));
  const auto before = state_of(sequences_);
  EXPECT_FALSE(cache_.reclaim(4));
  EXPECT_FALSE(sequences_.try_allocate({2}, {28}));
  EXPECT_THROW(sequences_.allocate({1}, {28}), NoPageError);
  EXPECT_EQ(state_of(sequences_), before);
  cache_.check_invariants();
  // The order of eviction is what it was as well: a, b, and never c.
  cache_.evict(1);
  EXPECT_EQ(cached(a), 4);
  EXPECT_TRUE(cache_.reclaim(2));
  EXPECT_EQ(cached(b), 0);
  EXPECT_FALSE(cache_.reclaim(1));
  EXPECT_TRUE(cache_.reclaim(0));
}

// Two requests find the same prefix while a third makes the pool short.
TEST_F(PrefixCacheEviction, WhatWasFoundCannotBeStolen) {
  const auto pages = store(tokens(0, 8));
  store(tokens(20, 8));
  PrefixHandle first = cache_.match(tokens(0, 8) + tokens(50, 1));
  PrefixHandle second = cache_.match(tokens(0, 7) + tokens(60, 1));
  EXPECT_FALSE(sequences_.try_allocate({3}, {28}));
  EXPECT_TRUE(sequences_.try_allocate({3}, {24}));
  EXPECT_EQ(cached(tokens(20, 8)), 0);
  EXPECT_EQ(pool_.available_pages_count(), 0);
  cache_.attach(sequences_, 1, first);
  cache_.attach(sequences_, 2, second);
  first.release();
  second.release();
  EXPECT_FALSE(sequences_.try_allocate({1}, {1}));
  EXPECT_THAT(sequences_.pages(1), ElementsAre(pages[0], pages[1]));
  sequences_.release({3});
  const auto copies = sequences_.allocate({1, 2}, {1, 1});
  EXPECT_THAT(copies, ElementsAre(PageCopy{pages[1], sequences_.pages(2)[1]}));
  EXPECT_EQ(cached(tokens(0, 8)), 8);
}

// What the window has left behind is the cache's alone by then, though pages behind it are not.
TEST_F(PrefixCacheEviction, AWindowedSequenceOverACachedPromptGrowsInAFullPool) {
  store(tokens(0, 28));
  cache_.attach(sequences_, 1, cache_.pin(tokens(0, 28)));
  sequences_.set_window(1, {.window = 8});
  for (int i = 0; i < 40; ++i) ASSERT_TRUE(sequences_.try_allocate({1}, {1})) << i;
  EXPECT_EQ(sequences_.length(1), 68);
  EXPECT_LE(sequences_.pages(1).size(), 3u);
}

TEST_F(PrefixCacheEviction, SharesGoOnlyWherePagesInFrontBecomeFree) {
  const Tokens a = tokens(0, 12), b = tokens(20, 8);
  store(a);
  cache_.attach(sequences_, 1, cache_.pin(a));
  sequences_.set_window(1, {.window = 4});
  start(2, b);  // in use to the front
  cache_.insert(sequences_, 2, b);
  sequences_.allocate({1}, {4});
  start(3, tokens(60, 8));
  EXPECT_EQ(pool_.available_pages_count(), 0);
  EXPECT_EQ(cache_.evict(8), 0);  // which is not so urgent
  EXPECT_EQ(cached(a), 12);
  sequences_.allocate({2}, {1});
  EXPECT_EQ(cached(a), 4);
  EXPECT_EQ(cached(b), 8);
}

// Three ends in use: before that of `a` there is a page of nobody's, but that of `b` is behind it
// too, and that of `c` does.
TEST_F(PrefixCacheEviction, SharesThatLeadToNothingAfterAllStay) {
  const Tokens a = tokens(0, 4) + tokens(20, 4), c = tokens(60, 8),
               b = tokens(0, 4) + tokens(40, 4);
  for (const Tokens& list : {a, c, b}) store(list);
  SeqId id = 1;
  for (const Tokens& list : {a, c, b}) {
    cache_.attach(sequences_, id, cache_.pin(list));
    sequences_.set_window(id, {.window = 4});
    sequences_.allocate({id++}, {1});
  }
  EXPECT_EQ(pool_.available_pages_count(), 0);
  pool_.unref(pool_.allocate(1));
  EXPECT_EQ(cached(a), 8);
  EXPECT_EQ(cached(b), 8);
  EXPECT_EQ(cached(c), 0);
  EXPECT_EQ(cache_.evict(8), 0);
  pool_.unref(pool_.allocate(2));
  EXPECT_EQ(cached(a) + cached(b), 0);
}

TEST_F(PrefixCacheEviction, SharesThatLeadToTooLittleStay) {
  const Tokens a = tokens(0, 12);
  store(a);
  cache_.attach(sequences_, 1, cache_.pin(a));
  sequences_.set_window(1, {.window = 4});
  sequences_.allocate({1}, {12});
  EXPECT_EQ(pool_.available_pages_count(), 2);
  const auto before = state_of(sequences_);
  EXPECT_FALSE(sequences_.try_allocate({2}, {20}));
  EXPECT_EQ(state_of(sequences_), before);
  EXPECT_EQ(cached(a), 12);
  EXPECT_TRUE(sequences_.try_allocate({2}, {16}));
  EXPECT_EQ(cached(a), 0);
}

// The page would be copied for the cache's sake alone.
TEST_F(PrefixCacheEviction, ASharedPageIsNotCopiedWhenThePoolIsFull) {
  store(tokens(0, 32));
  cache_.attach(sequences_, 1, cache_.pin(tokens(0, 32)));
  sequences_.truncate(1, 30);
  EXPECT_TRUE(sequences_.allocate({1}, {1}).empty());
  EXPECT_EQ(cached(tokens(0, 32)), 28);
  EXPECT_FALSE(sequences_.try_allocate({1}, {2}));
}

TEST_F(PrefixCacheEviction, KeepTakesWhatTheCacheHoldsOfItsPagesInAFullPool) {
  store(tokens(0, 32));
  cache_.attach(sequences_, 1, cache_.pin(tokens(0, 32)));
  std::vector<std::int64_t> kept(31);
  std::iota(kept.begin(), kept.end(), 1);
  sequences_.keep(1, kept);
  EXPECT_EQ(sequences_.num_kv_tokens(1), 31);
  EXPECT_EQ(cached(tokens(0, 32)), 0);
}

TEST_F(PrefixCacheEviction, RefusesANegativeNumber) {
  EXPECT_THROW(cache_.evict(-1), InvalidArgumentError);
}

}  // namespace
}  // namespace seqattn
