#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>
#include <new>
#include <string>

#include "error_text.h"
#include "host_tensor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// A manager with storage of its own: sizes, views, what is refused.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::testing::Each;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr int kMaxInt = std::numeric_limits<int>::max();
constexpr KVCacheConfig kSmall{.num_pages = 6,
                               .page_size = 4,
                               .num_heads = 3,
                               .head_dim = 8,
                               .head_dim_v = 5,
                               .num_layers = 2,
                               .dtype = DType::kBFloat16};

std::string refusal(const KVCacheConfig& config) {
  return error_of([&] { PagedKVCacheManager manager(config); });
}

TEST(ManagerConstruction, KeepsTheConfigAndResolvesHeadDimV) {
  const PagedKVCacheManager manager({.num_pages = 3, .num_heads = 2, .head_dim = 8});
  EXPECT_EQ(manager.config().head_dim_v, 8);
  EXPECT_EQ(manager.config().page_size, 16);
  EXPECT_EQ(manager.config().num_layers, 1);
  EXPECT_EQ(manager.config().dtype, DType::kFloat16);
  EXPECT_EQ(manager.config().kv_layout, KVLayout::kNHD);
  EXPECT_EQ(PagedKVCacheManager(kSmall).config().head_dim_v, 5);
}

TEST(ManagerConstruction, ForwardsThePoolsMembers) {
  PagedKVCacheManager manager(kSmall);
  EXPECT_EQ(manager.pool().num_pages(), 6);
  EXPECT_EQ(manager.pool().page_size(), 4);
  EXPECT_THAT(manager.allocate(3), ElementsAre(0, 1, 2));
  manager.ref({1});
  EXPECT_EQ(manager.ref_count(1), 2);
  manager.unref({0, 1});
  manager.release_pages({2});
  EXPECT_EQ(manager.available_pages_count(), 5);
  EXPECT_EQ(&static_cast<const PagedKVCacheManager&>(manager).pool(), &manager.pool());
}

TEST(ManagerConstruction, GivesViewsOfItsStorage) {
  for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
    KVCacheConfig config = kSmall;
    config.kv_layout = layout;
    PagedKVCacheManager manager(config);
    const bool nhd = layout == KVLayout::kNHD;
    for (int layer = 0; layer < 2; ++layer) {
      const TensorView keys = manager.key_cache(layer), values = manager.value_cache(layer);
      EXPECT_EQ(keys.to_string(),
                nhd ? "bfloat16[6, 4, 3, 8] on cpu" : "bfloat16[6, 3, 4, 8] on cpu");
      EXPECT_EQ(values.to_string(),
                nhd ? "bfloat16[6, 4, 3, 5] on cpu" : "bfloat16[6, 3, 4, 5] on cpu");
      EXPECT_FALSE(keys.read_only);
    }
  }
}

TEST(ManagerConstruction, LayersLieOneBehindTheOtherInOneAllocation) {
  PagedKVCacheManager manager(kSmall);
  const auto distance = [](const TensorView& first, const TensorView& second) {
    return static_cast<std::byte*>(second.data) - static_cast<std::byte*>(first.data);
  };
  EXPECT_EQ(distance(manager.key_cache(0), manager.key_cache(1)), 6 * 4 * 3 * 8 * 2);
  EXPECT_EQ(distance(manager.value_cache(0), manager.value_cache(1)), 6 * 4 * 3 * 5 * 2);
}

TEST(ManagerConstruction, FreshStorageIsZero) {
  PagedKVCacheManager manager(kSmall);
  for (int layer = 0; layer < 2; ++layer) {
    EXPECT_THAT(testing::bytes_of(manager.key_cache(layer)), Each(std::byte{0}));
    EXPECT_THAT(testing::bytes_of(manager.value_cache(layer)), Each(std::byte{0}));
  }
}

TEST(ManagerConstruction, KnowsTheBytesOfAPage) {
  EXPECT_EQ(PagedKVCacheManager(kSmall).bytes_per_page(), 4 * 3 * (8 + 5) * 2 * 2);
  const PagedKVCacheManager floats(
      {.num_pages = 1, .page_size = 1, .num_heads = 1, .head_dim = 1, .dtype = DType::kFloat32});
  EXPECT_EQ(floats.bytes_per_page(), 8);
}

TEST(ManagerConstruction, DescribesItself) {
  PagedKVCacheManager manager(kSmall);
  manager.allocate(2);
  EXPECT_EQ(manager.to_string(),
            "PagedKVCacheManager(num_pages=6, page_size=4, num_heads=3, head_dim=8, head_dim_v=5, "
            "num_layers=2, dtype=bfloat16, device=cpu, kv_layout=NHD, available=4)");
}

TEST(ManagerConstruction, MayHaveNoPages) {
  PagedKVCacheManager manager({.num_pages = 0, .num_heads = 2, .head_dim = 8});
  EXPECT_EQ(manager.available_pages_count(), 0);
  EXPECT_EQ(manager.key_cache().num_elements(), 0);
}

TEST(ManagerConstruction, RefusesSizesBelowTheirMinimum) {
  const auto with = [](auto member, auto value) {
    KVCacheConfig config = kSmall;
    config.*member = value;
    return refusal(config);
  };
  EXPECT_EQ(with(&KVCacheConfig::num_pages, -1), "num_pages: got -1; expected at least 0");
  EXPECT_EQ(with(&KVCacheConfig::page_size, 0), "page_size: got 0; expected at least 1");
  EXPECT_EQ(with(&KVCacheConfig::page_size, -4), "page_size: got -4; expected at least 1");
  EXPECT_EQ(with(&KVCacheConfig::num_heads, 0), "num_heads: got 0; expected at least 1");
  EXPECT_EQ(with(&KVCacheConfig::head_dim, -8), "head_dim: got -8; expected at least 1");
  EXPECT_EQ(with(&KVCacheConfig::head_dim_v, -1), "head_dim_v: got -1; expected at least 1");
  EXPECT_EQ(with(&KVCacheConfig::num_layers, 0), "num_layers: got 0; expected at least 1");
  EXPECT_EQ(with(&KVCacheConfig::num_pages, std::int64_t{1} << 31),
            "num_pages: got 2147483648; expected 0 <= num_pages < 2^31");
}

TEST(ManagerConstruction, RefusesTotalsThatOverflow) {
  const KVCacheConfig huge{.num_pages = 1 << 30,
                           .page_size = 1 << 20,
                           .num_heads = 1 << 8,
                           .head_dim = 1 << 4,
                           .num_layers = 1};
  EXPECT_EQ(refusal(huge),
            "cache: 1 layers of 1073741824 pages, 1048576 tokens, 256 heads of 16 and 16 elements "
            "take more than 2^62 bytes; expected fewer pages");
  KVCacheConfig by_layers = huge;
  by_layers.num_heads = 1;
  by_layers.num_layers = kMaxInt;
  EXPECT_THAT(refusal(by_layers), HasSubstr("2147483647 layers"));
  KVCacheConfig by_values = huge;
  by_values.num_heads = by_values.head_dim = 1;
  by_values.head_dim_v = kMaxInt;
  EXPECT_THAT(refusal(by_values), HasSubstr("of 1 and 2147483647 elements"));
  KVCacheConfig by_the_sum = huge;  // 2^61 bytes of keys and a little more of values
  by_the_sum.num_heads = 1;
  by_the_sum.head_dim = 1 << 10;
  by_the_sum.head_dim_v = (1 << 10) + 1;
  EXPECT_THAT(refusal(by_the_sum), HasSubstr("of 1024 and 1025 elements"));
}

TEST(ManagerConstruction, RefusesPagesThatOverflowEvenWhereThereAreNone) {
  EXPECT_THAT(refusal({.num_pages = 0,
                       .page_size = kMaxInt,
                       .num_heads = kMaxInt,
                       .head_dim = kMaxInt,
                       .num_layers = kMaxInt}),
              HasSubstr("take more than 2^62 bytes"));
}

// 2^51 bytes: more than a process can address.
TEST(ManagerConstruction, SaysHowMuchMemoryIsMissing) {
  EXPECT_EQ(error_of<std::bad_alloc>([] {
              PagedKVCacheManager manager(
                  {.num_pages = 4, .page_size = 16, .num_heads = 1 << 20, .head_dim = 1 << 24});
            }),
            "cache: no memory for the 2251799813685248 bytes of the keys of 1 layers and 4 pages; "
            "expected a size that fits: use fewer pages (num_pages)");
}

TEST(ManagerConstruction, IsReadyAtOnceOnACPU) {
  PagedKVCacheManager manager(kSmall);
  manager.synchronize();
}

TEST(ManagerConstruction, RefusesDevicesThatThisBuildDoesNotServe) {
  KVCacheConfig config = kSmall;
  config.device = {DeviceType::kCPU, 1};
  EXPECT_EQ(error_of<UnsupportedError>([&] { PagedKVCacheManager manager(config); }),
            "device: got CPU number 1; expected 0, the only one there is");
}

TEST(ManagerConstruction, RefusesLayersOutOfRange) {
  PagedKVCacheManager manager(kSmall);
  EXPECT_EQ(error_of([&] { manager.key_cache(2); }), "layer: got 2; expected 0 <= layer < 2");
  EXPECT_EQ(error_of([&] { manager.value_cache(-1); }), "layer: got -1; expected 0 <= layer < 2");
}

}  // namespace
}  // namespace seqattn
