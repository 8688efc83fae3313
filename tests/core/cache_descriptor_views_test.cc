#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <memory>
#include <numeric>
#include <vector>

#include "error_text.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// What a descriptor shows: packed batches, lengths, statistics, text.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

class Views : public ::testing::Test {
 protected:
  Views() { descriptor_.allocate({1, 2, 3}, {10, 0, 4}); }

  PagePool pool_{8, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(Views, PacksRowsInTheOrderOfTheIds) {
  const auto packed = descriptor_.pack_for_flashinfer({3, 2, 1});
  EXPECT_THAT(packed.kv_page_indices(), ElementsAre(3, 0, 1, 2));
  EXPECT_THAT(packed.kv_page_indptr(), ElementsAre(0, 1, 1, 4));
  EXPECT_THAT(packed.kv_last_page_len(), ElementsAre(4, 0, 2));
  EXPECT_EQ(packed.kv_len(0, 4), 4);
  EXPECT_EQ(packed.kv_len(1, 4), 0);
  EXPECT_EQ(packed.kv_len(2, 4), 10);
  EXPECT_EQ(packed.pool_id(), pool_.id());
}

TEST_F(Views, PacksAnIdAsOftenAsItIsListed) {
  const auto packed = descriptor_.pack_for_flashinfer({3, 3});
  EXPECT_THAT(packed.kv_page_indices(), ElementsAre(3, 3));
  EXPECT_THAT(packed.kv_page_indptr(), ElementsAre(0, 1, 2));
}

TEST_F(Views, PacksAnEmptyBatch) {
  const auto packed = descriptor_.pack_for_flashinfer({});
  EXPECT_EQ(packed.batch_size(), 0);
  EXPECT_THAT(packed.kv_page_indptr(), ElementsAre(0));
}

TEST_F(Views, PackingLeavesTheMemoryOfABatchThatACopyHolds) {
  auto packed = std::make_unique<FlashInferPackedData>(descriptor_.pack_for_flashinfer({1, 1, 3}));
  const auto copy = std::make_unique<FlashInferPackedData>(*packed);
  const std::int32_t* const memory = packed->kv_page_indices().data();
  packed.reset();
  EXPECT_NE(descriptor_.pack_for_flashinfer({1}).kv_page_indices().data(), memory);
  EXPECT_THAT(copy->kv_page_indices(), ElementsAre(0, 1, 2, 0, 1, 2, 3));
}

TEST_F(Views, PackingReusesTheMemoryOfABatchThatIsGone) {
  PagePool pool(256, 4);
  CacheDescriptor descriptor(pool);
  descriptor.allocate({1}, {400});
  auto packed = std::make_unique<FlashInferPackedData>(descriptor.pack_for_flashinfer({1}));
  const std::int32_t* const memory = packed->kv_page_indices().data();
  packed.reset();
  for (int step = 0; step < 40; ++step) {
    descriptor.allocate_decoding({1});
    EXPECT_EQ(descriptor.pack_for_flashinfer({1}).kv_page_indices().data(), memory);
  }
}

TEST_F(Views, PackedDataMayOutliveItsDescriptor) {
  auto descriptor = std::make_unique<CacheDescriptor>(pool_);
  descriptor->allocate({1}, {9});
  const auto packed = descriptor->pack_for_flashinfer({1});
  descriptor.reset();
  EXPECT_THAT(packed.kv_page_indices(), ElementsAre(4, 5, 6));
}

TEST_F(Views, PackedDataIsASnapshot) {
  const auto packed = descriptor_.pack_for_flashinfer({1});
  descriptor_.allocate({1}, {7});
  descriptor_.release({1});
  EXPECT_THAT(packed.kv_page_indices(), ElementsAre(0, 1, 2));
  EXPECT_THAT(packed.kv_last_page_len(), ElementsAre(2));
}

TEST_F(Views, UnknownIdsAreErrors) {
  const std::string message = "Sequence ID 9 not found in cache descriptor";
  EXPECT_EQ(error_of<UnknownSequenceError>([&] {
              descriptor_.pack_for_flashinfer({1, 9});
            }),
            message);
  EXPECT_EQ(error_of<UnknownSequenceError>([&] { descriptor_.length(9); }), message);
  EXPECT_EQ(error_of<UnknownSequenceError>([&] { descriptor_.num_kv_tokens(9); }), message);
  EXPECT_EQ(error_of<UnknownSequenceError>([&] { descriptor_.pages(9); }), message);
  EXPECT_EQ(error_of<UnknownSequenceError>([&] { descriptor_.sequence(9); }), message);
  EXPECT_FALSE(descriptor_.contains(9));
}

TEST_F(Views, ListsItsSequences) {
  EXPECT_EQ(descriptor_.num_sequences(), 3);
  EXPECT_THAT(descriptor_.seq_ids(), UnorderedElementsAre(1, 2, 3));
  EXPECT_EQ(descriptor_.sequence(1).kv_page_indices, (std::vector<PageId>{0, 1, 2}));
  EXPECT_EQ(descriptor_.sequence(1).last_page_len, 2);
  EXPECT_EQ(descriptor_.sequence(1).length, 10);
}

TEST_F(Views, CountsTokensPagesAndSharing) {
  descriptor_.fork(1, 4, 6);
  pool_.ref({3});  // shared with the caller
  const Stats stats = descriptor_.stats();
  EXPECT_EQ(stats.num_sequences, 4);
  EXPECT_EQ(stats.num_tokens, 20);
  EXPECT_EQ(stats.num_page_references, 6);
  EXPECT_EQ(stats.num_pages, 4);
  EXPECT_EQ(stats.num_shared_pages, 3);
  EXPECT_EQ(stats.num_free_pages, 4);
}

TEST_F(Views, DescribesItself) {
  EXPECT_EQ(descriptor_.to_string(),
            "CacheDescriptor(num_sequences=3, num_tokens=14, page_size=4, available=4)");
}

TEST_F(Views, KnowsItsPoolAndManager) {
  EXPECT_EQ(&descriptor_.pool(), &pool_);
  EXPECT_EQ(descriptor_.manager(), nullptr);
  PagedKVCacheManager manager({.num_pages = 1, .num_heads = 1, .head_dim = 1});
  const CacheDescriptor with_storage(manager);
  EXPECT_EQ(&with_storage.pool(), &manager.pool());
  EXPECT_EQ(with_storage.manager(), &manager);
}

// 2^20 pages, 2^11 times, are one more than int32 holds. Refused before any of it is copied.
TEST(PackedBatches, ThatDoNotFitInt32AreRefused) {
  PagePool pool(1 << 20, 1);
  CacheDescriptor descriptor(pool);
  descriptor.allocate({1}, {1 << 20});
  const std::vector<SeqId> ids(1 << 11, 1);
  EXPECT_EQ(error_of([&] { descriptor.pack_for_flashinfer(ids); }),
            "seq_ids: got a batch of 2147483648 pages and more; expected fewer than 2^31");
}

}  // namespace
}  // namespace seqattn
