#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "conformance_suite.h"
#include "error_text.h"
#include "living_sequences.h"

// Sequences with a sliding window and sinks: what their queries see, token by token, while the
// pages behind the window go back to the pool.
namespace seqattn::testing {
namespace {

std::vector<AttentionCase> window_cases() {
  std::vector<AttentionCase> cases;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    for (const int page_size : {1, 4, 7}) {
      for (const bool causal : {true, false}) {
        AttentionCase c;
        c.name = std::string(to_string(dtype)) + "_" + std::to_string(page_size) +
                 (causal ? "_causal" : "_not_causal");
        c.kv_dtype = dtype;
        c.kv_layout = causal ? KVLayout::kHND : KVLayout::kNHD;
        c.page_size = page_size;
        c.causal = causal;
        c.head_dim = 16;
        c.head_dim_v = 9;
        cases.push_back(c);
      }
    }
  }
  return cases;
}

class Windows : public ConformanceSuite {
 protected:
  LivingSequences sequences(std::int64_t num_tokens, SlidingWindow window) {
    return {c, device(), num_tokens / c.page_size + 1, random, window};
  }
  void prepare() override { c = attention_case(); }
  AttentionCase c;
};

// In a pool that holds little more than the window.
TEST_P(Windows, KeepADecodeRunningInAFullPool) {
  for (const std::int64_t num_sinks : {0, 1, 4, 9}) {
    const std::int64_t sink_pages = (num_sinks + c.page_size - 1) / c.page_size;
    LivingSequences world = sequences((sink_pages + 3) * c.page_size + 13,
                                      {.window = 13, .num_sink_tokens = num_sinks});
    for (int i = 0; i < 60 && !HasFailure(); ++i) world.step({{1, 1}});
    EXPECT_EQ(world.descriptor().length(1), 60);
    EXPECT_LT(world.descriptor().num_kv_tokens(1), 13 + num_sinks + 3 * c.page_size);
  }
}

TEST_P(Windows, UnderAPrefillInOneAndInChunks) {
  for (const SlidingWindow window : {SlidingWindow{1, 0}, {5, 2}, {40, 6}}) {
    LivingSequences world = sequences(900, window);
    world.step({{1, 100}, {2, 1}, {3, 0}, {4, 7}});
    for (const std::int64_t chunk : {3, 50, 1, 1, 17}) {
      world.step({{2, chunk}, {1, 1}, {4, chunk / 2}});
    }
    for (int i = 0; i < 9; ++i) world.step({{1, 1}, {2, 1}, {4, 2}});
  }
}

// Long enough for several chunks of keys on every backend.
TEST_P(Windows, OfALongSequence) {
  for (const std::int64_t num_sinks : {3, 1900}) {
    LivingSequences world = sequences(5000, {.window = 2100, .num_sink_tokens = num_sinks});
    world.append_only(1, 3000);
    for (int i = 0; i < 3; ++i) world.step({{1, 1 + 3 * i}});
  }
}

TEST_P(Windows, BesideSequencesWithout) {
  LivingSequences world = sequences(400, {.window = 8, .num_sink_tokens = 2});
  world.step({{1, 30}, {2, 30}, {3, 5}});
  world.set_window(2, {});
  world.set_window(3, {.window = 3, .num_sink_tokens = 0});
  for (int i = 0; i < 20; ++i) world.step({{3, 1}, {2, 1}, {1, 1}});
}

TEST_P(Windows, OfForksAndAfterTruncation) {
  LivingSequences world = sequences(900, {.window = 12, .num_sink_tokens = 3});
  world.step({{1, 40}});
  world.step({{1, 5}});
  world.fork(1, 2, 45);
  world.fork(1, 3, 44);
  world.fork(1, 4, 3);
  for (int i = 0; i < 15; ++i) world.step({{1, 1}, {2, 1}, {3, 1}, {4, 1}});
  const std::int64_t kept = world.descriptor().sequence(1).kept_from() + 11;
  for (std::int64_t n = world.descriptor().length(1); n >= kept; --n) {
    world.truncate(1, n);
    world.fork(1, 5, n);
    world.step({{5, 1}});
    world.release(5);
  }
  world.step({{1, 30}, {2, 2}});
}

TEST_P(Windows, WithAMask) {
  LivingSequences world = sequences(400, {.window = 9, .num_sink_tokens = 2});
  world.step({{1, 33}, {2, 5}}, 0.6);
}

SEQATTN_INSTANTIATE_CASES(Windows, window_cases());

// The window of the layer and that of the sequence: a query sees what both let through.
class NarrowerWindows : public DeviceSuite {};
TEST_P(NarrowerWindows, OfTheLayerCount) {
  for (const int window_left : {0, 3, 20}) {
    AttentionCase c = device_case({}, device());
    c.window_left = window_left;
    LivingSequences world(c, device(), 100, random, {.window = 8, .num_sink_tokens = 5});
    world.step({{1, 3}, {2, 29}});
    for (int i = 0; i < 9; ++i) world.step({{1, 1}, {2, 2}});
    world.step({{1, 0, {-1, 0, 0, 2, 3, 4}}});
  }
}

TEST_P(NarrowerWindows, AreRefusedToQueriesThatCameBefore) {
  const AttentionCase c = device_case({}, device());
  PagedKVCacheManager manager(c.cache_config(20, device()));
  CacheDescriptor descriptor(manager, {.window = 4, .num_sink_tokens = 0});
  descriptor.allocate({1}, {12});
  descriptor.allocate({1}, {1});  // drops positions 0 to 7 and keeps 8 to 12
  BatchAttention attention(manager, c.options());
  const auto packed = descriptor.pack_for_flashinfer({1});
  attention.plan(packed, {0, 2});
  EXPECT_EQ(error_of([&] {
              attention.plan(packed, {0, 3});
            }),
            "plan: row 0 has 3 queries and 5 keys, and its window has dropped what the first of "
            "them would see; expected at most 2 queries: those of the newest tokens");
  EXPECT_EQ(attention.num_q_tokens(), 2);
}
SEQATTN_INSTANTIATE_DEVICES(NarrowerWindows);

// Alone on one thread, and beside others on several: the same bits.
class WindowedRows : public DeviceSuite {};
TEST_P(WindowedRows, AreTheSameWhateverElseIsInTheBatch) {
  const AttentionCase c = device_case({}, device());
  PagedKVCacheManager manager(c.cache_config(2000, device()));
  CacheDescriptor descriptor(manager, {.window = 1500, .num_sink_tokens = 70});
  descriptor.allocate({1, 2, 3}, {3000, 9, 1700});
  std::vector<double> values(static_cast<std::size_t>(4709 * c.num_kv_heads * c.head_dim));
  std::normal_distribution<double> normal;
  for (double& value : values) value = rounded(c.kv_dtype, normal(random));
  Tensor filled(device(), c.kv_dtype, {4709, c.num_kv_heads, c.head_dim});
  filled.write(values);
  manager.append_kv(filled.view(), filled.view(), descriptor.pack_for_flashinfer({1, 2, 3}),
                    {0, 3000, 3009, 4709});
  descriptor.allocate({1, 2, 3}, {2, 1, 130});
  descriptor.set_window(3, {.window = 1500, .num_sink_tokens = 0});
  const auto bytes_of_first = [&](const std::vector<SeqId>& ids, std::vector<std::int32_t> indptr,
                                  int num_threads) {
    BatchAttention attention(manager, c.options(num_threads));
    attention.plan(descriptor.pack_for_flashinfer(ids), indptr);
    Tensor q(device(), c.q_dtype, {indptr.back(), c.num_qo_heads, c.head_dim});
    const std::size_t size = static_cast<std::size_t>(2 * c.num_qo_heads * c.head_dim);
    std::vector<double> queries(static_cast<std::size_t>(indptr.back()) * size / 2, 0.25);
    std::copy_n(values.begin(), size, queries.begin());
    q.write(queries);
    const Tensor out(device(), c.out_dtype, {indptr.back(), c.num_qo_heads, c.head_dim});
    attention.run(q.view(), out.view());
    std::vector<std::byte> bytes = out.bytes();
    bytes.resize(size * static_cast<std::size_t>(size_of(c.out_dtype)));
    return bytes;
  };
  const auto alone = bytes_of_first({1}, {0, 2}, 1);
  EXPECT_EQ(bytes_of_first({1, 3, 2}, {0, 2, 132, 133}, 3), alone);
  EXPECT_EQ(bytes_of_first({1, 2}, {0, 2, 3}, 7), alone);
}
SEQATTN_INSTANTIATE_DEVICES(WindowedRows);

}  // namespace
}  // namespace seqattn::testing
