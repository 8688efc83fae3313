#include "stored_tokens.h"

#include <gtest/gtest.h>

#include <vector>

#include "host_tensor.h"

namespace seqattn::testing {
namespace {

constexpr int kLayers = 2, kHeads = 2, kHeadDim = 3, kHeadDimV = 1;
constexpr std::int64_t kKeySize = kHeads * kHeadDim, kValueSize = kHeads * kHeadDimV;

// A different one for each element; float32 holds it up to a million tokens.
float element(std::int64_t token, int layer, std::int64_t i) {
  return static_cast<float>(token * 16 + layer * 8 + i + 1);
}

}  // namespace

KVCacheConfig numbered_config(std::int64_t num_pages, int page_size, KVLayout layout) {
  return {.num_pages = num_pages,
          .page_size = page_size,
          .num_heads = kHeads,
          .head_dim = kHeadDim,
          .head_dim_v = kHeadDimV,
          .num_layers = kLayers,
          .dtype = DType::kFloat32,
          .kv_layout = layout};
}

void append_numbers(PagedKVCacheManager& manager, const FlashInferPackedData& packed,
                    std::span<const std::int64_t> lengths, std::span<const std::int64_t> numbers) {
  std::vector<std::int32_t> indptr = {0};
  for (const std::int64_t n : lengths) {
    indptr.push_back(indptr.back() + static_cast<std::int32_t>(n));
  }
  const auto token = [&](std::int64_t i) { return numbers[static_cast<std::size_t>(i)]; };
  for (int layer = 0; layer < kLayers; ++layer) {
    HostTensor keys(DType::kFloat32, {std::ssize(numbers), kHeads, kHeadDim});
    HostTensor values(DType::kFloat32, {std::ssize(numbers), kHeads, kHeadDimV});
    for (std::int64_t i = 0; i < keys.size(); ++i) {
      keys.set(i, element(token(i / kKeySize), layer, i % kKeySize));
    }
    for (std::int64_t i = 0; i < values.size(); ++i) {
      values.set(i, -element(token(i / kValueSize), layer, i % kValueSize));
    }
    manager.append_kv(keys.view(), values.view(), packed, indptr, layer);
  }
}

void expect_numbers(const PagedKVCacheManager& manager, std::span<const PageId> pages,
                    std::span<const std::int64_t> numbers) {
  const std::int64_t n = std::ssize(numbers);
  const auto token = [&](std::int64_t i) { return numbers[static_cast<std::size_t>(i)]; };
  for (int layer = 0; layer < kLayers; ++layer) {
    const HostTensor keys(DType::kFloat32, {n, kHeads, kHeadDim});
    const HostTensor values(DType::kFloat32, {n, kHeads, kHeadDimV});
    manager.read_kv(pages, 0, n, keys.view(), values.view(), layer);
    for (std::int64_t i = 0; i < keys.size(); ++i) {
      ASSERT_EQ(keys[i], element(token(i / kKeySize), layer, i % kKeySize))
          << "slot " << i / kKeySize;
    }
    for (std::int64_t i = 0; i < values.size(); ++i) {
      ASSERT_EQ(values[i], -element(token(i / kValueSize), layer, i % kValueSize))
          << "slot " << i / kValueSize;
    }
  }
}

}  // namespace seqattn::testing
