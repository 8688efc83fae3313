#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "error_text.h"
#include "seqattn/batch_attention.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// Packed data of a descriptor is good while its pages live. Core looks at every page only where one
// may have been freed: these are the ways in which that happens.
namespace seqattn {
namespace {

class PackedLiveness : public ::testing::Test {
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

// The page belongs to another sequence by now: only debug builds count how often it was freed.
TEST_F(PackedLiveness, EndsWhenAnotherSequenceHasThePages) {
  sequences_.allocate({0}, {32});  // all of the pool
  const auto packed = sequences_.pack_for_flashinfer({0});
  sequences_.release({0});
  sequences_.allocate({1}, {32});
  ASSERT_EQ(sequences_.pages(1).size(), packed.kv_page_indices().size());
  if (manager_.pool().generation(0) == 0) {
    use(packed);
    return;
  }
  EXPECT_THAT(::seqattn::testing::error_of([&] { use(packed); }),
              ::testing::HasSubstr("page 0 at entry 0 was freed after the batch was packed"));
  BatchAttention attention(manager_, {.num_qo_heads = 1});
  EXPECT_THROW(attention.plan(packed, std::vector<std::int32_t>{0, 1}), InvalidArgumentError);
  attention.plan(sequences_.pack_for_flashinfer({1}), std::vector<std::int32_t>{0, 1});
  sequences_.release({1});
  sequences_.allocate({2}, {32});
  const TensorView q = TensorView::contiguous(&element_, DType::kFloat32, {1, 1, 1});
  float out = 0;
  const TensorView out_view = TensorView::contiguous(&out, DType::kFloat32, {1, 1, 1});
  EXPECT_THROW(attention.run(q, out_view), InvalidArgumentError);
  EXPECT_THROW(attention.append_kv(q, q), InvalidArgumentError);
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
