#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "error_text.h"
#include "float8_config.h"
#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/float8.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/sequence_state.h"

// Caches of 8-bit elements: what an append stores, what a read gives, where scales go.
namespace seqattn {
namespace {

using ::seqattn::testing::bytes_of;
using ::seqattn::testing::error_of;
using ::seqattn::testing::float8;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::kDim;
using ::seqattn::testing::kDimV;
using ::seqattn::testing::kHeads;
using ::seqattn::testing::kLayers;
using ::seqattn::testing::random_tensor;
using ::testing::HasSubstr;

const std::vector<float> kKeyScales{0.01f, 0.002f, 0.5f}, kValueScales{0.25f};

struct Tokens {
  HostTensor keys, values;
};

// A cache with one sequence of so many tokens, and what was appended: the same in every layer.
struct Cache {
  explicit Cache(const KVCacheConfig& config) : manager(config), descriptor(manager) {
    if (config.kv_scaling == KVScaling::kPerToken) return;
    for (int layer = 0; layer < kLayers; ++layer) {
      manager.set_kv_scales(kKeyScales, kValueScales, layer);
    }
  }
  void add(SeqId id, const Tokens& tokens) {
    const std::int64_t count = tokens.keys.view().shape[0];
    descriptor.allocate({id}, {count});
    for (int layer = 0; layer < kLayers; ++layer) {
      manager.write_kv(descriptor.pages(id), 0, count, tokens.keys.view(), tokens.values.view(),
                       layer);
    }
  }
  Tokens read(SeqId id, DType dtype = DType::kFloat32, int layer = kLayers - 1) const {
    const std::int64_t count = descriptor.num_kv_tokens(id);
    Tokens tokens{{dtype, {count, kHeads, kDim}}, {dtype, {count, kHeads, kDimV}}};
    manager.read_kv(descriptor.pages(id), 0, count, tokens.keys.view(), tokens.values.view(),
                    layer);
    return tokens;
  }
  PagedKVCacheManager manager;
  CacheDescriptor descriptor;
};

Tokens random_tokens(std::mt19937_64& random, std::int64_t count, DType dtype = DType::kFloat32) {
  return {random_tensor(random, dtype, {count, kHeads, kDim}),
          random_tensor(random, dtype, {count, kHeads, kDimV})};
}

// What is stored of elements [.., dim] whose scale is that of their head, or made for them.
std::vector<float> stored(const HostTensor& tensor, int dim, const std::vector<float>& fixed) {
  std::vector<float> values = tensor.values();
  for (std::size_t row = 0; row * static_cast<std::size_t>(dim) < values.size(); ++row) {
    float* const first = values.data() + row * static_cast<std::size_t>(dim);
    float largest = 0;
    for (int d = 0; d < dim; ++d) largest = std::max(largest, std::abs(first[d]));
    const float made = largest == 0 ? 0x1p-126f : largest / 448;
    const float scale = fixed.empty() ? made : fixed[row % kHeads % fixed.size()];
    for (int d = 0; d < dim; ++d) {
      first[d] = from_float8_e4m3(to_float8_e4m3(first[d] * (1 / scale))) * scale;
    }
  }
  return values;
}

class Float8Cache : public ::testing::TestWithParam<std::tuple<KVScaling, KVLayout>> {
 protected:
  KVScaling scaling() const { return std::get<0>(GetParam()); }
  KVCacheConfig config(int page_size = 4) const {
    return float8(scaling(), std::get<1>(GetParam()), page_size);
  }
  std::vector<float> expected_keys(const Tokens& tokens) const {
    return stored(tokens.keys, kDim, is_fixed() ? kKeyScales : std::vector<float>());
  }
  std::vector<float> expected_values(const Tokens& tokens) const {
    return stored(tokens.values, kDimV, is_fixed() ? kValueScales : std::vector<float>());
  }
  bool is_fixed() const { return scaling() == KVScaling::kFixed; }
  std::mt19937_64 random_ = testing::random_source(4200);
};

TEST_P(Float8Cache, HoldsWhatIsAppendedDividedByItsScale) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    Cache cache(config());
    const Tokens tokens = random_tokens(random_, 11, dtype);
    cache.add(1, tokens);
    for (int layer = 0; layer < kLayers; ++layer) {
      const Tokens got = cache.read(1, DType::kFloat32, layer);
      EXPECT_EQ(got.keys.values(), expected_keys(tokens));
      EXPECT_EQ(got.values.values(), expected_values(tokens));
    }
    HostTensor rounded(DType::kFloat16, {11, kHeads, kDim});
    const std::vector<float> keys = expected_keys(tokens);
    for (std::int64_t i = 0; i < rounded.size(); ++i)
      rounded.set(i, keys[static_cast<std::size_t>(i)]);
    EXPECT_EQ(cache.read(1, DType::kFloat16).keys.values(), rounded.values());
  }
}

TEST_P(Float8Cache, SaturatesAndKeepsNaN) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Tokens tokens = random_tokens(random_, 1);
  for (const HostTensor* tensor : {&tokens.keys, &tokens.values}) {
    auto* const at = static_cast<float*>(tensor->view().data);
    at[0] = 1e30f;
    at[1] = -kInfinity;
    at[2] = std::nanf("");
    at[3] = 0;
  }
  Cache cache(config());
  cache.add(1, tokens);
  const Tokens got = cache.read(1);
  const float scale = is_fixed() ? kKeyScales[0] : 1e30f / 448;
  EXPECT_FLOAT_EQ(got.keys[0], 448 * scale);
  EXPECT_FLOAT_EQ(got.keys[1], -448 * scale);
  EXPECT_TRUE(std::isnan(got.keys[2]));
  EXPECT_EQ(got.keys[3], 0);
  EXPECT_TRUE(std::isnan(got.values[2]));
}

TEST_P(Float8Cache, TakesTokensOfZeros) {
  Tokens tokens = random_tokens(random_, 2);
  for (std::int64_t i = 0; i < tokens.keys.size(); ++i) tokens.keys.set(i, 0);
  for (std::int64_t i = 0; i < tokens.values.size(); ++i) tokens.values.set(i, 1e-45f);
  Cache cache(config());
  cache.add(1, tokens);
  const Tokens got = cache.read(1);
  EXPECT_THAT(got.keys.values(), ::testing::Each(0.0f));
  EXPECT_THAT(got.values.values(), ::testing::Each(::testing::FloatNear(0, 1e-40f)));
}

// Copy-on-write, truncate, keep, a window: what is left reads as before.
TEST_P(Float8Cache, ScalesFollowTheirTokens) {
  Cache cache(config());
  const Tokens tokens = random_tokens(random_, 10);
  cache.add(1, tokens);
  const auto keys = expected_keys(tokens), values = expected_values(tokens);
  const auto rows = [](const std::vector<float>& all, int dim, std::vector<std::int64_t> slots) {
    std::vector<float> some;
    for (const std::int64_t slot : slots) {
      const auto begin = all.begin() + slot * kHeads * dim;
      some.insert(some.end(), begin, begin + std::int64_t{kHeads} * dim);
    }
    return some;
  };
  cache.descriptor.fork(1, 2, 7);
  cache.descriptor.allocate({2}, {1});  // copies the page
  cache.descriptor.truncate(2, 7);
  cache.descriptor.fork(1, 3);
  cache.descriptor.keep(3, {0, 2, 3, 5, 8, 9});
  EXPECT_EQ(cache.read(2).keys.values(), rows(keys, kDim, {0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(cache.read(2).values.values(), rows(values, kDimV, {0, 1, 2, 3, 4, 5, 6}));
  EXPECT_EQ(cache.read(3).keys.values(), rows(keys, kDim, {0, 2, 3, 5, 8, 9}));
  EXPECT_EQ(cache.read(3).values.values(), rows(values, kDimV, {0, 2, 3, 5, 8, 9}));
  EXPECT_EQ(cache.read(1).keys.values(), keys);
  EXPECT_EQ(cache.read(1).values.values(), values);
}

TEST_P(Float8Cache, IsSavedAndRestoredToTheBit) {
  for (const std::int64_t count : {0, 1, 9}) {
    Cache cache(config());
    cache.add(1, random_tokens(random_, count));
    const auto state = save_sequence(cache.descriptor, 1);
    EXPECT_EQ(sequence_state_info(state).dtype, DType::kFloat8E4M3);
    EXPECT_EQ(sequence_state_info(state).num_bytes, static_cast<std::int64_t>(state.size()));
    for (const int page_size : {1, 3, 8}) {
      KVCacheConfig other = config(page_size);
      other.kv_layout = KVLayout::kHND;
      Cache to(other);
      restore_sequence(to.descriptor, 7, state);
      EXPECT_EQ(to.read(7).keys.values(), cache.read(1).keys.values());
      EXPECT_EQ(to.read(7).values.values(), cache.read(1).values.values());
      EXPECT_EQ(save_sequence(to.descriptor, 7), state);
    }
  }
}

// Each element becomes a float32, its scale in it, and is stored as an append would.
TEST_P(Float8Cache, IsRestoredIntoOthersAndFromThem) {
  Cache cache(config());
  const Tokens tokens = random_tokens(random_, 9);
  cache.add(1, tokens);
  const auto state = save_sequence(cache.descriptor, 1);
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    KVCacheConfig plain = config();
    plain.dtype = dtype;
    plain.kv_scaling = KVScaling::kFixed;
    PagedKVCacheManager manager(plain);
    CacheDescriptor descriptor(manager);
    restore_sequence(descriptor, 1, state);
    HostTensor keys(dtype, {9, kHeads, kDim}), values(dtype, {9, kHeads, kDimV});
    manager.read_kv(descriptor.pages(1), 0, 9, keys.view(), values.view());
    EXPECT_EQ(keys.values(), cache.read(1, dtype, 0).keys.values());
    Cache back(config());
    restore_sequence(back.descriptor, 1, save_sequence(descriptor, 1));
    EXPECT_EQ(back.read(1).keys.values(),
              expected_keys({std::move(keys), random_tokens(random_, 1).values}));
  }
  // Where scales go with tokens any scale will do, and elements stay what they are.
  Cache per_token(float8(KVScaling::kPerToken)), fixed(float8(KVScaling::kFixed));
  restore_sequence(per_token.descriptor, 1, state);
  restore_sequence(fixed.descriptor, 1, state);
  const Tokens floats = cache.read(1);
  EXPECT_EQ(per_token.read(1).keys.values(), floats.keys.values());
  EXPECT_EQ(fixed.read(1).keys.values(), stored(floats.keys, kDim, kKeyScales));
}

TEST_P(Float8Cache, TakesNoElementsOfItsOwnType) {
  Cache cache(config());
  cache.descriptor.allocate({1}, {4});
  const HostTensor keys = random_tensor(random_, DType::kFloat32, {4, kHeads, kDim});
  TensorView wrong = keys.view();
  wrong.dtype = DType::kFloat8E4M3;
  const HostTensor values = random_tensor(random_, DType::kFloat32, {4, kHeads, kDimV});
  EXPECT_THAT(error_of([&] {
                cache.manager.write_kv(cache.descriptor.pages(1), 0, 4, wrong, values.view());
              }),
              HasSubstr("expected float16, bfloat16 or float32 [4, 3, 5]"));
}

INSTANTIATE_TEST_SUITE_P(, Float8Cache,
                         ::testing::Combine(::testing::Values(KVScaling::kFixed,
                                                              KVScaling::kPerToken),
                                            ::testing::Values(KVLayout::kNHD, KVLayout::kHND)),
                         [](const auto& param_info) {
                           return std::string(to_string(std::get<0>(param_info.param))) + "_" +
                                  std::string(to_string(std::get<1>(param_info.param)));
                         });

}  // namespace
}  // namespace seqattn
