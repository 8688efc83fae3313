#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
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
