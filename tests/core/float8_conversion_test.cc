#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <vector>

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "host_tensor.h"
#include "seqattn/float8.h"
#include "seqattn/paged_kv_cache_manager.h"

// The conversions that caches use, many elements at a time, against float8.h's, one at a time.
namespace seqattn {
namespace {

using ::seqattn::testing::HostTensor;

// A cache of one page and head, scale 1, of that many elements.
PagedKVCacheManager cache_of(std::size_t count) {
  return PagedKVCacheManager({.num_pages = 1,
                              .page_size = 1,
                              .num_heads = 1,
                              .head_dim = static_cast<int>(count),
                              .head_dim_v = 1,
                              .dtype = DType::kFloat8E4M3});
}

void write(PagedKVCacheManager& manager, const std::vector<float>& keys) {
  manager.allocate(1);
  const auto view = [](const std::vector<float>& values) {
    return TensorView::contiguous(values.data(), DType::kFloat32,
                                  {1, 1, static_cast<std::int64_t>(values.size())});
  };
  manager.write_kv({0}, 0, 1, view(keys), view({0}));
}

std::vector<float> read(const PagedKVCacheManager& manager) {
  HostTensor k(DType::kFloat32, {1, 1, manager.config().head_dim}), v(DType::kFloat32, {1, 1, 1});
  manager.read_kv({0}, 0, 1, k.view(), v.view());
  return k.values();
}

TEST(Float8Conversion, RoundsAsOneElementDoes) {
  std::vector<float> values;
  for (std::uint32_t high = 0; high < 0x10000u; ++high) {
    for (const std::uint32_t low : {0x0u, 0x1u, 0x7fffu, 0x8000u, 0xffffu}) {
      values.push_back(std::bit_cast<float>(high << 16 | low));
    }
  }
  PagedKVCacheManager manager = cache_of(values.size());
  write(manager, values);
  const auto* const stored = static_cast<const std::uint8_t*>(manager.key_cache().data);
  for (std::size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(stored[i], to_float8_e4m3(values[i])) << std::hexfloat << values[i];
  }
}

// Every pattern, where the processor counts floats below 2^-126 as zeros, and where not.
TEST(Float8Conversion, ReadsAsOneElementDoes) {
  PagedKVCacheManager manager = cache_of(256);
  write(manager, std::vector<float>(256));
  auto* const stored = static_cast<std::uint8_t*>(manager.key_cache().data);
  for (int bits = 0; bits < 256; ++bits) stored[bits] = static_cast<std::uint8_t>(bits);
  const auto expect_all = [&] {
    const std::vector<float> got = read(manager);
    for (int bits = 0; bits < 256; ++bits) {
      const float expected = from_float8_e4m3(static_cast<std::uint8_t>(bits));
      const float value = got[static_cast<std::size_t>(bits)];
      EXPECT_EQ(std::isnan(value), std::isnan(expected)) << bits;
      if (std::isnan(expected)) continue;
      EXPECT_EQ(value, expected) << bits;
      EXPECT_EQ(std::signbit(value), std::signbit(expected)) << bits;
      EXPECT_NE(value == 0, (bits & 0x7f) != 0) << bits;
    }
  };
  expect_all();
#if defined(__SSE2__)
  const unsigned before = _mm_getcsr();
  _mm_setcsr(before | 0x8040u);  // flush to zero, denormals are zeros
  expect_all();
  _mm_setcsr(before);
#endif
}

}  // namespace
}  // namespace seqattn
