#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// Packed data of a descriptor is good while its pages live. Core looks at every page only where one
// may have been freed: these are the ways in which that happens.
namespace seqattn {
namespace {

class PackedLiveness : public testing::Test {
 protected:
  // An append of no tokens: nothing but the checks.
  void use(const FlashInferPackedData& packed) {
    const std::vector<std::int32_t> no_tokens(static_cast<std::size_t>(packed.batch_size()) + 1);
    const auto nothing = TensorView::contiguous(&element_, DType::kFloat32, {0, 1, 1});
    manager_.append_kv(nothing, nothing, packed, no_tokens);
  }

  float element_ = 0;
  PagedKVCacheManager manager_{
      {.num_pages = 8, .page_size = 4, .num_heads = 1, .head_dim = 1, .dtype = DType::kFloat32}};
  CacheDescriptor sequences_{manager_};
};

TEST_F(PackedLiveness, EndsWhenASequenceOfTheBatchIsReleased) {
  sequences_.allocate({1, 2}, {5, 5});
  const auto packed = sequences_.pack_for_flashinfer({1, 2});
  use(packed);
  sequences_.release({2});
  EXPECT_THROW(use(packed), InvalidArgumentError);
}

TEST_F(PackedLiveness, EndsWhenASequenceOfTheBatchIsTruncated) {
  sequences_.allocate({1}, {5});
  const auto packed = sequences_.pack_for_flashinfer({1});
  sequences_.truncate(1, 4);
  EXPECT_THROW(use(packed), InvalidArgumentError);
}

TEST_F(PackedLiveness, OutlastsTheSequencesThatAreNotInTheBatch) {
  sequences_.allocate({1, 2}, {5, 5});
  const auto packed = sequences_.pack_for_flashinfer({1});
  sequences_.release({2});
  use(packed);
}

TEST_F(PackedLiveness, OutlastsAFailedGrowthThatHadGivenUpASharedPage) {
  sequences_.allocate({1}, {5});
  sequences_.fork(1, 2);
  const auto packed = sequences_.pack_for_flashinfer({1, 2});
  EXPECT_FALSE(sequences_.try_allocate({2}, {100}));
  use(packed);
  sequences_.release({1, 2});
  EXPECT_THROW(use(packed), InvalidArgumentError);
}

TEST_F(PackedLiveness, IsMissingFromTheStartWhereTheCallerFreedAPage) {
  sequences_.allocate({1}, {5});
  manager_.unref({1});
  EXPECT_THROW(use(sequences_.pack_for_flashinfer({1})), InvalidArgumentError);
}

TEST_F(PackedLiveness, IsMissingFromTheStartWhereTheCallerDroppedAShare) {
  sequences_.allocate({1}, {5});
  sequences_.fork(1, 2);
  manager_.unref({1});
  sequences_.release({1});
  EXPECT_THROW(use(sequences_.pack_for_flashinfer({2})), InvalidArgumentError);
}

TEST_F(PackedLiveness, IsMissingFromTheStartWhereOneReferenceWasAdoptedTwice) {
  CacheDescriptor others(manager_);
  const auto pages = manager_.allocate(1);
  sequences_.adopt(1, pages, 4);
  others.adopt(1, pages, 4);
  sequences_.release({1});
  EXPECT_THROW(use(others.pack_for_flashinfer({1})), InvalidArgumentError);
}

}  // namespace
}  // namespace seqattn
