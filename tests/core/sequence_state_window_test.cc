#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "error_text.h"
#include "random_source.h"
#include "saved_cache.h"
#include "seqattn/batch_attention.h"
#include "seqattn/error.h"
#include "seqattn/sequence_state.h"

// Saved sequences whose tokens were dropped: by a window, by keep, by one after the other.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::SavedCache;
using ::testing::HasSubstr;

KVCacheConfig config_of(int page_size) {
  return {.num_pages = 64,
          .page_size = page_size,
          .num_heads = 1,
          .head_dim = 16,
          .num_layers = 2,
          .dtype = DType::kFloat32};
}

class SequenceStateWindow : public ::testing::Test {
 protected:
  // Appends tokens of [-1, 1), in both layers, to the sequences of that id of all caches.
  void append(const std::vector<SavedCache*>& caches, std::int64_t count) {
    const auto keys = testing::random_tensor(random_, DType::kFloat32, {count, 1, 16});
    const auto values = testing::random_tensor(random_, DType::kFloat32, {count, 1, 16});
    for (SavedCache* const cache : caches) {
      cache->descriptor.allocate({1}, {count});
      const auto packed = cache->descriptor.pack_for_flashinfer({1});
      const std::vector<std::int32_t> indptr{0, static_cast<std::int32_t>(count)};
      for (int layer = 0; layer < 2; ++layer) {
        cache->manager.append_kv(keys.view(), values.view(), packed, indptr, layer);
      }
    }
  }

  // What a query behind the last token sees, for the caches' sequences to agree on.
  static std::vector<float> attend(SavedCache& cache, const HostTensor& q) {
    BatchAttention attention(cache.manager, {.num_qo_heads = 2});
    attention.plan(cache.descriptor.pack_for_flashinfer({1}), {0, 1});
    const HostTensor out(DType::kFloat32, {1, 2, 16});
    attention.run(q.view(), out.view(), {}, 1);
    return out.values();
  }

  // Saves, restores into pages of every size, and lets both go on side by side.
  void expect_same_future(SavedCache& from) {
    for (const int page_size : {1, 3, 4, 16}) {
      SavedCache to(config_of(page_size));
      const auto state = save_sequence(from.descriptor, 1);
      const SequenceStateInfo info = restore_sequence(to.descriptor, 1, state);
      EXPECT_EQ(info, sequence_state_info(from.descriptor, 1));
      EXPECT_EQ(save_sequence(to.descriptor, 1), state) << "pages of " << page_size;
      EXPECT_EQ(to.bits(1), from.bits(1));
      to.descriptor.check_invariants();

      // A twin in a pool like the first one's, so that the first stays for other page sizes.
      SavedCache twin(from.manager.config());
      restore_sequence(twin.descriptor, 1, state);
      for (int step = 0; step < 12; ++step) {
        append({&twin, &to}, step % 3 + 1);
        const auto q = testing::random_tensor(random_, DType::kFloat32, {1, 2, 16});
        const auto expected = attend(twin, q), got = attend(to, q);
        for (std::size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], expected[i], 1e-5);
        EXPECT_EQ(to.descriptor.length(1), twin.descriptor.length(1));
        to.descriptor.check_invariants();
      }
    }
  }

  std::mt19937_64 random_ = testing::random_source(4501);
};

// Appends tokens whose keys are their positions.
void append_positions(SavedCache& cache, std::int64_t count) {
  const std::int64_t first = cache.descriptor.contains(1) ? cache.descriptor.length(1) : 0;
  cache.descriptor.allocate({1}, {count});
  HostTensor keys(DType::kFloat32, {count, 1, 16});
  for (std::int64_t i = 0; i < count * 16; ++i) keys.set(i, static_cast<float>(first + i / 16));
  const auto packed = cache.descriptor.pack_for_flashinfer({1});
  cache.manager.append_kv(keys.view(), keys.view(), packed, {0, static_cast<std::int32_t>(count)});
}

// A sequence ends at any position that it can, or is refused to; where it ends, its next token sees
// the sinks and what stands in front of it, and nothing else in their place.
void expect_forks_to_hold_their_window(SavedCache& cache) {
  CacheDescriptor& descriptor = cache.descriptor;
  const auto [window, num_sinks] = descriptor.window(1);
  const std::int64_t length = descriptor.length(1);
  int num_forks = 0;
  for (std::int64_t n = 0; n <= length; ++n) {
    try {
      descriptor.fork(1, 2, n);
    } catch (const InvalidArgumentError&) {
      const std::int64_t least = descriptor.sequence(1).kept_from() + window - 1;
      EXPECT_LT(n, least) << "of length " << length;
      continue;
    }
    ++num_forks;
    const std::int64_t held = descriptor.num_kv_tokens(2);
    const HostTensor keys(DType::kFloat32, {held, 1, 16}), values(DType::kFloat32, {held, 1, 16});
    cache.manager.read_kv(descriptor.pages(2), 0, held, keys.view(), values.view());
    const auto got = keys.values();
    for (std::int64_t i = 0; i < std::min(num_sinks, n); ++i) EXPECT_EQ(got[i * 16], i);
    for (std::int64_t i = 1; i < std::min(window, n + 1); ++i) {
      ASSERT_EQ(got[(held - i) * 16], n - i) << "in a fork at " << n << " of " << length;
    }
    descriptor.check_invariants();
    descriptor.release({2});
  }
  EXPECT_GT(num_forks, 0);
}

TEST_F(SequenceStateWindow, EndsWhereItCanWhateverPagesItCameFrom) {
  for (const int from_size : {1, 3, 4, 16}) {
    for (const int to_size : {1, 4, 5, 16}) {
      for (const SlidingWindow window : {SlidingWindow{.window = 4, .num_sink_tokens = 1},
                                         SlidingWindow{.window = 6, .num_sink_tokens = 0},
                                         SlidingWindow{.window = 3, .num_sink_tokens = 5}}) {
        SCOPED_TRACE(std::to_string(from_size) + " to " + std::to_string(to_size));
        SavedCache from(config_of(from_size)), to(config_of(to_size));
        from.descriptor.allocate({1}, {0});
        from.descriptor.set_window(1, window);
        append_positions(from, 35);
        append_positions(from, 1);
        restore_sequence(to.descriptor, 1, save_sequence(from.descriptor, 1));
        for (const std::int64_t count : {1, 2, 17, 1, 1, 5, 9, 1}) {
          append_positions(to, count);
          to.descriptor.check_invariants();
          expect_forks_to_hold_their_window(to);
        }
        // Sinks that are gone are not to be had again.
        const auto more = static_cast<std::int64_t>(
            std::max<std::int64_t>(to.descriptor.sequence(1).num_in_front, 0) + 1);
        if (to.descriptor.sequence(1).dropped_to > 0) {
          EXPECT_THROW(to.descriptor.set_window(1, {window.window, more}), InvalidArgumentError);
        }
      }
    }
  }
}

TEST_F(SequenceStateWindow, GoesOnBehindAWindow) {
  for (const SlidingWindow window : {SlidingWindow{.window = 6, .num_sink_tokens = 0},
                                     SlidingWindow{.window = 7, .num_sink_tokens = 2},
                                     SlidingWindow{.window = 5, .num_sink_tokens = 6}}) {
    SavedCache from(config_of(4));
    from.descriptor.allocate({1}, {0});
    from.descriptor.set_window(1, window);
    for (int step = 0; step < 20; ++step) {
      append({&from}, step % 4 + 1);
      if (step % 5 == 4) expect_same_future(from);
    }
    EXPECT_LT(from.descriptor.num_kv_tokens(1), from.descriptor.length(1));
    EXPECT_EQ(sequence_state_info(from.descriptor, 1).window, window);
  }
}

TEST_F(SequenceStateWindow, GoesOnBehindKeep) {
  SavedCache from(config_of(4));
  append({&from}, 23);
  from.descriptor.keep(1, {0, 1, 5, 9, 10, 11, 17, 20, 22});
  expect_same_future(from);
  append({&from}, 9);
  from.descriptor.set_window(1, {.window = 4, .num_sink_tokens = 3});
  append({&from}, 9);
  expect_same_future(from);
}

TEST_F(SequenceStateWindow, IsTheSequencesAndNotTheDescriptors) {
  SavedCache from(config_of(4));
  append({&from}, 9);
  PagedKVCacheManager manager(config_of(4));
  CacheDescriptor windowed(manager, {.window = 3, .num_sink_tokens = 1});
  restore_sequence(windowed, 1, save_sequence(from.descriptor, 1));
  EXPECT_EQ(windowed.sequence(1).window, SlidingWindow{});
}

TEST_F(SequenceStateWindow, ATreeHasToEndFirst) {
  SavedCache cache(config_of(4));
  append({&cache}, 9);
  cache.descriptor.allocate_tree(1, {-1, 0, 0});
  EXPECT_THAT(error_of([&] { save_sequence(cache.descriptor, 1); }),
              HasSubstr("sequence 1 has a pending tree of 3 draft tokens; expected none"));
  cache.descriptor.truncate(1, 9);
  save_sequence(cache.descriptor, 1);
}

}  // namespace
}  // namespace seqattn
