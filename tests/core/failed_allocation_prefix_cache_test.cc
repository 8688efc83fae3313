#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <vector>

#include "descriptor_state.h"
#include "failing_allocations.h"
#include "prefix_cache_fixture.h"
#include "seqattn/error.h"

// Every call of a prefix cache with its first allocation failing, then with its second, and so on:
// each time all is as it was, and the same call works when it is made again.
namespace seqattn {
namespace {

using testing::FailingAllocations;
using testing::tokens;
using testing::Tokens;
using testing::operator+;

// A pool of 12 pages of 4 tokens, all in use but 2.
//   cached: 0..12 on pages 0 1 2, 0..4 40..48 behind page 0 on 3 4; salt "s": 0..4 on page 5
//   sequence 1: 60..75 on pages 6 7 8 9, not cached      sequence 2: pages 0 1, 6 tokens
struct World {
  World() {
    const auto store = [this](const Tokens& list, std::string_view salt) {
      const PrefixHandle handle = cache.match(list, salt);
      cache.attach(sequences, 9, handle);
      sequences.allocate({9}, {std::ssize(list) - handle.num_tokens()});
      cache.insert(sequences, 9, list, salt, {.priority = 1, .ttl = std::chrono::hours(1)});
      sequences.release({9});
    };
    store(tokens(0, 12), {});
    store(tokens(0, 4) + tokens(40, 8), {});
    store(tokens(0, 4), "s");
    sequences.allocate({1}, {15});
    cache.attach(sequences, 2, cache.pin(tokens(0, 8)));
    sequences.truncate(2, 6);
    cache.drain_events();
  }

  PagePool pool{12, 4};
  CacheDescriptor sequences{pool};
  PrefixCache cache{
      pool,
      {.clock = [] { return std::chrono::steady_clock::time_point(); }, .event_capacity = 64}};
};

// A cut through a node may stay, which changes nothing but how a run of pages is kept.
struct State {
  testing::DescriptorState sequences;
  std::vector<std::int64_t> counts;
  friend bool operator==(const State&, const State&) = default;
};

State state_of(World& world) {
  world.cache.check_invariants();
  world.sequences.check_invariants();
  const PrefixCacheStats s = world.cache.stats();
  return {testing::state_of(world.sequences),
          {s.num_pages, s.num_pinned_pages, s.num_salts, s.num_handles, s.num_matches, s.num_hits,
           s.num_tokens_asked, s.num_tokens_found, s.num_pages_stored, s.num_pages_evicted,
           s.num_events_lost}};
}

// In which order pages go, and what was told of it: read from a world that is used up by that.
std::vector<CacheEvent> end_of(World& world) {
  while (world.cache.evict(1) == 1) {
  }
  return world.cache.drain_events();
}

using Call = std::function<void(World&)>;

void make(const Call& call, World& world) {
  try {
    call(world);
  } catch (const Error&) {
  }
}

// Returns how many allocations the call makes, in worlds that have been prepared.
std::int64_t expect_all_or_nothing(
    const Call& call, const Call& prepare = [](World&) {}) {
  const auto new_world = [&] {
    auto world = std::make_unique<World>();
    prepare(*world);
    return world;
  };
  const auto first = new_world(), second = new_world();
  World &untouched = *first, &done = *second;
  const State before = state_of(untouched);
  make(call, done);
  const State after = state_of(done);
  const auto untouched_end = end_of(untouched), done_end = end_of(done);
  for (std::int64_t n = 1;; ++n) {
    const auto failed = new_world(), retried = new_world();
    bool threw = false;
    for (World* world : {failed.get(), retried.get()}) {
      const FailingAllocations failing(n);
      try {
        call(*world);
      } catch (const std::bad_alloc&) {
        threw = true;
      } catch (const Error&) {
        threw = true;
      }
    }
    if (!FailingAllocations::have_failed()) return n - 1;
    EXPECT_TRUE(threw) << "allocation " << n << " failed unnoticed";
    EXPECT_EQ(state_of(*failed), before) << "allocation " << n;
    EXPECT_EQ(end_of(*failed), untouched_end) << "allocation " << n;
    make(call, *retried);
    EXPECT_EQ(state_of(*retried), after) << "tried again after allocation " << n;
    EXPECT_EQ(end_of(*retried), done_end) << "tried again after allocation " << n;
    if (::testing::Test::HasFailure()) return n;
  }
}

TEST(FailedAllocationOfPrefixCache, InMatchChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.cache.match(tokens(0, 13)); }), 1);
  // One that ends inside a page, and splits a node for that.
  const Tokens inside = tokens(0, 4) + tokens(40, 3);
  EXPECT_GE(expect_all_or_nothing([&](World& w) { w.cache.match(inside); }), 6);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.cache.match(tokens(0, 4), "t"); }), 0);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.cache.pin(tokens(0, 4) + tokens(40, 4)); }), 6);
}

TEST(FailedAllocationOfPrefixCache, InAttachChangesNothing) {
  const auto attach = [](SeqId id) {
    return [id](World& w) { w.cache.attach(w.sequences, id, w.cache.pin(tokens(0, 12))); };
  };
  EXPECT_GE(expect_all_or_nothing(attach(3)), 3);
  EXPECT_GE(expect_all_or_nothing(attach(1)), 3);
}

TEST(FailedAllocationOfPrefixCache, InInsertChangesNothing) {
  const auto insert = [](Tokens list, std::string_view salt) {
    return [list = std::move(list), salt](World& w) { w.cache.insert(w.sequences, 1, list, salt); };
  };
  EXPECT_GE(expect_all_or_nothing(insert(tokens(60, 15), {})), 4);
  EXPECT_GE(expect_all_or_nothing(insert(tokens(60, 15), "s")), 4);
  EXPECT_GE(expect_all_or_nothing(insert(tokens(60, 15),
                                         "a salt that is new, and so long that it "
                                         "takes memory of its own")),
            7);
  // Behind the middle of a node, which is split; and all of it there already.
  EXPECT_GE(expect_all_or_nothing(insert(tokens(0, 4) + tokens(40, 4) + tokens(60, 4), {})), 10);
  EXPECT_GE(expect_all_or_nothing(insert(tokens(0, 4) + tokens(40, 4), {})), 5);
  EXPECT_GE(expect_all_or_nothing(insert(tokens(60, 16), {})), 1);
}

TEST(FailedAllocationOfPrefixCache, InAnInsertThatIsRefusedLateChangesNothing) {
  const auto twice = [](World& w) { w.cache.insert(w.sequences, 2, tokens(90, 4), "new"); };
  EXPECT_GE(expect_all_or_nothing(twice), 4);
}

TEST(FailedAllocationOfPrefixCache, InEvictionChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.cache.evict(3); }), 1);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.cache.evict(9); }), 2);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.cache.evict_expired(); }), 0);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.pool.allocate(4); }), 2);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.pool.allocate(9); }), 2);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.sequences.allocate({1, 4}, {1, 28}); }), 5);
}

TEST(FailedAllocationOfPrefixCache, InGivingUpSharesChangesNothing) {
  const auto window_over_a_cached_prefix = [](World& w) {
    w.sequences.release({2});
    w.cache.attach(w.sequences, 3, w.cache.pin(tokens(0, 12)));
    w.sequences.set_window(3, {.window = 4});
    w.sequences.allocate({3}, {1});
    w.cache.drain_events();
  };
  const Call take_all = [](World& w) { w.pool.allocate(6); };
  EXPECT_GE(expect_all_or_nothing(take_all, window_over_a_cached_prefix), 6);
  World world;
  window_over_a_cached_prefix(world);
  EXPECT_NO_THROW(take_all(world));
  const Call take_more = [](World& w) { w.pool.allocate(7); };
  EXPECT_GE(expect_all_or_nothing(take_more, window_over_a_cached_prefix), 6);
}

// What the cache gave up stays free, but no sequence has changed.
TEST(FailedAllocationOfPrefixCache, AfterItGavePagesUpLeavesSequencesAlone) {
  for (std::int64_t n = 1;; ++n) {
    World world;
    const auto before = testing::state_of(world.sequences).sequences;
    try {
      const FailingAllocations failing(n);
      world.sequences.allocate({1, 2, 4}, {1, 1, 16});
    } catch (const std::bad_alloc&) {
    }
    if (!FailingAllocations::have_failed()) {
      EXPECT_GE(n, 6);
      break;
    }
    world.cache.check_invariants();
    world.sequences.check_invariants();
    EXPECT_EQ(testing::state_of(world.sequences).sequences, before) << "allocation " << n;
    world.sequences.allocate({1, 2, 4}, {1, 1, 16});
    EXPECT_EQ(world.cache.stats().num_pages, 3);
  }
}

TEST(FailedAllocationOfPrefixCache, InClearChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.cache.clear(); }), 2);
  EXPECT_GE(expect_all_or_nothing([](World& w) {
              const PrefixHandle handle = w.cache.pin(tokens(0, 12));
              w.cache.clear();
            }),
            2);
}

TEST(FailedAllocationOfPrefixCache, InDrainEventsLosesNone) {
  World world;
  world.cache.match(tokens(0, 12));
  world.cache.evict(3);
  std::vector<CacheEvent> events;
  for (std::int64_t n = 1;; ++n) {
    const FailingAllocations failing(n);
    try {
      events = world.cache.drain_events();
      break;
    } catch (const std::bad_alloc&) {
    }
  }
  EXPECT_EQ(events.size(), 4u);
}

TEST(FailedAllocationOfPrefixCache, InTheConstructorLeavesThePoolAlone) {
  PagePool pool(8, 4);
  for (std::int64_t n = 1;; ++n) {
    const FailingAllocations failing(n);
    try {
      PrefixCache cache(pool, {.clock = {}, .event_capacity = 4});
      EXPECT_GE(n, 4);
      break;
    } catch (const std::bad_alloc&) {
      EXPECT_EQ(pool.reclaimer(), nullptr);
    }
  }
}

}  // namespace
}  // namespace seqattn
