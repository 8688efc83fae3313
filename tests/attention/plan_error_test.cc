#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "conformance_suite.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"

// The batches that a plan refuses.
namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using Indptr = std::vector<std::int32_t>;

class RefusedPlans : public DeviceSuite {
 protected:
  void prepare() override {
    manager = std::make_unique<PagedKVCacheManager>(c.cache_config(8, device()));
    descriptor = std::make_unique<CacheDescriptor>(*manager);
    descriptor->allocate({1, 2}, {6, 3});
    packed = descriptor->pack_for_flashinfer({1, 2});
    attention = std::make_unique<BatchAttention>(*manager, c.options());
  }
  std::string refusal(const FlashInferPackedData& table, const Indptr& qo_indptr,
                      const std::optional<std::vector<std::uint8_t>>& mask = {}) {
    return error_of([&] { attention->plan(table, qo_indptr, {.mask = mask}); });
  }

  AttentionCase c = device_case({}, device());
  std::unique_ptr<PagedKVCacheManager> manager;
  std::unique_ptr<CacheDescriptor> descriptor;
  FlashInferPackedData packed;
  std::unique_ptr<BatchAttention> attention;
};

TEST_P(RefusedPlans, HaveAnIndptrOfAnotherSize) {
  EXPECT_THAT(refusal(packed, {}), StartsWith("qo_indptr: got 0 entries; expected 3"));
  EXPECT_THAT(refusal(packed, {0, 1}), StartsWith("qo_indptr: got 2 entries; expected 3"));
  EXPECT_THAT(refusal(packed, {0, 1, 2, 3}), StartsWith("qo_indptr: got 4 entries; expected 3"));
  EXPECT_THAT(refusal({}, {}), StartsWith("qo_indptr: got 0 entries; expected 1"));
}

TEST_P(RefusedPlans, HaveAnIndptrThatFallsOrStartsElsewhere) {
  EXPECT_THAT(refusal(packed, {1, 2, 3}), StartsWith("qo_indptr: starts at 1; expected 0"));
  EXPECT_THAT(refusal(packed, {-1, 2, 3}), StartsWith("qo_indptr: starts at -1; expected 0"));
  EXPECT_THAT(refusal(packed, {0, 3, 2}), HasSubstr("falls from 3 to 2 at entry 2"));
  EXPECT_THAT(refusal(packed, {0, std::numeric_limits<std::int32_t>::min(), 2}),
              HasSubstr("falls from 0 to -2147483648 at entry 1"));
}

TEST_P(RefusedPlans, HaveMoreQueriesThanKeysUnderACausalMask) {
  EXPECT_THAT(refusal(packed, {0, 6, 10}), AllOf(HasSubstr("row 1 has 4 queries and 3 keys"),
                                                 HasSubstr("causal"), HasSubstr("allocate")));
  EXPECT_THAT(refusal(packed, {0, 7, 8}), HasSubstr("row 0 has 7 queries and 6 keys"));
  attention->plan(packed, Indptr{0, 6, 9});
  c.causal = false;
  BatchAttention without(*manager, c.options());
  without.plan(packed, Indptr{0, 60, 90});
}

TEST_P(RefusedPlans, DoNotIncludeQueriesOfEmptyRows) {
  descriptor->allocate({3}, {0});
  attention->plan(descriptor->pack_for_flashinfer({3, 1}), Indptr{0, 5, 11});
  EXPECT_EQ(attention->num_q_tokens(), 11);
}

TEST_P(RefusedPlans, HaveAMaskOfAnotherSize) {
  for (const std::size_t size : {0u, 1u, 14u, 16u, 27u}) {
    EXPECT_THAT(refusal(packed, {0, 2, 3}, std::vector<std::uint8_t>(size)),
                AllOf(StartsWith("mask: got " + std::to_string(size) + " entries"),
                      HasSubstr("expected 15")));
  }
  attention->plan(packed, Indptr{0, 2, 3}, {.mask = std::vector<std::uint8_t>(15)});
  EXPECT_THAT(refusal(packed, {0, 0, 0}, std::vector<std::uint8_t>(1)), HasSubstr("expected 0"));
  attention->plan(packed, Indptr{0, 0, 0}, {.mask = std::vector<std::uint8_t>()});
}

TEST_P(RefusedPlans, ArePackedByADescriptorOfAnotherPool) {
  PagedKVCacheManager other(c.cache_config(8, device()));
  CacheDescriptor over_other(other);
  over_other.allocate({1, 2}, {6, 3});
  EXPECT_THAT(refusal(over_other.pack_for_flashinfer({1, 2}), {0, 1, 2}),
              HasSubstr("another pool"));
}

TEST_P(RefusedPlans, NamePagesThatThePoolDoesNotHave) {
  EXPECT_THAT(
      refusal({{1, 8}, {0, 2}, {1}}, {0, 1}),
      AllOf(StartsWith("kv_page_indices: got page 8 at entry 1"), HasSubstr("0 <= page < 8")));
  EXPECT_THAT(refusal({{std::numeric_limits<std::int32_t>::max()}, {0, 1}, {1}}, {0, 1}),
              HasSubstr("got page 2147483647 at entry 0"));
}

TEST_P(RefusedPlans, HaveALastPageLongerThanAPage) {
  EXPECT_THAT(refusal({{1, 2}, {0, 1, 2}, {4, 5}}, {0, 1, 2}),
              AllOf(StartsWith("kv_last_page_len: got 5 for row 1"), HasSubstr("page_size, 4")));
}

SEQATTN_INSTANTIATE_DEVICES(RefusedPlans);

}  // namespace
}  // namespace seqattn::testing
