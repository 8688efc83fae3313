// Page copies on a GPU: copy-on-write in all layers, chains of copies, the caller's own tensors.
#include <gtest/gtest.h>

#include <array>
#include <memory>
#include <vector>

#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/seqattn.h"
#include "tensor.h"

namespace seqattn::testing {
namespace {

class CudaPageCopies : public ::testing::TestWithParam<KVLayout> {
 protected:
  static constexpr int kHeads = 2, kDim = 72, kDimV = 40, kLayers = 5, kPageSize = 7;
  static constexpr std::int64_t kPages = 12;
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
    manager = std::make_unique<PagedKVCacheManager>(config());
    fill(*manager);
  }
  static KVCacheConfig config() {
    return {.num_pages = kPages,
            .page_size = kPageSize,
            .num_heads = kHeads,
            .head_dim = kDim,
            .head_dim_v = kDimV,
            .num_layers = kLayers,
            .device = cuda(0),
            .kv_layout = GetParam()};
  }
  // Random bytes in every slot of every layer.
  void fill(PagedKVCacheManager& to) {
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const TensorView& cache : {to.key_cache(layer), to.value_cache(layer)}) {
        std::vector<std::byte> bytes(static_cast<std::size_t>(cache.num_elements() * 2));
        for (std::byte& b : bytes) b = static_cast<std::byte>(random());
        copy_to_device(cuda(0), cache.data, bytes);
      }
    }
  }
  // [layer * 2 + (keys, values)][page]: the bytes of the pages, which are contiguous.
  std::vector<std::vector<std::vector<std::byte>>> pages() {
    std::vector<std::vector<std::vector<std::byte>>> all;
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const TensorView& cache : {manager->key_cache(layer), manager->value_cache(layer)}) {
        auto& list = all.emplace_back();
        const std::int64_t bytes = cache.strides[0] * 2;
        for (std::int64_t page = 0; page < kPages; ++page) {
          list.push_back(
              copy_to_host(cuda(0), static_cast<std::byte*>(cache.data) + page * bytes, bytes));
        }
      }
    }
    return all;
  }
  void expect_copied(const std::vector<PageCopy>& copies) {
    auto expected = pages();
    for (auto& plane : expected) {
      for (const PageCopy& copy : copies) {
        plane[static_cast<std::size_t>(copy.target)] = plane[static_cast<std::size_t>(copy.source)];
      }
    }
    manager->copy_pages(copies);
    EXPECT_TRUE(pages() == expected);
  }

  std::mt19937_64 random = random_source(5800);
  std::unique_ptr<PagedKVCacheManager> manager;
};

TEST_P(CudaPageCopies, CopyEveryLayerInOrder) {
  manager->allocate(kPages);
  expect_copied({{0, 1}});
  expect_copied({{2, 3}, {4, 5}, {2, 6}});              // independent
  expect_copied({{0, 7}, {7, 8}, {8, 9}});              // each reads what the one before wrote
  expect_copied({{1, 2}, {2, 1}, {3, 3}});              // there and back, and onto itself
  expect_copied({{5, 10}, {6, 10}, {10, 11}, {0, 6}});  // written twice
}

TEST_P(CudaPageCopies, OfSharedPagesHappenWhenASequenceGrows) {
  CacheDescriptor sequences(*manager);
  sequences.allocate({1}, {10});  // 2 pages, the second partly filled
  sequences.fork(1, 2);
  const auto before = pages();
  const auto copies = sequences.allocate_decoding({2});
  ASSERT_EQ(copies.size(), 1u);
  EXPECT_EQ(copies[0].source, sequences.pages(1)[1]);
  EXPECT_EQ(copies[0].target, sequences.pages(2)[1]);
  auto expected = before;
  for (auto& plane : expected) {
    plane[static_cast<std::size_t>(copies[0].target)] =
        plane[static_cast<std::size_t>(copies[0].source)];
  }
  EXPECT_TRUE(pages() == expected);

  // The child's token goes to its own page in every layer; the parent's stays as it was.
  Tensor keys(cuda(0), DType::kFloat16, {1, kHeads, kDim});
  Tensor values(cuda(0), DType::kFloat16, {1, kHeads, kDimV});
  keys.write(std::vector<double>(kHeads * kDim, 0.25));
  values.write(std::vector<double>(kHeads * kDimV, 0.5));
  for (int layer = 0; layer < kLayers; ++layer) {
    manager->append_kv(keys.view(), values.view(), sequences.pack_for_flashinfer({2}),
                       std::array{0, 1}, layer);
  }
  const auto after = pages();
  for (std::size_t plane = 0; plane < after.size(); ++plane) {
    for (std::size_t page = 0; page < after[plane].size(); ++page) {
      const bool is_child = page == static_cast<std::size_t>(copies[0].target);
      EXPECT_EQ(after[plane][page] != expected[plane][page], is_child) << plane << ", " << page;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, CudaPageCopies, ::testing::Values(KVLayout::kNHD, KVLayout::kHND),
                         [](const auto& test) { return std::string(to_string(test.param)); });

// The caller's tensors, one a layer, with room between heads, tokens and pages: appended, copied,
// read, and nothing between slots is touched.
TEST(CudaBorrowedStorage, MayLeaveGaps) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5801);
  constexpr int kHeads = 3, kDim = 24, kPageSize = 4;
  for (const int gap : {8, 5}) {  // aligned to 16 bytes, and not
    const std::int64_t inner = kDim + gap, outer = kHeads * inner + gap;
    const Layout layout{{kPageSize * outer + gap, outer, inner, 1}, gap};
    std::vector<Tensor> keys, values;
    std::vector<TensorView> key_views, value_views;
    for (int layer = 0; layer < 2; ++layer) {
      for (auto* list : {&keys, &values}) {
        list->emplace_back(cuda(0), DType::kBFloat16,
                           std::vector<std::int64_t>{8, kPageSize, kHeads, kDim}, layout);
      }
      key_views.push_back(keys.back().view());
      value_views.push_back(values.back().view());
    }
    const auto manager = PagedKVCacheManager::from_tensors(key_views, value_views,
                                                           {.num_pages = 8,
                                                            .page_size = kPageSize,
                                                            .num_heads = kHeads,
                                                            .head_dim = kDim,
                                                            .num_layers = 2,
                                                            .dtype = DType::kBFloat16,
                                                            .device = cuda(0)});
    CacheDescriptor sequences(*manager);
    sequences.allocate({1}, {10});
    Tensor k(cuda(0), DType::kFloat32, {10, kHeads, kDim}),
        v = Tensor(k.view().device, DType::kBFloat16, {10, kHeads, kDim});
    std::normal_distribution<double> normal;
    std::vector<double> k_values(10 * kHeads * kDim), v_values(10 * kHeads * kDim);
    for (double& x : k_values) x = rounded(DType::kBFloat16, normal(random));
    for (double& x : v_values) x = rounded(DType::kBFloat16, normal(random));
    k.write(k_values);
    v.write(v_values);
    manager->append_kv(k.view(), v.view(), sequences.pack_for_flashinfer({1}), std::array{0, 10},
                       1);
    sequences.fork(1, 2);
    sequences.allocate_decoding({2});  // copies the last page
    const Tensor read_k(cuda(0), DType::kFloat32, {10, kHeads, kDim});
    const Tensor read_v(cuda(0), DType::kFloat32, {10, kHeads, kDim});
    manager->read_kv(sequences.pages(2), 0, 10, read_k.view(), read_v.view(), 1);
    EXPECT_EQ(read_k.read(), k_values);
    EXPECT_EQ(read_v.read(), v_values);
    for (const auto* list : {&keys, &values}) {
      for (const Tensor& tensor : *list) EXPECT_TRUE(tensor.gaps_are_untouched());
    }
  }
}

}  // namespace
}  // namespace seqattn::testing
