#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "error_text.h"
#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/paged_kv_cache_manager.h"

// write_kv: tokens into any part of a list of pages.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::HostTensor;
using ::testing::HasSubstr;

class Write : public ::testing::TestWithParam<KVLayout> {
 protected:
  HostTensor tokens(DType dtype, std::int64_t count, std::int64_t head_dim) {
    return testing::random_tensor(random_, dtype, {count, 2, head_dim});
  }
  // What the pages hold, all of it.
  std::vector<std::vector<float>> held(PageIds pages) {
    std::vector<std::vector<float>> all;
    const auto count = static_cast<std::int64_t>(pages.size()) * 4;
    for (int layer = 0; layer < 2; ++layer) {
      const HostTensor keys(DType::kFloat32, {count, 2, 4}), values(DType::kFloat32, {count, 2, 3});
      manager_.read_kv(pages, 0, count, keys.view(), values.view(), layer);
      all.push_back(keys.values());
      all.push_back(values.values());
    }
    return all;
  }

  std::mt19937_64 random_ = testing::random_source(4401);
  PagedKVCacheManager manager_{{.num_pages = 6,
                                .page_size = 4,
                                .num_heads = 2,
                                .head_dim = 4,
                                .head_dim_v = 3,
                                .num_layers = 2,
                                .dtype = DType::kFloat16,
                                .kv_layout = GetParam()}};
  const std::vector<PageId> pages_ = manager_.allocate(3);
};

TEST_P(Write, FillsAnyPartAndNothingElse) {
  for (const DType dtype : {DType::kFloat16, DType::kFloat32}) {
    for (std::int64_t first = 0; first <= 12; ++first) {
      for (std::int64_t count = 0; first + count <= 12; ++count) {
        const HostTensor keys = tokens(dtype, count, 4), values = tokens(dtype, count, 3);
        auto expected = held({2, 0, 1});
        HostTensor rounded(DType::kFloat16, {1});
        const auto put = [&](const HostTensor& from, std::vector<float>& to, std::int64_t width) {
          for (std::int64_t i = 0; i < from.size(); ++i) {
            rounded.set(0, from[i]);
            to[static_cast<std::size_t>(first * width + i)] = rounded[0];
          }
        };
        put(keys, expected[2], 8);
        put(values, expected[3], 6);
        manager_.write_kv({2, 0, 1}, first, count, keys.view(), values.view(), 1);
        EXPECT_EQ(held({2, 0, 1}), expected);
      }
    }
  }
}

TEST_P(Write, RefusesWhatItCannotWriteAndWritesNothing) {
  const HostTensor keys = tokens(DType::kFloat32, 2, 4), values = tokens(DType::kFloat32, 2, 3);
  manager_.ref({1});
  const auto refusal = [&](PageIds pages, std::int64_t first, std::int64_t count, int layer = 0) {
    const auto before = held({0, 1, 2, 3, 4, 5});
    const auto message = error_of(
        [&] { manager_.write_kv(pages, first, count, keys.view(), values.view(), layer); });
    EXPECT_EQ(held({0, 1, 2, 3, 4, 5}), before);
    return message;
  };
  EXPECT_EQ(refusal({0, 2}, 7, 2),
            "write_kv: got first 7 and count 2; expected a part of the 8 tokens of 2 pages");
  EXPECT_THAT(refusal({0, 2}, -1, 2), HasSubstr("got first -1"));
  EXPECT_THAT(refusal({0, 2}, 0, -2), HasSubstr("count -2"));
  constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(refusal({0}, kHuge, kHuge), HasSubstr("got first 9223372036854775807"));
  EXPECT_THAT(refusal({0, 6}, 0, 2), HasSubstr("got page 6; expected 0 <= page < 6"));
  EXPECT_THAT(refusal({0}, 0, 2, 2), HasSubstr("layer: got 2"));
  EXPECT_THAT(refusal({0}, 0, 3), HasSubstr("keys: got float32[2, 2, 4] on cpu"));
  EXPECT_THAT(refusal({0, 1}, 3, 2), HasSubstr("page 1 has 2 references; expected 1"));
  EXPECT_THAT(refusal({0, 4}, 3, 2), HasSubstr("page 4 is free"));
  EXPECT_THAT(refusal({0, 0}, 3, 2), HasSubstr("page 0 would be written twice"));
  // Pages that are not written may be shared.
  manager_.write_kv({1, 0}, 4, 2, keys.view(), values.view());
}

TEST_P(Write, RefusesTensorsInsideTheCache) {
  HostTensor values = tokens(DType::kFloat16, 2, 3);
  TensorView keys = manager_.key_cache(1);
  keys.rank = 3;
  keys.shape = {2, 2, 4};
  keys.strides = {8, 4, 1};
  EXPECT_THAT(error_of([&] { manager_.write_kv({0}, 0, 2, keys, values.view()); }),
              HasSubstr("keys: shares memory with the key cache of layer 1"));
}

INSTANTIATE_TEST_SUITE_P(Manager, Write, ::testing::Values(KVLayout::kNHD, KVLayout::kHND),
                         [](const auto& tested) { return std::string(to_string(tested.param)); });

}  // namespace
}  // namespace seqattn
