#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/batch_attention.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/paged_kv_cache_manager.h"

// Copies that are large enough for several threads leave what one thread leaves.
namespace seqattn {
namespace {

using ::seqattn::testing::bytes_of;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::random_tensor;

constexpr KVCacheConfig kConfig{
    .num_pages = 200, .page_size = 16, .num_heads = 4, .head_dim = 64, .num_layers = 3};
constexpr std::int32_t kTokens = 2500;

class ThreadedCopies : public ::testing::Test {
 protected:
  std::mt19937_64 random_ = testing::random_source(44);
  const HostTensor keys_ = random_tensor(random_, DType::kFloat16, {kTokens, 4, 64});
  const HostTensor values_ = random_tensor(random_, DType::kFloat16, {kTokens, 4, 64});
};

TEST_F(ThreadedCopies, AppendsAreThoseOfOneThread) {
  std::vector<std::vector<std::byte>> caches;
  for (const int num_threads : {1, 2, 3, 8}) {
    PagedKVCacheManager manager(kConfig);
    CacheDescriptor descriptor(manager);
    descriptor.allocate({1, 2, 3}, {7, 2000, 493});
    BatchAttention attention(manager, {.num_qo_heads = 4, .num_threads = num_threads});
    attention.plan(descriptor.pack_for_flashinfer({1, 2, 3}), {0, 7, 2007, kTokens});
    attention.append_kv(keys_.view(), values_.view(), 1);
    caches.push_back(bytes_of(manager.key_cache(1)));
    const auto values = bytes_of(manager.value_cache(1));
    caches.back().insert(caches.back().end(), values.begin(), values.end());
    EXPECT_TRUE(caches.back() == caches.front()) << num_threads << " threads";
  }
}

TEST_F(ThreadedCopies, ReadsGiveWhatWasAppended) {
  PagedKVCacheManager manager(kConfig);
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1}, {kTokens});
  manager.append_kv(keys_.view(), values_.view(), descriptor.pack_for_flashinfer({1}), {0, kTokens},
                    2);
  const HostTensor keys(DType::kFloat16, {kTokens, 4, 64}),
      values(DType::kFloat16, {kTokens, 4, 64});
  manager.read_kv(descriptor.pages(1), 0, kTokens, keys.view(), values.view(), 2);
  EXPECT_TRUE(bytes_of(keys.view()) == bytes_of(keys_.view()));
  EXPECT_TRUE(bytes_of(values.view()) == bytes_of(values_.view()));
}

// Each page onto the next: all of them end as the first one, in every layer.
TEST_F(ThreadedCopies, PageCopiesFollowOneAnother) {
  PagedKVCacheManager manager(kConfig);
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1}, {kTokens});
  const auto packed = descriptor.pack_for_flashinfer({1});
  std::vector<PageCopy> copies;
  for (PageId page = 0; page + 1 < 150; ++page) copies.push_back({page, page + 1});
  for (int layer = 0; layer < 3; ++layer) {
    manager.append_kv(keys_.view(), values_.view(), packed, {0, kTokens}, layer);
  }
  manager.copy_pages(copies);
  for (int layer = 0; layer < 3; ++layer) {
    for (const TensorView& cache : {manager.key_cache(layer), manager.value_cache(layer)}) {
      const auto bytes = bytes_of(cache);
      const auto page_bytes = static_cast<std::ptrdiff_t>(bytes.size()) / kConfig.num_pages;
      for (std::ptrdiff_t page = 1; page < 150; ++page) {
        ASSERT_TRUE(std::equal(bytes.begin(), bytes.begin() + page_bytes,
                               bytes.begin() + page * page_bytes))
            << "layer " << layer << ", page " << page;
      }
    }
  }
}

TEST_F(ThreadedCopies, MergesAreThoseOfSmallerParts) {
  const HostTensor lse_a = random_tensor(random_, DType::kFloat32, {kTokens, 4});
  const HostTensor lse_b = random_tensor(random_, DType::kFloat32, {kTokens, 4});
  const HostTensor whole(DType::kFloat16, {kTokens, 4, 64}),
      parts(DType::kFloat16, {kTokens, 4, 64});
  merge_states(keys_.view(), lse_a.view(), values_.view(), lse_b.view(), whole.view());
  const auto part = [](const HostTensor& tensor, std::int64_t first) {
    TensorView view = tensor.view();
    view.data = static_cast<std::byte*>(view.data) + first * view.strides[0] * size_of(view.dtype);
    view.shape[0] = 50;
    return view;
  };
  for (std::int64_t first = 0; first < kTokens; first += 50) {
    merge_states(part(keys_, first), part(lse_a, first), part(values_, first), part(lse_b, first),
                 part(parts, first));
  }
  EXPECT_TRUE(bytes_of(whole.view()) == bytes_of(parts.view()));
}

}  // namespace
}  // namespace seqattn
