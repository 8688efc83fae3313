#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <optional>
#include <vector>

#include "prefix_cache_fixture.h"
#include "seqattn/error.h"

// What the cache tells of itself.
namespace seqattn {
namespace {

using testing::PrefixCacheTest;
using testing::tokens;
using testing::operator+;
using Kind = CacheEvent::Kind;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class PrefixCacheEvents : public PrefixCacheTest {
 protected:
  static CacheEvent stored(std::int64_t number, std::int64_t block, std::int64_t parent,
                           std::vector<TokenId> list, std::string salt = {}) {
    return {Kind::kStored, number, std::move(salt), block, parent, 0, std::move(list)};
  }
  static CacheEvent hit(std::int64_t number, std::int64_t block, std::int64_t num_tokens) {
    return {Kind::kHit, number, {}, block, 0, num_tokens, {}};
  }
  static CacheEvent evicted(std::int64_t number, std::int64_t block, std::string salt = {}) {
    return {Kind::kEvicted, number, std::move(salt), block, 0, 0, {}};
  }
};

TEST_F(PrefixCacheEvents, TellWhatIsThere) {
  store(tokens(0, 8));
  cache_.match(tokens(0, 7));
  store(tokens(0, 4) + tokens(20, 4));
  store(tokens(0, 4), "salt");
  cache_.match(tokens(90, 4));
  EXPECT_THAT(
      cache_.drain_events(),
      ElementsAre(stored(0, 1, 0, tokens(0, 4)), stored(1, 2, 1, tokens(4, 4)), hit(2, 2, 6),
                  stored(3, 3, 1, tokens(20, 4)), stored(4, 4, 0, tokens(0, 4), "salt")));
  EXPECT_THAT(cache_.drain_events(), IsEmpty());
  cache_.evict(2);
  EXPECT_THAT(cache_.drain_events(), ElementsAre(evicted(5, 2), evicted(6, 3)));
  cache_.evict(8);
  EXPECT_THAT(cache_.drain_events(), ElementsAre(evicted(7, 1), evicted(8, 4, "salt")));
}

TEST_F(PrefixCacheEvents, NameTheLastPageFirst) {
  store(tokens(0, 16));
  cache_.evict(3);
  const auto events = cache_.drain_events();
  ASSERT_THAT(events, SizeIs(7));
  EXPECT_THAT(std::vector(events.begin() + 4, events.end()),
              ElementsAre(evicted(4, 4), evicted(5, 3), evicted(6, 2)));
}

TEST_F(PrefixCacheEvents, BlocksKeepTheirIdsWhenNodesAreSplit) {
  store(tokens(0, 12));
  cache_.match(tokens(0, 5));
  store(tokens(0, 4) + tokens(20, 4));
  cache_.drain_events();
  cache_.match(tokens(0, 12) + tokens(90, 1));
  cache_.match(tokens(0, 4) + tokens(20, 5));
  EXPECT_THAT(cache_.drain_events(), ElementsAre(hit(5, 3, 12), hit(6, 4, 8)));
}

TEST_F(PrefixCacheEvents, ClearIsOneEvent) {
  store(tokens(0, 8), "salt");
  cache_.drain_events();
  cache_.clear();
  store(tokens(0, 4));
  EXPECT_THAT(cache_.drain_events(), ElementsAre(CacheEvent{Kind::kCleared, 2, {}, 0, 0, 0, {}},
                                                 stored(3, 3, 0, tokens(0, 4))));
}

TEST_F(PrefixCacheEvents, PastTheCapacityTheOldestAreLost) {
  store(tokens(0, 8));
  for (int i = 0; i < 70; ++i) cache_.match(tokens(0, 9));
  const auto events = cache_.drain_events();
  ASSERT_THAT(events, SizeIs(64));
  EXPECT_EQ(events.front(), hit(8, 2, 8));
  EXPECT_EQ(events.back(), hit(71, 2, 8));
  EXPECT_EQ(cache_.stats().num_events_lost, 8);
}

TEST(PrefixCacheWithTooManyEvents, SaysHowMuchMemoryTheyNeed) {
#ifdef SEQATTN_SANITIZE
  GTEST_SKIP() << "sanitizers end the process where memory is short";
#endif
  PagePool pool(1, 1 << 20);
  try {
    const PrefixCache cache(pool, {.clock = {}, .event_capacity = std::int64_t{1} << 31});
    ADD_FAILURE() << "threw nothing";
  } catch (const OutOfMemoryError& error) {
    EXPECT_THAT(error.what(), ::testing::StartsWith(
                                  "PrefixCache: no memory for 9007302333956096 bytes of 2147483648 "
                                  "events; expected an event_capacity that fits"));
  }
  EXPECT_EQ(pool.reclaimer(), nullptr);
}

TEST(PrefixCacheWithoutEvents, KeepsNone) {
  PagePool pool(4, 4);
  CacheDescriptor sequences(pool);
  PrefixCache cache(pool);
  sequences.allocate({1}, {8});
  cache.insert(sequences, 1, tokens(0, 8));
  cache.match(tokens(0, 8));
  sequences.release({1});
  cache.evict(1);
  cache.clear();
  EXPECT_THAT(cache.drain_events(), IsEmpty());
  EXPECT_EQ(cache.stats().num_events_lost, 0);
}

}  // namespace
}  // namespace seqattn
