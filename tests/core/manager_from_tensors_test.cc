#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "cached_token.h"
#include "error_text.h"
#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// A manager over the caller's tensors.
namespace seqattn {
namespace {

using ::seqattn::testing::element;
using ::seqattn::testing::error_of;
using ::seqattn::testing::HostTensor;
using ::testing::HasSubstr;

constexpr KVCacheConfig kConfig{.num_pages = 5,
                                .page_size = 3,
                                .num_heads = 2,
                                .head_dim = 4,
                                .head_dim_v = 6,
                                .dtype = DType::kFloat32};

// Keys [5, 3, 2, 4] (NHD) inside a tensor whose dimensions are all larger.
TensorView padded_view(const HostTensor& whole, const std::array<std::int64_t, 5>& shape) {
  TensorView view = whole.view();
  view.shape = shape;
  return view;
}

TEST(FromTensors, ShowsTheCallersTensors) {
  const HostTensor keys(DType::kFloat32, {5, 3, 2, 4}), values(DType::kFloat32, {5, 3, 2, 6});
  auto manager = PagedKVCacheManager::from_tensors(std::array{keys.view()},
                                                   std::array{values.view()}, kConfig);
  EXPECT_EQ(manager->key_cache().data, keys.view().data);
  EXPECT_EQ(manager->value_cache().data, values.view().data);
  EXPECT_EQ(manager->value_cache().shape, values.view().shape);
  EXPECT_EQ(manager->config().head_dim_v, 6);
  EXPECT_EQ(manager->available_pages_count(), 5);
}

TEST(FromTensors, NeverClearsThem) {
  auto random = testing::random_source(10);
  const auto keys = testing::random_tensor(random, DType::kFloat32, {5, 3, 2, 4});
  const auto values = testing::random_tensor(random, DType::kFloat32, {5, 3, 2, 6});
  const auto before = std::pair(keys.values(), values.values());
  {
    auto manager = PagedKVCacheManager::from_tensors(std::array{keys.view()},
                                                     std::array{values.view()}, kConfig);
    CacheDescriptor descriptor(*manager);
    descriptor.allocate({1}, {7});
  }
  EXPECT_EQ(std::pair(keys.values(), values.values()), before);
}

struct StridedCase {
  KVLayout layout;
  std::array<std::int64_t, 3> whole;  // of the tensor that a view lies in: all but the last size
  int padding;                        // behind each head's elements

  HostTensor tensor(int head_dim) const {
    return {DType::kFloat32, {whole[0], whole[1], whole[2], head_dim + padding}};
  }
};

class FromStridedTensors : public ::testing::TestWithParam<StridedCase> {};

// Two layers, padded everywhere: what is appended lands in the slots of the right layer, can be
// read back and copied, and no gap between slots is touched.
TEST_P(FromStridedTensors, WritesSlotsAndNothingElse) {
  auto random = testing::random_source(11);
  const KVLayout layout = GetParam().layout;
  KVCacheConfig config = kConfig;
  config.num_layers = 2;
  config.kv_layout = layout;
  const bool nhd = layout == KVLayout::kNHD;
  std::vector<HostTensor> tensors;
  std::vector<TensorView> keys, values;
  for (int layer = 0; layer < 2; ++layer) {
    for (const int head_dim : {4, 6}) {
      const HostTensor& tensor = tensors.emplace_back(GetParam().tensor(head_dim));
      (head_dim == 4 ? keys : values)
          .push_back(padded_view(tensor, {5, nhd ? 3 : 2, nhd ? 2 : 3, head_dim}));
    }
  }
  auto manager = PagedKVCacheManager::from_tensors(keys, values, config);
  EXPECT_EQ(manager->key_cache(1).strides, keys[1].strides);
  CacheDescriptor descriptor(*manager);
  descriptor.allocate({1}, {7});
  const auto new_keys = testing::random_tensor(random, DType::kFloat32, {7, 2, 4});
  const auto new_values = testing::random_tensor(random, DType::kFloat32, {7, 2, 6});
  const auto packed = descriptor.pack_for_flashinfer({1});
  manager->append_kv(new_keys.view(), new_values.view(), packed, std::array<std::int32_t, 2>{0, 7},
                     1);

  std::int64_t num_written = 0;
  for (const HostTensor& tensor : tensors) {
    for (const float value : tensor.values()) num_written += value == value ? 1 : 0;  // not NaN
  }
  EXPECT_EQ(num_written, 7 * 2 * (4 + 6));
  for (std::int64_t i = 0; i < new_keys.size(); ++i) {
    EXPECT_EQ(testing::cached(keys[1], layout, descriptor.pages(1), i / 8, i / 4 % 2, i % 4),
              new_keys[i]);
  }
  for (std::int64_t i = 0; i < new_values.size(); ++i) {
    EXPECT_EQ(testing::cached(values[1], layout, descriptor.pages(1), i / 12, i / 6 % 2, i % 6),
              new_values[i]);
  }
  const HostTensor read_keys(DType::kFloat32, {7, 2, 4}), read_values(DType::kFloat32, {7, 2, 6});
  manager->read_kv(descriptor.pages(1), 0, 7, read_keys.view(), read_values.view(), 1);
  EXPECT_EQ(read_keys.values(), new_keys.values());
  EXPECT_EQ(read_values.values(), new_values.values());
}

TEST_P(FromStridedTensors, CopiesPagesSlotBySlot) {
  const KVLayout layout = GetParam().layout;
  KVCacheConfig config = kConfig;
  config.kv_layout = layout;
  config.head_dim_v = 4;
  const bool nhd = layout == KVLayout::kNHD;
  const HostTensor tensor = GetParam().tensor(4), other = GetParam().tensor(4);
  const TensorView keys = padded_view(tensor, {5, nhd ? 3 : 2, nhd ? 2 : 3, 4});
  const TensorView values = padded_view(other, keys.shape);
  auto manager = PagedKVCacheManager::from_tensors(std::array{keys}, std::array{values}, config);
  manager->allocate(5);
  const auto for_each = [&](const auto& visit) {
    for (std::int64_t a = 0; a < keys.shape[1]; ++a) {
      for (std::int64_t b = 0; b < keys.shape[2]; ++b) {
        for (std::int64_t d = 0; d < 4; ++d) visit(a, b, d);
      }
    }
  };
  for_each([&](auto a, auto b, auto d) {
    testing::set_element(keys, {1, a, b, d}, static_cast<float>(a * 100 + b * 10 + d));
    testing::set_element(values, {1, a, b, d}, static_cast<float>(-a * 100 - b * 10 - d));
  });
  manager->copy_pages(std::array{PageCopy{1, 4}});
  for_each([&](auto a, auto b, auto d) {
    EXPECT_EQ(element(keys, {4, a, b, d}), static_cast<float>(a * 100 + b * 10 + d));
    EXPECT_EQ(element(values, {4, a, b, d}), static_cast<float>(-a * 100 - b * 10 - d));
  });
  std::int64_t num_written = 0;
  for (const float value : tensor.values()) num_written += value == value ? 1 : 0;
  EXPECT_EQ(num_written, 2 * 3 * 2 * 4);
}

INSTANTIATE_TEST_SUITE_P(Layouts, FromStridedTensors,
                         ::testing::Values(StridedCase{KVLayout::kNHD, {6, 4, 3}, 5},
                                           StridedCase{KVLayout::kHND, {6, 4, 5}, 5},
                                           StridedCase{KVLayout::kNHD, {5, 3, 2}, 1},
                                           StridedCase{KVLayout::kNHD, {5, 3, 4}, 0},
                                           StridedCase{KVLayout::kNHD, {5, 3, 2}, 0},
                                           StridedCase{KVLayout::kHND, {5, 2, 3}, 1},
                                           StridedCase{KVLayout::kHND, {5, 2, 5}, 0},
                                           StridedCase{KVLayout::kHND, {5, 2, 3}, 0}));

// Heads far apart, tokens close together: NHD in name, HND in memory.
TEST(FromTensors, TakesStridesInAnyOrder) {
  const HostTensor keys(DType::kFloat32, {5, 2, 3, 4}), values(DType::kFloat32, {5, 2, 3, 6});
  const auto swapped = [](TensorView view) {
    std::swap(view.shape[1], view.shape[2]);
    std::swap(view.strides[1], view.strides[2]);
    return view;
  };
  auto manager = PagedKVCacheManager::from_tensors(std::array{swapped(keys.view())},
                                                   std::array{swapped(values.view())}, kConfig);
  EXPECT_EQ(manager->key_cache().to_string(),
            "float32[5, 3, 2, 4] with strides [24, 4, 12, 1] on cpu");
}

class FromWrongTensors : public ::testing::Test {
 protected:
  std::string refusal(const TensorView& keys, const TensorView& values) {
    return error_of(
        [&] { PagedKVCacheManager::from_tensors(std::array{keys}, std::array{values}, kConfig); });
  }

  const HostTensor keys_{DType::kFloat32, {5, 3, 2, 4}};
  const HostTensor values_{DType::kFloat32, {5, 3, 2, 6}};
};

TEST_F(FromWrongTensors, RefusesAnotherNumberOfLayers) {
  const std::array one{keys_.view()};
  const std::array two_values{values_.view(), values_.view()};
  EXPECT_EQ(error_of([&] { PagedKVCacheManager::from_tensors(one, two_values, kConfig); }),
            "from_tensors: got 1 key and 2 value tensors; expected num_layers, 1, of each");
  EXPECT_EQ(error_of([&] { PagedKVCacheManager::from_tensors({}, {}, kConfig); }),
            "from_tensors: got 0 key and 0 value tensors; expected num_layers, 1, of each");
}

TEST_F(FromWrongTensors, RefusesOtherShapes) {
  EXPECT_EQ(refusal(keys_.view(), keys_.view()),
            "values[0]: got float32[5, 3, 2, 4] on cpu; expected float32 [5, 3, 2, 6] on cpu");
  TensorView keys = keys_.view();
  keys.shape[0] = 4;
  EXPECT_EQ(refusal(keys, values_.view()),
            "keys[0]: got float32[4, 3, 2, 4] on cpu; expected float32 [5, 3, 2, 4] on cpu");
  keys = keys_.view();
  keys.rank = 3;
  EXPECT_THAT(refusal(keys, values_.view()), HasSubstr("keys[0]: got float32[5, 3, 2]"));
  EXPECT_EQ(refusal({}, values_.view()),
            "keys[0]: got no tensor; expected float32 [5, 3, 2, 4] on cpu");
}

TEST_F(FromWrongTensors, RefusesOtherTypesDevicesAndMemory) {
  TensorView keys = keys_.view();
  keys.dtype = DType::kBFloat16;
  EXPECT_THAT(refusal(keys, values_.view()), HasSubstr("keys[0]: got bfloat16"));
  keys = keys_.view();
  keys.device = cuda();
  EXPECT_THAT(refusal(keys, values_.view()), HasSubstr("on cuda:0; expected float32"));
  TensorView values = values_.view();
  values.read_only = true;
  EXPECT_THAT(refusal(keys_.view(), values),
              HasSubstr("that may be written, not a read-only tensor"));
  values = values_.view();
  values.data = nullptr;
  EXPECT_THAT(refusal(keys_.view(), values), HasSubstr("not a null pointer"));
}

TEST_F(FromWrongTensors, RefusesStridesThatDoNotKeepSlotsApart) {
  const auto with_strides = [&](std::array<std::int64_t, 5> strides) {
    TensorView keys = keys_.view();
    keys.strides = strides;
    return refusal(keys, values_.view());
  };
  EXPECT_THAT(with_strides({24, 8, 4, 2}), HasSubstr("with a contiguous innermost dimension"));
  EXPECT_THAT(with_strides({-24, 8, 4, 1}), HasSubstr("without negative strides"));
  for (const auto& strides : std::vector<std::array<std::int64_t, 5>>{{24, 8, 3, 1},
                                                                      {24, 7, 4, 1},
                                                                      {23, 8, 4, 1},
                                                                      {0, 8, 4, 1},
                                                                      {24, 0, 4, 1},
                                                                      {24, 4, 4, 1}}) {
    EXPECT_THAT(with_strides(strides), HasSubstr("whose elements do not share memory"));
  }
}

// One tensor for all layers: pages [num_pages, layer, ...] or tokens [.., page_size, layer, ..] of
// the layers take turns.
TEST(FromTensors, TakesLayersThatLieBetweenOneAnother) {
  KVCacheConfig config = kConfig;
  config.num_layers = 2;
  const HostTensor whole(DType::kFloat32, {5, 2, 3, 2, 10});
  std::vector<TensorView> keys(2, whole.view()), values(2, whole.view());
  const auto place = [&](std::array<std::int64_t, 5> strides, std::int64_t layer_stride) {
    for (int layer = 0; layer < 2; ++layer) {
      for (auto* list : {&keys, &values}) {
        TensorView& view = (*list)[static_cast<std::size_t>(layer)];
        const bool is_value = list == &values;
        view.rank = 4;
        view.shape = {5, 3, 2, is_value ? 6 : 4};
        view.strides = strides;
        view.data =
            static_cast<float*>(whole.view().data) + layer * layer_stride + (is_value ? 4 : 0);
      }
    }
  };
  place({120, 20, 10, 1}, 60);
  PagedKVCacheManager::from_tensors(keys, values, config);
  place({120, 40, 10, 1}, 20);
  PagedKVCacheManager::from_tensors(keys, values, config);
  place({120, 40, 20, 1}, 10);
  PagedKVCacheManager::from_tensors(keys, values, config);
  for (const std::int64_t shift : {0, 5, 40, 120, 480, 484}) {
    place({120, 40, 20, 1}, shift);
    EXPECT_THAT(error_of([&] { PagedKVCacheManager::from_tensors(keys, values, config); }),
                ::testing::AllOf(HasSubstr("s[1]: shares memory with "),
                                 HasSubstr("s[0]; expected layers apart")))
        << shift;
  }
}

// Latent attention: values are the first elements of the keys.
TEST(FromTensors, TakesValuesThatArePartOfTheKeys) {
  auto random = testing::random_source(12);
  KVCacheConfig config = kConfig;
  config.head_dim = 6;
  config.head_dim_v = 4;
  const HostTensor cache(DType::kFloat32, {5, 3, 2, 6});
  TensorView latent = cache.view();
  latent.shape[3] = 4;
  auto manager =
      PagedKVCacheManager::from_tensors(std::array{cache.view()}, std::array{latent}, config);
  CacheDescriptor descriptor(*manager);
  descriptor.allocate({1}, {4});
  const auto keys = testing::random_tensor(random, DType::kFloat32, {4, 2, 6});
  const auto others = testing::random_tensor(random, DType::kFloat32, {4, 2, 4});
  TensorView part = keys.view();
  part.shape[2] = 4;
  const auto packed = descriptor.pack_for_flashinfer({1});
  manager->append_kv(keys.view(), part, packed, std::array{0, 4});
  EXPECT_EQ(element(cache.view(), {1, 0, 1, 5}), keys[3 * 12 + 11]);
  EXPECT_EQ(element(cache.view(), {1, 0, 1, 3}), keys[3 * 12 + 9]);
  manager->append_kv(keys.view(), others.view(), packed, std::array{0, 4});  // values come second
  EXPECT_EQ(element(cache.view(), {1, 0, 1, 5}), keys[3 * 12 + 11]);
  EXPECT_EQ(element(cache.view(), {1, 0, 1, 3}), others[3 * 8 + 7]);
}

TEST_F(FromWrongTensors, ChecksTheConfigToo) {
  KVCacheConfig config = kConfig;
  config.num_heads = 0;
  EXPECT_EQ(error_of([&] {
              PagedKVCacheManager::from_tensors(std::array{keys_.view()},
                                                std::array{values_.view()}, config);
            }),
            "num_heads: got 0; expected at least 1");
}

}  // namespace
}  // namespace seqattn
