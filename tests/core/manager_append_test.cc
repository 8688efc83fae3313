#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "cached_token.h"
#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/half.h"
#include "seqattn/paged_kv_cache_manager.h"

// append_kv: which slots are written, with which values.
namespace seqattn {
namespace {

using ::seqattn::testing::HostTensor;
using ::seqattn::testing::random_tensor;

struct AppendCase {
  DType cache_dtype;
  DType input_dtype;
  KVLayout layout;
  int page_size;
};

std::string name_of(const ::testing::TestParamInfo<AppendCase>& info) {
  const AppendCase& c = info.param;
  return std::string(to_string(c.input_dtype)) + "Into" + std::string(to_string(c.cache_dtype)) +
         std::string(to_string(c.layout)) + "Pages" + std::to_string(c.page_size);
}

std::vector<AppendCase> all_cases() {
  std::vector<AppendCase> cases;
  for (const DType cache : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const DType input : {cache, DType::kFloat32}) {
      for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
        for (const int page_size : {1, 3, 16}) cases.push_back({cache, input, layout, page_size});
      }
      if (cache == DType::kFloat32) break;
    }
  }
  return cases;
}

constexpr int kHeads = 3, kHeadDim = 9, kHeadDimV = 5;
constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

float rounded(float value, DType dtype) {
  if (dtype == DType::kFloat32) return value;
  return dtype == DType::kFloat16 ? from_float16(to_float16(value))
                                  : from_bfloat16(to_bfloat16(value));
}

// A cache filled with NaN, and what its sequences ought to hold.
class Append : public ::testing::TestWithParam<AppendCase> {
 protected:
  Append()
      : manager_({.num_pages = 64,
                  .page_size = GetParam().page_size,
                  .num_heads = kHeads,
                  .head_dim = kHeadDim,
                  .head_dim_v = kHeadDimV,
                  .num_layers = 2,
                  .dtype = GetParam().cache_dtype,
                  .kv_layout = GetParam().layout}) {
    for (int layer = 0; layer < 2; ++layer) {
      for (const TensorView& cache : {manager_.key_cache(layer), manager_.value_cache(layer)}) {
        auto* const data = static_cast<std::byte*>(cache.data);
        std::fill_n(data, cache.num_elements() * size_of(cache.dtype), std::byte{0xff});
      }
    }
  }

  // Grows the sequences by these lengths and appends random tokens, remembering them.
  void grow(const std::vector<SeqId>& ids, const std::vector<std::int64_t>& lengths,
            int layer = 0) {
    descriptor_.allocate(ids, lengths);
    std::vector<std::int32_t> indptr = {0};
    for (const auto n : lengths) indptr.push_back(indptr.back() + static_cast<std::int32_t>(n));
    const HostTensor keys =
        random_tensor(random_, GetParam().input_dtype, {indptr.back(), kHeads, kHeadDim});
    const HostTensor values =
        random_tensor(random_, GetParam().input_dtype, {indptr.back(), kHeads, kHeadDimV});
    manager_.append_kv(keys.view(), values.view(), descriptor_.pack_for_flashinfer(ids), indptr,
                       layer);
    for (std::size_t i = 0; i < ids.size(); ++i) {
      const auto add = [&](std::vector<float>& to, const HostTensor& from, int width) {
        for (std::int64_t k = indptr[i] * width; k < indptr[i + 1] * width; ++k) {
          to.push_back(rounded(from[k], GetParam().cache_dtype));
        }
      };
      add(expected_keys_[ids[i]], keys, kHeads * kHeadDim);
      add(expected_values_[ids[i]], values, kHeads * kHeadDimV);
    }
  }

  void expect_contents(SeqId id, int layer = 0) {
    const auto check = [&](const TensorView& cache, const std::vector<float>& expected, int dim) {
      ASSERT_EQ(static_cast<std::int64_t>(expected.size()), descriptor_.length(id) * kHeads * dim);
      for (std::size_t k = 0; k < expected.size(); ++k) {
        const auto i = static_cast<std::int64_t>(k);
        ASSERT_EQ(testing::cached(cache, GetParam().layout, descriptor_.pages(id),
                                  i / (kHeads * dim), i / dim % kHeads, i % dim),
                  expected[k])
            << "sequence " << id << ", element " << i;
      }
    };
    check(manager_.key_cache(layer), expected_keys_[id], kHeadDim);
    check(manager_.value_cache(layer), expected_values_[id], kHeadDimV);
  }

  // Elements of a layer that are not NaN any more.
  std::int64_t num_written(int layer) {
    std::int64_t count = 0;
    for (const TensorView& cache : {manager_.key_cache(layer), manager_.value_cache(layer)}) {
      for (std::int64_t i = 0; i < cache.num_elements(); ++i) {
        TensorView flat = TensorView::contiguous(cache.data, cache.dtype, {cache.num_elements()});
        const float value = testing::element(flat, {i});
        count += value == value ? 1 : 0;
      }
    }
    return count;
  }

  std::mt19937_64 random_ = testing::random_source(20);
  PagedKVCacheManager manager_;
  CacheDescriptor descriptor_{manager_};
  std::map<SeqId, std::vector<float>> expected_keys_, expected_values_;
};

TEST_P(Append, WritesTheLastTokensOfEachRow) {
  grow({1}, {5});
  grow({2}, {1});
  grow({1, 3, 2}, {7, 4, 0});
  grow({2, 1}, {1, 1});
  for (const SeqId id : {1, 2, 3}) expect_contents(id);
  EXPECT_EQ(num_written(0), (13 + 2 + 4) * kHeads * (kHeadDim + kHeadDimV));
  EXPECT_EQ(num_written(1), 0);
}

TEST_P(Append, InChunksEqualsOneAppend) {
  for (const std::int64_t n : {1, 2, 3, 4, 5}) grow({1}, {n});
  expect_contents(1);
  EXPECT_EQ(num_written(0), 15 * kHeads * (kHeadDim + kHeadDimV));
}

TEST_P(Append, WritesOneLayer) {
  grow({1}, {6}, 1);
  expect_contents(1, 1);
  EXPECT_EQ(num_written(0), 0);
}

INSTANTIATE_TEST_SUITE_P(Formats, Append, ::testing::ValuesIn(all_cases()), name_of);

TEST(AppendInputs, MayBeStridedAndReadOnly) {
  auto random = testing::random_source(22);
  for (const DType dtype : kTypes) {
    PagedKVCacheManager manager({.num_pages = 4,
                                 .page_size = 4,
                                 .num_heads = 2,
                                 .head_dim = 3,
                                 .head_dim_v = 2,
                                 .dtype = dtype});
    CacheDescriptor descriptor(manager);
    descriptor.allocate({1}, {6});
    // Heads 1 and 2 of [6, 4, 7], and values in the same tensor behind the keys.
    const HostTensor qkv = random_tensor(random, dtype, {6, 4, 7});
    TensorView keys = qkv.view(), values = qkv.view();
    keys.data = static_cast<std::byte*>(keys.data) + 7 * size_of(dtype);
    keys.shape = {6, 2, 3};
    values.data = static_cast<std::byte*>(keys.data) + 3 * size_of(dtype);
    values.shape = {6, 2, 2};
    keys.read_only = values.read_only = true;
    manager.append_kv(keys, values, descriptor.pack_for_flashinfer({1}), std::array{0, 6});
    for (std::int64_t t = 0; t < 6; ++t) {
      for (std::int64_t h = 0; h < 2; ++h) {
        for (std::int64_t d = 0; d < 3; ++d) {
          EXPECT_EQ(
              testing::cached(manager.key_cache(), KVLayout::kNHD, descriptor.pages(1), t, h, d),
              qkv[(t * 4 + h + 1) * 7 + d]);
        }
        for (std::int64_t d = 0; d < 2; ++d) {
          EXPECT_EQ(
              testing::cached(manager.value_cache(), KVLayout::kNHD, descriptor.pages(1), t, h, d),
              qkv[(t * 4 + h + 1) * 7 + 3 + d]);
        }
      }
    }
  }
}

TEST(AppendInputs, MayBeKeysOfOneTypeAndValuesOfAnother) {
  auto random = testing::random_source(23);
  PagedKVCacheManager manager({.num_pages = 2, .num_heads = 1, .head_dim = 4});
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1}, {3});
  const auto keys = random_tensor(random, DType::kFloat32, {3, 1, 4});
  const auto values = random_tensor(random, DType::kFloat16, {3, 1, 4});
  manager.append_kv(keys.view(), values.view(), descriptor.pack_for_flashinfer({1}),
                    std::array{0, 3});
  EXPECT_EQ(testing::element(manager.key_cache(), {0, 2, 0, 3}),
            rounded(keys[11], DType::kFloat16));
  EXPECT_EQ(testing::element(manager.value_cache(), {0, 2, 0, 3}), values[11]);
}

TEST(AppendInputs, MayBeEmpty) {
  PagedKVCacheManager manager({.num_pages = 2, .num_heads = 1, .head_dim = 4});
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1, 2}, {3, 0});
  const auto none =
      TensorView::contiguous(static_cast<const void*>(nullptr), DType::kFloat16, {0, 1, 4});
  manager.append_kv(none, none, descriptor.pack_for_flashinfer({1, 2}), std::array{0, 0, 0});
  manager.append_kv(none, none, FlashInferPackedData(), std::array{0});
  EXPECT_THAT(testing::bytes_of(manager.key_cache()), ::testing::Each(std::byte{0}));
}

}  // namespace
}  // namespace seqattn
