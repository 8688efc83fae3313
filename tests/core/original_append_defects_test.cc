#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

#include "descriptor_state.h"
#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/batch_attention.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// What the original package did wrong with what it stored, by the behaviour that is right.
namespace seqattn {
namespace {

using ::seqattn::testing::bytes_of;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::random_tensor;
using ::testing::Each;

constexpr int kLayers = 3, kHeads = 2, kDim = 4;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

class OriginalStorage : public ::testing::Test {
 protected:
  HostTensor tokens(std::int64_t n) {
    return random_tensor(random_, DType::kFloat32, {n, kHeads, kDim});
  }
  void append(SeqId id, const HostTensor& keys, int layer = 0) {
    const auto n = static_cast<std::int32_t>(keys.view().shape[0]);
    manager_.append_kv(keys.view(), keys.view(), descriptor_.pack_for_flashinfer({id}),
                       std::array{0, n}, layer);
  }
  std::vector<float> keys_of(SeqId id, int layer = 0) {
    const std::int64_t n = descriptor_.length(id);
    const HostTensor keys(DType::kFloat32, {n, kHeads, kDim});
    const HostTensor values(DType::kFloat32, {n, kHeads, kDim});
    manager_.read_kv(descriptor_.pages(id), 0, n, keys.view(), values.view(), layer);
    EXPECT_EQ(keys.values(), values.values());
    return keys.values();
  }

  std::mt19937_64 random_ = testing::random_source(50);
  PagedKVCacheManager manager_{{.num_pages = 16,
                                .page_size = 4,
                                .num_heads = kHeads,
                                .head_dim = kDim,
                                .num_layers = kLayers,
                                .dtype = DType::kFloat32}};
  CacheDescriptor descriptor_{manager_};
};

std::vector<float> joined(std::initializer_list<std::vector<float>> parts) {
  std::vector<float> all;
  for (const auto& part : parts) all.insert(all.end(), part.begin(), part.end());
  return all;
}

TEST_F(OriginalStorage, AppendContinuesAtTheEndOfTheSequence) {
  const HostTensor prompt = tokens(6), step = tokens(1), chunk = tokens(4);
  for (const HostTensor* part : {&prompt, &step, &chunk}) {
    descriptor_.allocate({1}, {part->view().shape[0]});
    append(1, *part);
  }
  EXPECT_EQ(keys_of(1), joined({prompt.values(), step.values(), chunk.values()}));
}

TEST_F(OriginalStorage, AppendingMoreThanTheSequenceHoldsWritesNothing) {
  descriptor_.allocate({1}, {3});
  EXPECT_THROW(append(1, tokens(4)), InvalidArgumentError);
  EXPECT_THAT(bytes_of(manager_.key_cache()), Each(std::byte{0}));
}

TEST_F(OriginalStorage, SharersOfAPartlyFilledPageDoNotWriteTheSameSlot) {
  const HostTensor prompt = tokens(6), first = tokens(1), second = tokens(1);
  descriptor_.allocate({1}, {6});
  append(1, prompt);
  descriptor_.fork(1, 2);
  descriptor_.allocate_decoding({1, 2});
  append(1, first);
  append(2, second);
  EXPECT_EQ(keys_of(1), joined({prompt.values(), first.values()}));
  EXPECT_EQ(keys_of(2), joined({prompt.values(), second.values()}));
}

TEST_F(OriginalStorage, LayersShareOnePageTable) {
  descriptor_.allocate({1}, {5});
  std::vector<HostTensor> layers;
  for (int layer = 0; layer < kLayers; ++layer) {
    layers.push_back(tokens(5));
    append(1, layers.back(), layer);
  }
  for (int layer = 0; layer < kLayers; ++layer) {
    EXPECT_EQ(keys_of(1, layer), layers[static_cast<std::size_t>(layer)].values());
  }
}

// Packed and planned once a step, for all layers.
TEST_F(OriginalStorage, OnePlanServesEveryLayer) {
  descriptor_.allocate({1, 2}, {5, 3});
  BatchAttention attention(manager_, {.num_qo_heads = kHeads});
  attention.plan(descriptor_.pack_for_flashinfer({1, 2}), std::array{0, 5, 8});
  const HostTensor q = tokens(8);
  std::vector<std::vector<float>> outputs;
  for (int layer = 0; layer < kLayers; ++layer) {
    const HostTensor keys = tokens(8), out(DType::kFloat32, {8, kHeads, kDim});
    attention.append_kv(keys.view(), keys.view(), layer);
    attention.run(q.view(), out.view(), {}, layer);
    const std::vector<float> all = keys.values();
    EXPECT_EQ(keys_of(1, layer), std::vector(all.begin(), all.begin() + 5 * kHeads * kDim));
    EXPECT_EQ(keys_of(2, layer), std::vector(all.begin() + 5 * kHeads * kDim, all.end()));
    // The first query of a row sees one key only, and its value is the key.
    const std::vector<float> first_out = out.values();
    for (std::size_t i = 0; i < kHeads * kDim; ++i) EXPECT_NEAR(first_out[i], all[i], 1e-6);
    outputs.push_back(first_out);
  }
  EXPECT_NE(outputs[0], outputs[1]);
  EXPECT_NE(outputs[1], outputs[2]);
}

TEST_F(OriginalStorage, AnEmptySequenceAttendsToNothing) {
  descriptor_.allocate({1}, {0});
  BatchAttention attention(manager_, {.num_qo_heads = kHeads});
  attention.plan(descriptor_.pack_for_flashinfer({1}), std::array{0, 2});
  const HostTensor q = tokens(2), out(DType::kFloat32, {2, kHeads, kDim});
  const HostTensor lse(DType::kFloat32, {2, kHeads});
  attention.run(q.view(), out.view(), {.lse = lse.view()});
  EXPECT_THAT(out.values(), Each(0.0f));
  EXPECT_THAT(lse.values(), Each(-kInfinity));
}

TEST_F(OriginalStorage, TheCacheStartsAsZeros) {
  for (int layer = 0; layer < kLayers; ++layer) {
    EXPECT_THAT(bytes_of(manager_.key_cache(layer)), Each(std::byte{0}));
    EXPECT_THAT(bytes_of(manager_.value_cache(layer)), Each(std::byte{0}));
  }
}

TEST_F(OriginalStorage, NaNInSlotsNeverWrittenDoesNotReachAnOutput) {
  for (const TensorView& cache : {manager_.key_cache(), manager_.value_cache()}) {
    auto* const data = static_cast<float*>(cache.data);
    std::fill_n(data, cache.num_elements(), std::numeric_limits<float>::quiet_NaN());
  }
  descriptor_.allocate({1, 2}, {5, 2});
  BatchAttention attention(manager_, {.num_qo_heads = 2 * kHeads});
  attention.plan(descriptor_.pack_for_flashinfer({1, 2}), std::array{0, 5, 7});
  const HostTensor keys = tokens(7), out(DType::kFloat32, {7, 2 * kHeads, kDim});
  const HostTensor q = random_tensor(random_, DType::kFloat32, {7, 2 * kHeads, kDim});
  attention.append_kv(keys.view(), keys.view());
  attention.run(q.view(), out.view());
  for (const float value : out.values()) EXPECT_TRUE(std::isfinite(value));
}

TEST_F(OriginalStorage, AppendChecksShapeTypeTotalAndCapacity) {
  descriptor_.allocate({1}, {3});
  const auto packed = descriptor_.pack_for_flashinfer({1});
  const std::array<std::int32_t, 2> three = {0, 3};
  const HostTensor good = tokens(3);
  const HostTensor narrow = random_tensor(random_, DType::kFloat32, {3, kHeads, kDim - 1});
  const HostTensor short_type = random_tensor(random_, DType::kFloat16, {3, kHeads, kDim});
  const HostTensor too_few = tokens(2);
  for (const HostTensor* bad : {&narrow, &short_type, &too_few}) {
    EXPECT_THROW(manager_.append_kv(bad->view(), good.view(), packed, three), InvalidArgumentError);
    EXPECT_THROW(manager_.append_kv(good.view(), bad->view(), packed, three), InvalidArgumentError);
  }
  EXPECT_THROW(
      manager_.append_kv(good.view(), good.view(), FlashInferPackedData({16}, {0, 1}, {3}), three),
      InvalidArgumentError);
  EXPECT_THAT(bytes_of(manager_.key_cache()), Each(std::byte{0}));
}

TEST(OriginalManager, ChecksItsSizes) {
  const KVCacheConfig good{.num_pages = 4, .page_size = 4, .num_heads = 1, .head_dim = 4};
  for (auto member : {&KVCacheConfig::page_size, &KVCacheConfig::num_heads,
                      &KVCacheConfig::head_dim, &KVCacheConfig::num_layers}) {
    for (const int value : {0, -1}) {
      KVCacheConfig bad = good;
      bad.*member = value;
      EXPECT_THROW(PagedKVCacheManager manager(bad), InvalidArgumentError);
    }
  }
  KVCacheConfig bad = good;
  bad.num_pages = -1;
  EXPECT_THROW(PagedKVCacheManager manager(bad), InvalidArgumentError);
}

}  // namespace
}  // namespace seqattn
