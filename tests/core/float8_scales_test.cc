#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <span>
#include <vector>

#include "error_text.h"
#include "float8_config.h"
#include "host_tensor.h"
#include "seqattn/paged_kv_cache_manager.h"

// Where the scales of 8-bit caches come from and lie.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::float8;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::kDim;
using ::seqattn::testing::kDimV;
using ::seqattn::testing::kHeads;
using ::seqattn::testing::kLayers;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(Float8Scales, AreSetWhileNoPageIsInUse) {
  PagedKVCacheManager manager(float8(KVScaling::kFixed));
  const auto scales = [&](const TensorView& view) {
    const auto* const data = static_cast<const float*>(view.data);
    return std::vector<float>(data, data + view.num_elements());
  };
  EXPECT_THAT(scales(manager.key_scales()), ElementsAre(1, 1, 1));
  EXPECT_TRUE(manager.key_scales().read_only);
  manager.set_kv_scales({0.5f}, {1, 2, 3}, 1);
  EXPECT_THAT(scales(manager.key_scales(1)), ElementsAre(0.5f, 0.5f, 0.5f));
  EXPECT_THAT(scales(manager.value_scales(1)), ElementsAre(1, 2, 3));
  EXPECT_THAT(scales(manager.value_scales(0)), ElementsAre(1, 1, 1));
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  // 7.7e35 times the greatest element is infinite.
  for (const float wrong : {0.0f, -1.0f, kInfinity, std::nanf(""), 1e-40f, 7.7e35f}) {
    EXPECT_THAT(error_of([&] { manager.set_kv_scales({1}, {wrong}); }),
                HasSubstr("value_scales: got"));
  }
  EXPECT_THAT(error_of([&] {
                manager.set_kv_scales({1, 2}, {1});
              }),
              HasSubstr("key_scales: got 2 scales; expected 1, or one for each of 3 heads"));
  EXPECT_THAT(error_of([&] { manager.set_kv_scales({1}, {1}, 2); }), HasSubstr("layer: got 2"));
  const auto pages = manager.allocate(2);
  EXPECT_THAT(error_of([&] { manager.set_kv_scales({1}, {1}); }), HasSubstr("2 pages are in use"));
  manager.unref(pages);
  EXPECT_THAT(scales(manager.value_scales(1)), ElementsAre(1, 2, 3));
  manager.set_kv_scales({1}, {1}, 1);
  EXPECT_THAT(scales(manager.value_scales(1)), ElementsAre(1, 1, 1));
}

TEST(Float8Scales, BelongToCachesOf8BitsAlone) {
  KVCacheConfig config = float8(KVScaling::kPerToken);
  PagedKVCacheManager per_token(config);
  EXPECT_EQ(per_token.bytes_per_page(), kLayers * 4 * kHeads * (kDim + kDimV + 8));
  EXPECT_THAT(per_token.to_string(), HasSubstr("kv_scaling=per_token"));
  EXPECT_EQ(per_token.key_scales(1).to_string(), "float32[16, 4, 3] on cpu");
  EXPECT_THAT(error_of([&] { per_token.set_kv_scales({1}, {1}); }),
              HasSubstr("has no scales to set"));
  EXPECT_FALSE(per_token.key_scales().read_only);
  KVCacheConfig large = config;  // its elements alone would fit
  large.num_pages = 0;
  large.page_size = std::numeric_limits<int>::max();
  large.num_heads = std::numeric_limits<int>::max() / 2;
  large.head_dim = large.head_dim_v = large.num_layers = 1;
  EXPECT_THAT(error_of([&] { PagedKVCacheManager{large}; }), HasSubstr("more than 2^62 bytes"));
  config.dtype = DType::kFloat16;
  EXPECT_THAT(error_of([&] { PagedKVCacheManager{config}; }),
              HasSubstr("kv_scaling: got 'per_token' for float16"));
  config.kv_scaling = KVScaling::kFixed;
  PagedKVCacheManager plain(config);
  EXPECT_THAT(error_of([&] { plain.key_scales(); }), HasSubstr("has no scales"));
  EXPECT_THAT(error_of([&] { plain.set_kv_scales({1}, {1}); }), HasSubstr("has no scales to set"));
}

TEST(Float8Scales, ComeWithTheCallersTensors) {
  const KVCacheConfig config = float8(KVScaling::kPerToken, KVLayout::kHND);
  std::vector<std::byte> memory(1 << 16);
  std::vector<float> floats(2 * kLayers * 16 * 4 * kHeads);
  std::vector<TensorView> keys, values, key_scales, value_scales;
  std::byte* at = memory.data();
  float* scale = floats.data();
  for (int layer = 0; layer < kLayers; ++layer) {
    const auto cache = [&](int dim) {
      void* const data = at;
      at += 16 * kHeads * 4 * dim;
      return TensorView::contiguous(data, DType::kFloat8E4M3, {16, kHeads, 4, dim});
    };
    const auto scales = [&] {
      void* const data = scale;
      scale += 16 * kHeads * 4;
      return TensorView::contiguous(data, DType::kFloat32, {16, kHeads, 4});
    };
    keys.push_back(cache(kDim));
    values.push_back(cache(kDimV));
    key_scales.push_back(scales());
    value_scales.push_back(scales());
  }
  const auto make = [&](std::span<const TensorView> ks, std::span<const TensorView> vs) {
    return PagedKVCacheManager::from_tensors(keys, values, config, ks, vs);
  };
  EXPECT_EQ(make(key_scales, value_scales)->key_scales(1).data, key_scales[1].data);
  EXPECT_THAT(error_of([&] { make({}, {}); }),
              HasSubstr("got 0 tensors of key scales and 0 of value scales; expected 2 of each"));
  EXPECT_THAT(error_of([&] { make(key_scales, key_scales); }),
              HasSubstr("value_scales[0]: shares memory with key_scales[0]"));
  std::vector<TensorView> in_cache = key_scales;
  in_cache[1].data = keys[0].data;
  EXPECT_THAT(error_of([&] { make(in_cache, value_scales); }),
              HasSubstr("key_scales[1]: shares memory with keys[0]"));
  in_cache[1].data = floats.data() + floats.size() - 16 * 4 * kHeads;
  EXPECT_THAT(error_of([&] { make(in_cache, value_scales); }),
              HasSubstr("value_scales[1]: shares memory with key_scales[1]"));
  in_cache[1].data = static_cast<std::byte*>(key_scales[1].data) + 2;
  EXPECT_THAT(error_of([&] { make(in_cache, value_scales); }),
              HasSubstr("key_scales[1]: got data at an address that is no multiple of 4"));
  std::vector<TensorView> wrong = key_scales;
  wrong[1].shape[2] = 5;
  EXPECT_THAT(error_of([&] { make(wrong, value_scales); }),
              HasSubstr("key_scales[1]: got float32[16, 3, 5]"));
  KVCacheConfig fixed = config;
  fixed.kv_scaling = KVScaling::kFixed;
  EXPECT_THAT(error_of([&] {
                PagedKVCacheManager::from_tensors(keys, values, fixed, key_scales, value_scales);
              }),
              HasSubstr("expected 0 of each"));
}

// Pages of keys, values and the scales of both, one after the other, the latter with tokens inside.
TEST(Float8Scales, MayLieInPagesOfOneBuffer) {
  KVCacheConfig config = float8(KVScaling::kPerToken);
  config.num_layers = 1;
  constexpr std::int64_t kPage = 4 * kHeads * (kDim + kDimV + 8) + 4;  // rows of floats
  std::vector<float> buffer(static_cast<std::size_t>(16 * kPage / 4));
  auto* const begin = reinterpret_cast<std::byte*>(buffer.data());
  const auto cache = [&](std::int64_t offset, int dim) {
    TensorView view = TensorView::contiguous(static_cast<void*>(begin + offset), DType::kFloat8E4M3,
                                             {16, 4, kHeads, dim});
    view.strides[0] = kPage;
    return view;
  };
  const auto scales = [&](std::int64_t offset) {
    TensorView view = TensorView::contiguous(static_cast<void*>(begin + offset), DType::kFloat32,
                                             {16, 4, kHeads});
    view.strides = {kPage / 4, 1, 4};
    return view;
  };
  const std::int64_t values_at = 4 * kHeads * kDim, scales_at = values_at + 4 * kHeads * kDimV;
  const TensorView keys = cache(0, kDim), values = cache(values_at, kDimV);
  const TensorView key_scales = scales(scales_at), value_scales = scales(scales_at + 16 * kHeads);
  const auto one = [](const TensorView& view) { return std::span(&view, 1); };
  const auto manager = PagedKVCacheManager::from_tensors(one(keys), one(values), config,
                                                         one(key_scales), one(value_scales));
  EXPECT_EQ(manager->key_scales().to_string(), key_scales.to_string());
  const auto ones = std::vector<float>(4 * kHeads * kDim, 1.0f);
  const auto pages = manager->allocate(2);
  const TensorView new_keys =
      TensorView::contiguous(ones.data(), DType::kFloat32, {4, kHeads, kDim});
  const TensorView new_values =
      TensorView::contiguous(ones.data(), DType::kFloat32, {4, kHeads, kDimV});
  manager->write_kv(pages, 4, 4, new_keys, new_values);
  HostTensor k(DType::kFloat32, {4, kHeads, kDim}), v(DType::kFloat32, {4, kHeads, kDimV});
  manager->read_kv(pages, 4, 4, k.view(), v.view());
  EXPECT_THAT(k.values(), ::testing::Each(1.0f));
  EXPECT_THAT(v.values(), ::testing::Each(1.0f));
}

// Values that are a part of the keys would be written under another scale.
TEST(Float8Scales, AreOfKeysAndValuesThatLieApart) {
  for (const KVScaling scaling : {KVScaling::kFixed, KVScaling::kPerToken}) {
    KVCacheConfig config = float8(scaling);
    config.num_layers = 1;
    std::vector<std::byte> memory(16 * 4 * kHeads * kDim);
    std::vector<float> floats(2 * 16 * 4 * kHeads);
    const TensorView keys = TensorView::contiguous(static_cast<void*>(memory.data()),
                                                   DType::kFloat8E4M3, {16, 4, kHeads, kDim});
    TensorView values = keys;
    values.shape[3] = kDimV;
    std::vector<TensorView> scales;
    for (int i = 0; i < 2; ++i) {
      scales.push_back(TensorView::contiguous(floats.data() + i * 16 * 4 * kHeads, DType::kFloat32,
                                              {16, 4, kHeads}));
    }
    const std::size_t count = scaling == KVScaling::kPerToken ? 1 : 0;
    const std::span all(scales);
    EXPECT_THAT(
        error_of([&] {
          PagedKVCacheManager::from_tensors(std::span(&keys, 1), std::span(&values, 1), config,
                                            all.first(count), all.last(count));
        }),
        HasSubstr("values[0]: shares memory with keys[0]; expected values apart from the keys"));
  }
}

}  // namespace
}  // namespace seqattn
