#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <limits>
#include <string>

#include "conformance_suite.h"
#include "error_text.h"

// What BatchAttention's constructor makes of its options.
namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class Construction : public DeviceSuite {
 protected:
  void prepare() override {
    c.num_kv_heads = 3;
    c.num_qo_heads = 6;
    c.head_dim = 16;
    manager = std::make_unique<PagedKVCacheManager>(c.cache_config(4, device()));
  }
  // The message that options changed like this are refused with.
  template <class Change>
  std::string refusal(const Change& change) {
    AttentionOptions options = c.options();
    change(options);
    return error_of([&] { BatchAttention attention(*manager, options); });
  }

  AttentionCase c;
  std::unique_ptr<PagedKVCacheManager> manager;
};

TEST_P(Construction, TakesAMultipleOfTheCachesHeads) {
  for (const int heads :
       {0, -3, 1, 2, 4, 5, 7, std::numeric_limits<int>::min(), std::numeric_limits<int>::max()}) {
    EXPECT_THAT(refusal([&](AttentionOptions& options) { options.num_qo_heads = heads; }),
                AllOf(StartsWith("num_qo_heads: got " + std::to_string(heads) + ";"),
                      HasSubstr("a positive multiple of the cache's 3 heads")));
  }
}

TEST_P(Construction, TakesAWindowFromMinusOneOn) {
  for (const int window : {-2, std::numeric_limits<int>::min()}) {
    EXPECT_THAT(refusal([&](AttentionOptions& options) { options.window_left = window; }),
                StartsWith("window_left: got " + std::to_string(window) + "; expected at least 0"));
  }
}

TEST_P(Construction, TakesAScaleThatCannotOverflow) {
  for (const float scale :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(),
        -std::numeric_limits<float>::infinity(), 3e38f, -2e18f}) {
    EXPECT_THAT(refusal([&](AttentionOptions& options) { options.sm_scale = scale; }),
                AllOf(StartsWith("sm_scale: got "), HasSubstr("expected a finite number")));
  }
}

TEST_P(Construction, TakesASoftCapThatCanBeDividedBy) {
  for (const float cap :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity(), -1.0f,
        -1e-30f, 1e-40f, 1e-19f, 2e18f}) {
    EXPECT_THAT(refusal([&](AttentionOptions& options) { options.logits_soft_cap = cap; }),
                AllOf(StartsWith("logits_soft_cap: got "), HasSubstr("expected a finite number")));
  }
}

TEST_P(Construction, TakesNoNegativeNumberOfThreads) {
  EXPECT_THAT(refusal([](AttentionOptions& options) { options.num_threads = -1; }),
              StartsWith("num_threads: got -1; expected at least 1"));
}

TEST_P(Construction, ResolvesTheScaleAndKeepsTheRest) {
  AttentionOptions options{
      .num_qo_heads = 6, .causal = false, .window_left = 7, .logits_soft_cap = 2, .num_threads = 3};
  const BatchAttention attention(*manager, options);
  EXPECT_EQ(attention.options().sm_scale, 0.25f);
  EXPECT_EQ(attention.options().num_qo_heads, 6);
  EXPECT_FALSE(attention.options().causal);
  EXPECT_EQ(attention.options().window_left, 7);
  EXPECT_EQ(attention.options().logits_soft_cap, 2);
  EXPECT_EQ(attention.options().num_threads, 3);
  options.sm_scale = 0.0f;
  EXPECT_EQ(BatchAttention(*manager, options).options().sm_scale, 0.0f);
}

TEST_P(Construction, IsPrintable) {
  const BatchAttention attention(*manager, c.options());
  EXPECT_THAT(attention.to_string(),
              AllOf(StartsWith("BatchAttention("), HasSubstr("num_qo_heads=6"),
                    HasSubstr("num_heads=3"), HasSubstr("head_dim=16"), HasSubstr("causal=true"),
                    HasSubstr("window_left=-1"), HasSubstr("sm_scale=0.25"),
                    HasSubstr(std::string(attention.kernel_name())), HasSubstr("num_q_tokens=0")));
}

SEQATTN_INSTANTIATE_DEVICES(Construction);

}  // namespace
}  // namespace seqattn::testing
