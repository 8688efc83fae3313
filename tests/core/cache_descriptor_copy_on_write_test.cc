#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>

#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/paged_kv_cache_manager.h"

// Growth of sequences that share pages: what is copied, in which order, and what is not.
namespace seqattn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

class CopyOnWrite : public ::testing::Test {
 protected:
  void TearDown() override { descriptor_.check_invariants(); }

  PagePool pool_{16, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(CopyOnWrite, TheSharerThatGrowsGetsACopyOfTheLastPage) {
  descriptor_.allocate({1}, {6});
  descriptor_.fork(1, 2);
  EXPECT_THAT(descriptor_.allocate_decoding({2}), ElementsAre(PageCopy{1, 2}));
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 1));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 2));
  EXPECT_EQ(descriptor_.length(1), 6);
  EXPECT_EQ(descriptor_.length(2), 7);
  EXPECT_EQ(pool_.ref_count(1), 1);
  EXPECT_EQ(pool_.ref_count(2), 1);
}

TEST_F(CopyOnWrite, TheLastSharerKeepsThePage) {
  descriptor_.allocate({1}, {6});
  descriptor_.fork(1, 2);
  descriptor_.fork(1, 3);
  EXPECT_THAT(descriptor_.allocate_decoding({3, 1, 2}),
              ElementsAre(PageCopy{1, 2}, PageCopy{1, 3}));
  EXPECT_THAT(descriptor_.pages(3), ElementsAre(0, 2));
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 3));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1));
}

TEST_F(CopyOnWrite, TheCopyIsTakenAtItsTurnAndBeforeTheNewPages) {
  descriptor_.allocate({1, 2}, {6, 4});
  descriptor_.fork(1, 3);
  EXPECT_THAT(descriptor_.allocate({2, 3, 9}, {1, 7, 1}), ElementsAre(PageCopy{1, 4}));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(2, 3));
  EXPECT_THAT(descriptor_.pages(3), ElementsAre(0, 4, 5, 6));
  EXPECT_THAT(descriptor_.pages(9), ElementsAre(7));
}

TEST_F(CopyOnWrite, ARepeatedIdIsCopiedOnce) {
  descriptor_.allocate({1}, {5});
  descriptor_.fork(1, 2);
  EXPECT_THAT(descriptor_.allocate_decoding({2, 2, 2, 2}), ElementsAre(PageCopy{1, 2}));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 2, 3));
  EXPECT_EQ(descriptor_.length(2), 9);
}

TEST_F(CopyOnWrite, AFullLastPageIsNotCopied) {
  descriptor_.allocate({1}, {8});
  descriptor_.fork(1, 2);
  EXPECT_THAT(descriptor_.allocate_decoding({1, 2}), IsEmpty());
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 1, 2));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1, 3));
}

TEST_F(CopyOnWrite, GrowingByNothingCopiesNothing) {
  descriptor_.allocate({1}, {6});
  descriptor_.fork(1, 2);
  EXPECT_THAT(descriptor_.allocate({1, 2}, {0, 0}), IsEmpty());
  EXPECT_EQ(pool_.ref_count(1), 2);
  EXPECT_EQ(pool_.available_pages_count(), 14);
}

TEST_F(CopyOnWrite, ForkAndTruncateCopyNothing) {
  descriptor_.allocate({1}, {11});
  descriptor_.fork(1, 2);
  descriptor_.truncate(2, 5);
  EXPECT_EQ(pool_.available_pages_count(), 13);
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(0, 1));
  EXPECT_THAT(descriptor_.allocate_decoding({2}), ElementsAre(PageCopy{1, 3}));
}

TEST_F(CopyOnWrite, AReferenceOfTheCallersCountsAsASharer) {
  descriptor_.allocate({1}, {6});
  pool_.ref({1});
  EXPECT_THAT(descriptor_.allocate_decoding({1}), ElementsAre(PageCopy{1, 2}));
  EXPECT_EQ(pool_.ref_count(1), 1);
  pool_.unref({1});
}

TEST_F(CopyOnWrite, SharersInAnotherDescriptorCount) {
  CacheDescriptor other(pool_);
  descriptor_.allocate({1}, {6});
  other.attach(1, descriptor_.pages(1), 6);
  EXPECT_THAT(descriptor_.allocate_decoding({1}), ElementsAre(PageCopy{1, 2}));
  EXPECT_THAT(other.allocate_decoding({1}), IsEmpty());
  EXPECT_THAT(other.pages(1), ElementsAre(0, 1));
}

// Page 0 is the first and the last of the sequence: it shares the page with itself.
TEST_F(CopyOnWrite, ASequenceThatHoldsAPageTwiceGetsACopyToo) {
  pool_.allocate(1);
  descriptor_.attach(1, {0, 0}, 6);
  pool_.unref({0});
  EXPECT_THAT(descriptor_.allocate_decoding({1}), ElementsAre(PageCopy{0, 1}));
  EXPECT_THAT(descriptor_.pages(1), ElementsAre(0, 1));
}

TEST_F(CopyOnWrite, TheCopyAloneCanExceedThePool) {
  descriptor_.allocate({1}, {62});
  descriptor_.fork(1, 2);
  const Admission full = descriptor_.try_allocate({2, 1}, {1, 2});
  EXPECT_FALSE(full);
  EXPECT_EQ(full.needed, 1);
  EXPECT_EQ(full.available, 0);
  descriptor_.release({1});
  EXPECT_THAT(descriptor_.allocate_decoding({2}), IsEmpty());
}

TEST(CopyOnWriteStorage, CopiesAllLayersAndLeavesTheSharersPageAlone) {
  auto random = testing::random_source(2);
  PagedKVCacheManager manager({.num_pages = 8,
                               .page_size = 4,
                               .num_heads = 2,
                               .head_dim = 8,
                               .head_dim_v = 5,
                               .num_layers = 3,
                               .dtype = DType::kFloat32});
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1}, {6});
  const auto packed = descriptor.pack_for_flashinfer({1});
  const std::array<std::int32_t, 2> indptr = {0, 6};
  for (int layer = 0; layer < 3; ++layer) {
    const auto keys = testing::random_tensor(random, DType::kFloat32, {6, 2, 8});
    const auto values = testing::random_tensor(random, DType::kFloat32, {6, 2, 5});
    manager.append_kv(keys.view(), values.view(), packed, indptr, layer);
  }
  descriptor.fork(1, 2);
  const auto page_bytes = [&](TensorView cache, PageId page) {
    cache.data = static_cast<std::byte*>(cache.data) + page * cache.strides[0] * 4;
    cache.shape[0] = 1;
    return testing::bytes_of(cache);
  };
  EXPECT_THAT(descriptor.allocate_decoding({2}), ElementsAre(PageCopy{1, 2}));
  for (int layer = 0; layer < 3; ++layer) {
    for (const TensorView& cache : {manager.key_cache(layer), manager.value_cache(layer)}) {
      EXPECT_EQ(page_bytes(cache, 2), page_bytes(cache, 1));
      EXPECT_NE(page_bytes(cache, 2), page_bytes(cache, 0));
      EXPECT_NE(page_bytes(cache, 2), page_bytes(cache, 3));
    }
  }
}

TEST(CopyOnWriteStorage, IsLeftToTheCallerOverABarePool) {
  PagedKVCacheManager manager(
      {.num_pages = 4, .page_size = 4, .num_heads = 1, .head_dim = 2, .dtype = DType::kFloat32});
  CacheDescriptor descriptor(manager.pool());
  EXPECT_EQ(descriptor.manager(), nullptr);
  EXPECT_EQ(&descriptor.pool(), &manager.pool());
  descriptor.allocate({1}, {2});
  testing::set_element(manager.key_cache(), {0, 1, 0, 1}, 7);
  descriptor.fork(1, 2);
  const auto copies = descriptor.allocate_decoding({2});
  EXPECT_THAT(copies, ElementsAre(PageCopy{0, 1}));
  EXPECT_EQ(testing::element(manager.key_cache(), {1, 1, 0, 1}), 0);
  manager.copy_pages(copies);
  EXPECT_EQ(testing::element(manager.key_cache(), {1, 1, 0, 1}), 7);
}

}  // namespace
}  // namespace seqattn
