#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

// Sliding windows: which pages go back to the pool when, and what is refused afterwards.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::state_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Window, DropsAPageWhenTheFirstNewQuerySeesNothingOfIt) {
  PagePool pool(16, 4);
  CacheDescriptor descriptor(pool, {.window = 6, .num_sink_tokens = 0});
  descriptor.allocate({1}, {9});  // pages 0 1 2; the query at 9 sees 4 to 9
  EXPECT_THAT(descriptor.pages(1), ElementsAre(0, 1, 2));
  descriptor.allocate({1}, {1});
  EXPECT_THAT(descriptor.pages(1), ElementsAre(1, 2));
  EXPECT_EQ(descriptor.length(1), 10);
  EXPECT_EQ(descriptor.num_kv_tokens(1), 6);
  EXPECT_EQ(descriptor.sequence(1).kept_from(), 4);
  descriptor.allocate({1}, {3});  // the query at 10 sees 5 to 10
  EXPECT_THAT(descriptor.pages(1), ElementsAre(1, 2, 3));
  descriptor.allocate({1}, {0});  // no query: nothing happens
  EXPECT_THAT(descriptor.pages(1), ElementsAre(1, 2, 3));
  descriptor.allocate({1}, {1});  // the query at 13 sees 8 to 13
  EXPECT_THAT(descriptor.pages(1), ElementsAre(2, 3));
  descriptor.check_invariants();
}

// At every boundary, of every window: what is held is what later queries see, and less than two
// pages more.
TEST(Window, HoldsWhatIsSeenAndLittleMore) {
  for (std::int64_t window = 1; window < 14; ++window) {
    for (std::int64_t num_sinks = 0; num_sinks < 10; ++num_sinks) {
      PagePool pool(64, 4);
      CacheDescriptor descriptor(pool, {.window = window, .num_sink_tokens = num_sinks});
      for (std::int64_t length = 1; length < 50; ++length) {
        descriptor.allocate({1}, {1});
        const SequenceData& data = descriptor.sequence(1);
        ASSERT_EQ(data.length, length);
        ASSERT_LE(data.dropped_to, std::max<std::int64_t>(0, length - window));
        ASSERT_TRUE(data.dropped_to == 0 || data.dropped_to > length - window - 4);
        const std::int64_t sink_pages = (num_sinks + 3) / 4;
        ASSERT_LT(descriptor.num_kv_tokens(1), 4 * sink_pages + window + 8);
        descriptor.check_invariants();
      }
    }
  }
}

TEST(Window, KeepsThePagesOfTheSinks) {
  PagePool pool(16, 4);
  CacheDescriptor descriptor(pool, {.window = 4, .num_sink_tokens = 5});
  descriptor.allocate({1}, {20});
  descriptor.allocate({1}, {1});
  EXPECT_THAT(descriptor.pages(1), ElementsAre(0, 1, 4, 5));
  EXPECT_THAT(pool.free_pages().front(), 6);
  EXPECT_EQ(descriptor.sequence(1).dropped_to, 16);
  EXPECT_EQ(descriptor.sequence(1).num_dropped, 8);
  EXPECT_EQ(descriptor.stats().num_dropped_tokens, 8);
  EXPECT_EQ(descriptor.stats().num_tokens, 13);
}

// What is given back serves the call itself, first in, first out.
TEST(Window, KeepsADecodeRunningInAFullPool) {
  PagePool pool(3, 2);
  CacheDescriptor descriptor(pool, {.window = 3, .num_sink_tokens = 0});
  descriptor.allocate({1}, {6});
  EXPECT_EQ(pool.available_pages_count(), 0);
  for (int i = 0; i < 40; ++i) {
    descriptor.allocate_decoding({1});
    descriptor.check_invariants();
  }
  EXPECT_EQ(descriptor.length(1), 46);
  const Admission admission = descriptor.try_allocate({2}, {99});
  EXPECT_FALSE(admission);
  EXPECT_EQ(admission.needed, 50);
}

TEST(Window, CountsPagesOfTheWholeBatch) {
  PagePool pool(4, 2);
  CacheDescriptor descriptor(pool);
  descriptor.allocate({1, 2}, {6, 2});
  descriptor.set_window(1, {.window = 1, .num_sink_tokens = 0});
  EXPECT_THAT(descriptor.pages(1), ElementsAre(0, 1, 2));  // until it grows
  const auto before = state_of(descriptor);
  const Admission refused = descriptor.try_allocate({2, 1}, {5, 1});  // 1 gives 3 pages back
  EXPECT_FALSE(refused);
  EXPECT_EQ(refused.needed, 4);
  EXPECT_EQ(refused.available, 3);
  EXPECT_EQ(state_of(descriptor), before);
  EXPECT_TRUE(descriptor.try_allocate({2, 1}, {4, 1}));
  EXPECT_THAT(descriptor.pages(2), ElementsAre(3, 0, 1));
  EXPECT_THAT(descriptor.pages(1), ElementsAre(2));
}

TEST(Window, DropsOnlyItsShareOfAPage) {
  PagePool pool(8, 2);
  CacheDescriptor descriptor(pool, {.window = 3, .num_sink_tokens = 0});
  descriptor.allocate({1}, {6});
  descriptor.fork(1, 2);
  descriptor.allocate({1}, {1});
  EXPECT_THAT(descriptor.pages(2), ElementsAre(0, 1, 2));
  EXPECT_THAT(pool.ref_counts().first(4), ElementsAre(1, 1, 2, 1));
  EXPECT_THAT(descriptor.pages(1), ElementsAre(2, 3));
  descriptor.release({2});
  EXPECT_EQ(pool.available_pages_count(), 6);
}

TEST(Window, OfARepeatedIdStaysWhatTheFirstQueryNeeds) {
  PagePool pool(16, 2);
  CacheDescriptor descriptor(pool, {.window = 2, .num_sink_tokens = 0});
  descriptor.allocate({1, 1}, {4, 6});
  EXPECT_EQ(descriptor.num_kv_tokens(1), 10);
  descriptor.allocate({1, 1}, {2, 2});  // both ask with what comes now: the first query at 10
  EXPECT_EQ(descriptor.sequence(1).dropped_to, 8);
}

class Windowed : public ::testing::Test {
 protected:
  // Sinks on pages 0 and 1, positions 0 to 7; then 16 to 29.
  Windowed() {
    descriptor_.allocate({1}, {26});
    descriptor_.allocate({1}, {4});
  }
  PagePool pool_{32, 4};
  CacheDescriptor descriptor_{pool_, {.window = 9, .num_sink_tokens = 6}};
};

TEST_F(Windowed, TruncatesToWhatIsHeld) {
  const std::int64_t first = descriptor_.sequence(1).dropped_to;
  ASSERT_EQ(first, 16);
  for (std::int64_t n = 0; n <= 30; ++n) {
    SCOPED_TRACE(n);
    const bool is_held = n <= 8 || n - 9 + 1 >= first;
    const auto before = state_of(descriptor_);
    if (!is_held) {
      EXPECT_THAT(error_of([&] { descriptor_.fork(1, 2, n); }),
                  HasSubstr("; expected 0 to 8, or 24 to 30"));
      EXPECT_THAT(error_of([&] { descriptor_.truncate(1, n); }), HasSubstr("has dropped"));
      EXPECT_EQ(state_of(descriptor_), before);
      continue;
    }
    descriptor_.fork(1, 2, n);
    EXPECT_EQ(descriptor_.length(2), n);
    EXPECT_EQ(descriptor_.num_kv_tokens(2), n <= 8 ? n : n - 8);
    EXPECT_EQ(descriptor_.window(2), descriptor_.window(1));
    descriptor_.check_invariants();
    descriptor_.fork(1, 3);
    descriptor_.truncate(3, n);
    EXPECT_EQ(state_of(descriptor_).sequences.at(3), state_of(descriptor_).sequences.at(2));
    descriptor_.allocate({2}, {5});
    descriptor_.check_invariants();
    descriptor_.release({2, 3});
    EXPECT_EQ(state_of(descriptor_).sequences, before.sequences);
  }
  EXPECT_THROW(descriptor_.truncate(1, 31), InvalidArgumentError);
}

TEST_F(Windowed, SaysWhereItCanEnd) {
  const auto refusal = [this](SeqId seq_id) {
    return error_of([&] { descriptor_.truncate(seq_id, 21); });
  };
  descriptor_.fork(1, 2);
  descriptor_.keep(1, {0, 1, 2, 15, 16, 17, 18, 19, 20, 21});  // no position in front any more
  EXPECT_THAT(refusal(1), HasSubstr("; expected 30"));
  descriptor_.set_window(2, {.window = 9, .num_sink_tokens = 0});
  descriptor_.allocate({2}, {9});  // the sinks' pages go too
  EXPECT_THAT(refusal(2), HasSubstr("; expected 0, or "));
  descriptor_.truncate(2, 0);
}

TEST_F(Windowed, TakesAWindowThatSeesWhatIsHeld) {
  const auto before = state_of(descriptor_);
  for (const SlidingWindow window : {SlidingWindow{0, 0}, {16, 6}, {9, 9}, {99, 0}}) {
    EXPECT_THAT(error_of([&] { descriptor_.set_window(1, window); }),
                HasSubstr("expected a window of at most 15 and at most 8 sinks"));
  }
  EXPECT_EQ(state_of(descriptor_), before);
  for (const SlidingWindow window : {SlidingWindow{15, 8}, {1, 0}, {3, 6}, {15, 6}}) {
    descriptor_.set_window(1, window);
    EXPECT_EQ(descriptor_.window(1), window);
    descriptor_.check_invariants();
  }
}

TEST_F(Windowed, LosesItsSinksWhenTheyAreNoneAnyMore) {
  descriptor_.set_window(1, {.window = 9, .num_sink_tokens = 3});
  descriptor_.allocate({1}, {1});
  EXPECT_EQ(descriptor_.pages(1).front(), 0);
  EXPECT_EQ(descriptor_.sequence(1).num_dropped, 16);
  descriptor_.set_window(1, {.window = 9, .num_sink_tokens = 0});
  descriptor_.allocate({1}, {1});
  EXPECT_EQ(pool_.ref_count(0), 0);
  descriptor_.check_invariants();
}

TEST_F(Windowed, IsAttachedAsItIs) {
  CacheDescriptor other(pool_);
  other.attach(7, descriptor_.sequence(1));
  EXPECT_EQ(state_of(other).sequences.at(7), state_of(descriptor_).sequences.at(1));
  other.allocate({7}, {20});
  other.check_invariants();
  SequenceData wrong = descriptor_.sequence(1);
  const auto before = state_of(other);
  for (const auto change : std::vector<void (*)(SequenceData&)>{
           [](SequenceData& d) { ++d.length; }, [](SequenceData& d) { d.last_page_len = 0; },
           [](SequenceData& d) { d.window = {}; }, [](SequenceData& d) { d.dropped_to = 0; },
           [](SequenceData& d) { d.dropped_to = 23; }, [](SequenceData& d) { d.num_dropped = 9; },
           [](SequenceData& d) { d.compacted_to = 31; },
           [](SequenceData& d) { d.num_dropped = 1, d.compacted_to = 6; },
           [](SequenceData& d) { d.tree_parents = {0}; }}) {
    SequenceData changed = wrong;
    change(changed);
    EXPECT_THROW(other.attach(8, changed), InvalidArgumentError);
  }
  EXPECT_EQ(state_of(other), before);
}

TEST_F(Windowed, IsPackedWithWhatBoundsItsKeys) {
  CacheDescriptor& descriptor = descriptor_;
  descriptor.allocate({2}, {3});
  descriptor.set_window(2, {});
  const auto packed = descriptor.pack_for_flashinfer({2, 1});
  EXPECT_THAT(packed.columns().windows, ElementsAre(RowWindow{}, RowWindow{.window = 9,
                                                                           .num_sink_tokens = 6,
                                                                           .num_dropped = 8,
                                                                           .first_query = 16}));
  EXPECT_THAT(descriptor.pack_for_flashinfer({2}).columns().windows, IsEmpty());
}

TEST(WindowArguments, AreChecked) {
  PagePool pool(4, 4);
  constexpr std::int64_t kTooMany = (std::int64_t{1} << 62) + 1;
  for (const SlidingWindow wrong : {SlidingWindow{-1, 0},
                                    {0, 1},
                                    {4, -1},
                                    {kTooMany, 0},
                                    {1, kTooMany},
                                    {std::numeric_limits<std::int64_t>::min(), 0}}) {
    EXPECT_THROW(CacheDescriptor(pool, wrong), InvalidArgumentError);
    CacheDescriptor descriptor(pool);
    descriptor.allocate({1}, {4});
    EXPECT_THROW(descriptor.set_window(1, wrong), InvalidArgumentError);
    EXPECT_EQ(descriptor.window(1), SlidingWindow());
  }
  CacheDescriptor descriptor(pool, {.window = 4, .num_sink_tokens = 1});
  EXPECT_THROW(descriptor.set_window(1, {}), UnknownSequenceError);
  EXPECT_THROW(descriptor.window(1), UnknownSequenceError);
  EXPECT_THAT(descriptor.to_string(), HasSubstr("window=4, num_sink_tokens=1"));
}

}  // namespace
}  // namespace seqattn
