#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <utility>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "prefix_cache_fixture.h"
#include "seqattn/error.h"

// What is found, shared and stored; which calls are refused.
namespace seqattn {
namespace {

using testing::error_of;
using testing::PrefixCacheTest;
using testing::state_of;
using testing::tokens;
using testing::Tokens;
using testing::operator+;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST_F(PrefixCacheTest, FindsNothingAtFirst) {
  const PrefixHandle handle = cache_.match(tokens(0, 9));
  EXPECT_FALSE(handle);
  EXPECT_EQ(handle.num_tokens(), 0);
  EXPECT_THAT(handle.pages(), IsEmpty());
  EXPECT_FALSE(cache_.match({}));
  EXPECT_EQ(cache_.stats().num_matches, 2);
  EXPECT_EQ(cache_.stats().num_hits, 0);
  EXPECT_EQ(cache_.stats().num_tokens_asked, 9);
}

TEST_F(PrefixCacheTest, FindsWhatAnotherSequenceLeft) {
  const auto pages = store(tokens(0, 8));
  const PrefixHandle handle = cache_.match(tokens(0, 12));
  EXPECT_TRUE(handle);
  EXPECT_EQ(handle.num_tokens(), 8);
  EXPECT_THAT(handle.pages(), ElementsAreArray(pages));
  EXPECT_EQ(cache_.stats().num_tokens_found, 8);
  EXPECT_EQ(cache_.stats().num_pinned_pages, 2);
}

TEST_F(PrefixCacheTest, LeavesOneTokenToCompute) {
  store(tokens(0, 8));
  EXPECT_EQ(cache_.match(tokens(0, 8)).num_tokens(), 7);
  EXPECT_EQ(cache_.match(tokens(0, 5)).num_tokens(), 4);
  EXPECT_EQ(cache_.match(tokens(0, 2)).num_tokens(), 1);
  EXPECT_EQ(cache_.match(tokens(0, 1)).num_tokens(), 0);
}

TEST_F(PrefixCacheTest, FindsEveryNumberOfTokens) {
  const auto pages = store(tokens(0, 12));
  for (std::int64_t n = 0; n <= 12; ++n) {
    const PrefixHandle handle = cache_.match(tokens(0, n) + tokens(100, 5));
    EXPECT_EQ(handle.num_tokens(), n);
    EXPECT_THAT(handle.pages(), ElementsAreArray(pages.begin(), pages.begin() + (n + 3) / 4));
  }
}

// Among continuations that part inside one page the one with most in common is found.
TEST_F(PrefixCacheTest, FindsTheLongestOfSeveralContinuations) {
  const auto a = store({1, 2, 3, 4, 5, 6, 7, 8});
  const auto b = store({1, 2, 3, 4, 5, 6, 9, 9});
  const auto c = store({1, 2, 3, 4, 5, 0, 0, 0});
  const auto found = [&](const Tokens& list) {
    const PrefixHandle handle = cache_.match(list);
    return std::pair(handle.num_tokens(), handle.pages().back());
  };
  EXPECT_EQ(found({1, 2, 3, 4, 5, 6, 9, 1, 1}), std::pair(std::int64_t{7}, b[1]));
  EXPECT_EQ(found({1, 2, 3, 4, 5, 6, 7, 1, 1}), std::pair(std::int64_t{7}, a[1]));
  EXPECT_EQ(found({1, 2, 3, 4, 5, 0, 1, 1, 1}), std::pair(std::int64_t{6}, c[1]));
  EXPECT_EQ(found({1, 2, 3, 4, -5, 0, 1, 1, 1}), std::pair(std::int64_t{4}, a[0]));
  EXPECT_EQ(found({1, 2, 3, -4, 5}), std::pair(std::int64_t{3}, a[0]));
}

TEST_F(PrefixCacheTest, AMatchInsideAPageIsCopiedWhenTheSequenceGrows) {
  const auto pages = store(tokens(0, 8));
  PrefixHandle handle = cache_.match(tokens(0, 6) + tokens(50, 4));
  cache_.attach(sequences_, 1, handle);
  handle.release();
  EXPECT_EQ(sequences_.length(1), 6);
  const auto copies = sequences_.allocate({1}, {4});
  EXPECT_THAT(copies, ElementsAre(PageCopy{pages[1], sequences_.pages(1)[1]}));
  EXPECT_EQ(sequences_.pages(1)[0], pages[0]);
  EXPECT_EQ(pool_.ref_count(pages[0]), 2);
  EXPECT_EQ(pool_.ref_count(pages[1]), 1);
}

TEST_F(PrefixCacheTest, StoresWholePagesOnly) {
  start(1, tokens(0, 11));
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 3)), 0);
  EXPECT_EQ(cache_.stats().num_salts, 0);
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 11)), 2);
  EXPECT_EQ(cache_.match(tokens(0, 11)).num_tokens(), 8);
  EXPECT_EQ(pool_.ref_count(sequences_.pages(1)[1]), 2);
  EXPECT_EQ(pool_.ref_count(sequences_.pages(1)[2]), 1);
}

TEST_F(PrefixCacheTest, WhatIsThereAlreadyStays) {
  const auto pages = store(tokens(0, 8));
  start(1, tokens(0, 12));
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 12)), 1);
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 12)), 0);
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 7)), 0);
  const auto own = sequences_.pages(1);
  EXPECT_THAT(cache_.match(tokens(0, 20)).pages(), ElementsAre(pages[0], pages[1], own[2]));
  EXPECT_EQ(pool_.ref_count(own[0]), 1);
  EXPECT_EQ(pool_.ref_count(own[2]), 2);
}

TEST_F(PrefixCacheTest, EqualPagesBehindDifferentPrefixesAreDifferentPages) {
  const auto a = store(tokens(0, 4) + tokens(50, 4));
  const auto b = store(tokens(20, 4) + tokens(50, 4));
  EXPECT_THAT(cache_.match(tokens(0, 4) + tokens(50, 5)).pages(), ElementsAreArray(a));
  EXPECT_THAT(cache_.match(tokens(20, 4) + tokens(50, 5)).pages(), ElementsAreArray(b));
  EXPECT_FALSE(cache_.match(tokens(50, 5)));
  EXPECT_EQ(cache_.stats().num_pages, 4);
}

TEST_F(PrefixCacheTest, SaltsNeverMeet) {
  store(tokens(0, 8), "a");
  EXPECT_FALSE(cache_.match(tokens(0, 9)));
  EXPECT_FALSE(cache_.match(tokens(0, 9), "b"));
  EXPECT_FALSE(cache_.match(tokens(0, 9), std::string_view("a\0", 2)));
  const auto pages = store(tokens(0, 8), "b");
  EXPECT_THAT(cache_.match(tokens(0, 9), "b").pages(), ElementsAreArray(pages));
  EXPECT_EQ(cache_.match(tokens(0, 9), "a").num_tokens(), 8);
  EXPECT_EQ(cache_.stats().num_salts, 2);
  cache_.evict(8);
  EXPECT_EQ(cache_.stats().num_salts, 0);
}

TEST_F(PrefixCacheTest, ASequenceMayStartOverNothing) {
  cache_.attach(sequences_, 1, cache_.match(tokens(0, 4)));
  EXPECT_EQ(sequences_.length(1), 0);
  sequences_.allocate({1}, {4});
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 4)), 1);
}

TEST_F(PrefixCacheTest, HandlesMove) {
  store(tokens(0, 8));
  store(tokens(20, 4));
  PrefixHandle a = cache_.match(tokens(0, 9));
  PrefixHandle b = std::move(a);
  EXPECT_FALSE(a);  // NOLINT(bugprone-use-after-move): moved handles are of nothing
  EXPECT_THAT(a.pages(), IsEmpty());
  EXPECT_EQ(b.num_tokens(), 8);
  EXPECT_EQ(cache_.stats().num_handles, 1);
  b = cache_.match(tokens(20, 5));
  EXPECT_EQ(cache_.stats().num_handles, 1);
  EXPECT_EQ(cache_.stats().num_pinned_pages, 1);
  a = std::move(b);
  EXPECT_EQ(a.num_tokens(), 4);
  a.release();
  a.release();
  EXPECT_EQ(cache_.stats().num_handles, 0);
  EXPECT_EQ(cache_.stats().num_pinned_pages, 0);
}

TEST_F(PrefixCacheTest, PinIsOfWholePagesAndNoUse) {
  const auto pages = store(tokens(0, 12));
  const PrefixHandle handle = cache_.pin(tokens(0, 11));
  EXPECT_EQ(handle.num_tokens(), 8);
  EXPECT_THAT(handle.pages(), ElementsAre(pages[0], pages[1]));
  EXPECT_EQ(cache_.pin(tokens(0, 12)).num_tokens(), 12);
  EXPECT_FALSE(cache_.pin(tokens(0, 3)));
  EXPECT_EQ(cache_.stats().num_matches, 0);
  EXPECT_EQ(cache_.stats().num_pinned_pages, 2);
}

// A handle of a node that is split later keeps both parts.
TEST_F(PrefixCacheTest, PinsSurviveSplits) {
  const auto pages = store(tokens(0, 16));
  PrefixHandle all = cache_.pin(tokens(0, 16));
  PrefixHandle half = cache_.pin(tokens(0, 8));
  EXPECT_EQ(cache_.stats().num_nodes, 2);
  EXPECT_EQ(cache_.stats().num_pinned_pages, 4);
  cache_.check_invariants();
  all.release();
  EXPECT_EQ(cache_.stats().num_pinned_pages, 2);
  EXPECT_EQ(cache_.evict(8), 2);
  EXPECT_THAT(half.pages(), ElementsAre(pages[0], pages[1]));
}

TEST_F(PrefixCacheTest, ClearDropsAllButWhatSequencesHold) {
  start(1, tokens(0, 8));
  cache_.insert(sequences_, 1, tokens(0, 8));
  store(tokens(20, 8), "salt");
  cache_.clear();
  EXPECT_EQ(pool_.available_pages_count(), 6);
  EXPECT_EQ(cache_.stats().num_pages, 0);
  EXPECT_EQ(cache_.stats().num_pages_evicted, 4);
  EXPECT_FALSE(cache_.match(tokens(0, 9)));
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 8)), 2);
}

TEST_F(PrefixCacheTest, ClearRefusesWhileHandlesLive) {
  store(tokens(0, 8));
  PrefixHandle handle = cache_.match(tokens(0, 9));
  const auto before = state_of(sequences_);
  EXPECT_EQ(error_of<PinnedError>([&] { cache_.clear(); }),
            "PrefixCache: got clear while 1 handles live; expected none: release them first");
  EXPECT_EQ(state_of(sequences_), before);
  EXPECT_EQ(cached(tokens(0, 8)), 8);
  handle.release();
  cache_.clear();
  EXPECT_EQ(pool_.available_pages_count(), 8);
}

TEST_F(PrefixCacheTest, RefusesInsertsThatCannotBeTrue) {
  start(1, tokens(0, 8));
  const auto before = state_of(sequences_);
  PagePool other_pool(8, 4);
  CacheDescriptor foreign(other_pool);
  foreign.allocate({1}, {8});
  EXPECT_THROW(cache_.insert(sequences_, 2, tokens(0, 4)), UnknownSequenceError);
  EXPECT_THAT(error_of([&] { cache_.insert(sequences_, 1, tokens(0, 9)); }),
              HasSubstr("got 9 for sequence 1 of length 8"));
  EXPECT_THAT(error_of([&] { cache_.insert(foreign, 1, tokens(0, 8)); }),
              HasSubstr("another pool"));
  EXPECT_THAT(error_of([&] {
                cache_.insert(sequences_, 1, tokens(0, 8), {},
                              {.priority = 0, .ttl = std::chrono::nanoseconds(0)});
              }),
              HasSubstr("ttl: got 0 ns"));
  EXPECT_EQ(state_of(sequences_), before);
  cache_.insert(sequences_, 1, tokens(0, 8));
  EXPECT_THAT(error_of([&] { cache_.insert(sequences_, 1, tokens(0, 8), "salt"); }),
              HasSubstr("page 0 at entry 0 of the sequence is cached already"));
  EXPECT_THAT(error_of([&] { cache_.insert(sequences_, 1, tokens(0, 4) + tokens(50, 4)); }),
              HasSubstr("page 1 at entry 1 of the sequence is cached already"));
  EXPECT_EQ(cache_.stats().num_pages, 2);
  EXPECT_EQ(cache_.stats().num_salts, 1);
}

// What a sequence shares of one salt's pages is not true for another that has the same tokens.
TEST_F(PrefixCacheTest, RefusesInsertsWhoseFirstPagesAreCachedElsewhere) {
  for (const std::string salt : {"a", "b"}) {
    start(1, tokens(0, 4));
    cache_.insert(sequences_, 1, tokens(0, 4), salt);
    sequences_.release({1});
  }
  cache_.attach(sequences_, 2, cache_.match(tokens(0, 5), "a"));
  sequences_.allocate({2}, {4});
  const auto before = state_of(sequences_);
  const auto stats = cache_.stats();
  for (const std::int64_t count : {4, 8}) {
    EXPECT_THAT(error_of([&] { cache_.insert(sequences_, 2, tokens(0, count), "b"); }),
                HasSubstr("page 0 at entry 0 of the sequence is cached already"));
  }
  EXPECT_EQ(state_of(sequences_), before);
  EXPECT_EQ(cache_.stats().num_pages, stats.num_pages);
  EXPECT_EQ(cache_.pin(tokens(0, 8), "b").num_tokens(), 4);
  EXPECT_EQ(cache_.insert(sequences_, 2, tokens(0, 8), "a"), 1);
  // Of its own pages the cache has not heard: it may know the tokens by others.
  start(3, tokens(0, 4));
  EXPECT_EQ(cache_.insert(sequences_, 3, tokens(0, 4), "b"), 0);
}

// Eight tokens held, of a sequence of eight; but the first four are gone and a tree is pending.
TEST_F(PrefixCacheTest, StoresNothingOfASequenceThatHasDroppedTokens) {
  start(1, tokens(0, 4));
  sequences_.set_window(1, {.window = 2});
  sequences_.allocate({1}, {4});
  sequences_.allocate({1}, {1});
  sequences_.allocate_tree(1, {-1, 0, 1, 2, 3, 4, 5, 6});
  ASSERT_LT(sequences_.pages(1).size(), 5u);
  EXPECT_THAT(error_of([&] { cache_.insert(sequences_, 1, tokens(0, 4)); }),
              HasSubstr("has dropped tokens"));
  start(2, tokens(20, 8));
  sequences_.keep(2, {0, 1, 2, 3, 6});
  EXPECT_THAT(error_of([&] { cache_.insert(sequences_, 2, tokens(20, 4)); }),
              HasSubstr("has dropped tokens"));
  EXPECT_EQ(cache_.stats().num_pages, 0);
}

TEST_F(PrefixCacheTest, StoresNoDraftTokens) {
  start(1, tokens(0, 6));
  sequences_.allocate_tree(1, {-1, 0, 1});
  EXPECT_THROW(cache_.insert(sequences_, 1, tokens(0, 8)), InvalidArgumentError);
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 6)), 1);
  sequences_.commit_tree(1, {0, 1});
  EXPECT_EQ(cache_.insert(sequences_, 1, tokens(0, 8)), 1);
  EXPECT_EQ(cache_.match(tokens(0, 9)).num_tokens(), 8);
}

// A sequence under a window starts over a cached prefix and gives its pages up as it grows.
TEST_F(PrefixCacheTest, ServesSequencesWithWindows) {
  store(tokens(0, 12));
  cache_.attach(sequences_, 1, cache_.match(tokens(0, 13)));
  sequences_.set_window(1, {.window = 2});
  sequences_.allocate({1}, {1});
  EXPECT_EQ(sequences_.length(1), 13);
  EXPECT_LT(sequences_.num_kv_tokens(1), 13);
  EXPECT_EQ(cached(tokens(0, 12)), 12);
  sequences_.allocate({1}, {4});
  EXPECT_EQ(cache_.evict(8), 3);
}

// A table that lists a page twice, as attach allows.
TEST_F(PrefixCacheTest, HoldsNoPageTwice) {
  start(1, tokens(0, 4));
  const PageId page = sequences_.pages(1)[0];
  sequences_.attach(2, {page, page}, 8);
  const std::string text =
      "insert: page 0 is listed twice by the sequence, at entry 0 and at entry 1";
  EXPECT_THAT(error_of([&] { cache_.insert(sequences_, 2, tokens(0, 8)); }), HasSubstr(text));
  EXPECT_EQ(cache_.stats().num_pages, 0);
  EXPECT_EQ(pool_.ref_count(page), 3);
  EXPECT_EQ(cache_.insert(sequences_, 2, tokens(0, 4)), 1);
  EXPECT_THAT(error_of([&] { cache_.insert(sequences_, 2, tokens(0, 8)); }), HasSubstr(text));
  EXPECT_EQ(cache_.stats().num_pages, 1);
}

TEST_F(PrefixCacheTest, RefusesAttachesThatCannotBeMeant) {
  store(tokens(0, 8));
  PagePool other_pool(8, 4);
  CacheDescriptor foreign(other_pool);
  PrefixCache other(other_pool);
  start(1, tokens(20, 4));
  const auto before = state_of(sequences_);
  PrefixHandle handle = cache_.match(tokens(0, 9));
  EXPECT_THROW(cache_.attach(sequences_, 1, handle), InvalidArgumentError);
  EXPECT_THAT(error_of([&] { cache_.attach(foreign, 1, handle); }), HasSubstr("another pool"));
  EXPECT_THAT(error_of([&] { other.attach(foreign, 1, handle); }), HasSubstr("another cache"));
  handle.release();
  EXPECT_THAT(error_of([&] { cache_.attach(sequences_, 2, handle); }), HasSubstr("released"));
  EXPECT_EQ(state_of(sequences_), before);
}

TEST_F(PrefixCacheTest, AFullPoolSaysWhatHoldsItsPages) {
  store(tokens(0, 8));
  const PrefixHandle pin = cache_.pin(tokens(0, 8));
  start(1, tokens(100, 24));
  const std::vector<SeqId> ids{1};
  const auto refusal = [&](const auto& call) { return error_of<NoPageError>(call); };
  const std::string text =
      "Need 1 pages but only 0 available, and the pool's reclaimer cannot free enough (a prefix "
      "cache keeps what sequences or handles hold): release or truncate sequences, or release "
      "handles; for sequences that grow, try_allocate reports this as a value";
  EXPECT_EQ(refusal([&] { sequences_.allocate_decoding(ids); }), text);
  EXPECT_EQ(refusal([&] { sequences_.allocate_tree(1, {-1}); }), text);
  EXPECT_EQ(refusal([&] { pool_.allocate(1); }), text);
  sequences_.fork(1, 2);
  EXPECT_EQ(refusal([&] { sequences_.keep(1, {1}); }), text);
}

TEST_F(PrefixCacheTest, IsTheReclaimerOfItsPoolAndOfNoOther) {
  EXPECT_EQ(pool_.reclaimer(), &cache_);
  EXPECT_THAT(error_of([&] { PrefixCache second(pool_); }), HasSubstr("has a reclaimer"));
  PagePool other_pool(4, 4);
  EXPECT_THROW(PrefixCache(other_pool, {.clock = {}, .event_capacity = -1}), InvalidArgumentError);
  EXPECT_EQ(other_pool.reclaimer(), nullptr);
  CacheDescriptor others(other_pool);
  {
    PrefixCache other(other_pool);
    others.allocate({1}, {8});
    other.insert(others, 1, tokens(0, 8));
    others.release({1});
    EXPECT_EQ(other_pool.available_pages_count(), 2);
    EXPECT_EQ(other.to_string(), "PrefixCache(num_pages=2, num_nodes=1, num_pinned_pages=0)");
  }
  EXPECT_EQ(other_pool.reclaimer(), nullptr);
  EXPECT_EQ(other_pool.available_pages_count(), 4);
}

// The destructor of one that is deep must not need a deep stack.
TEST(PrefixCacheDepth, IsBoundedByMemoryAlone) {
  constexpr std::int64_t kDepth = 100'000;
  PagePool pool(kDepth, 1);
  CacheDescriptor sequences(pool);
  PrefixCache cache(pool);
  sequences.allocate({1}, {kDepth});
  const Tokens all(kDepth, 7);
  for (std::int64_t n = 1; n <= 2000; ++n) {
    cache.insert(sequences, 1, std::span(all).first(static_cast<std::size_t>(n)));
  }
  EXPECT_EQ(cache.stats().num_nodes, 2000);
  cache.insert(sequences, 1, all);
  EXPECT_EQ(cache.match(all).num_tokens(), kDepth - 1);
  cache.check_invariants();
}

}  // namespace
}  // namespace seqattn
