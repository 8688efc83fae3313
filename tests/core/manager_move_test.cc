#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "error_text.h"
#include "host_tensor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// Token slots, moved in all layers.
namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::seqattn::testing::HostTensor;
using ::testing::HasSubstr;

// Keys [pages, page_size, heads, dim] whose values are their first elements: one memory.
class Latent : public ::testing::TestWithParam<int> {
 protected:
  static constexpr int kPages = 4, kPageSize = 3, kDim = 8;
  Latent() : memory_(DType::kFloat16, {kPages, kPageSize, 1, kDim}) {
    for (std::int64_t i = 0; i < memory_.size(); ++i) memory_.set(i, static_cast<float>(i));
    TensorView values = memory_.view();
    values.shape[3] = GetParam();
    manager_ = PagedKVCacheManager::from_tensors(std::array{memory_.view()}, std::array{values},
                                                 {.num_pages = kPages,
                                                  .page_size = kPageSize,
                                                  .num_heads = 1,
                                                  .head_dim = kDim,
                                                  .head_dim_v = GetParam()});
    manager_->allocate(3);
  }
  // The token that a slot held at first, from its key.
  int token(PageId page, int slot) const {
    return static_cast<int>(memory_[(page * kPageSize + slot) * kDim]) / kDim;
  }
  HostTensor memory_;
  std::unique_ptr<PagedKVCacheManager> manager_;
};

// The second move reads what the third overwrites, the third what the first has written.
TEST_P(Latent, MovesInOrderWhereKeysAndValuesAreTheSameMemory) {
  manager_->move_tokens(std::array{TokenMove{0, 2, 0, 0}, TokenMove{1, 0, 0, 1},
                                   TokenMove{0, 0, 1, 0}, TokenMove{2, 2, 2, 2}});
  EXPECT_EQ(token(0, 0), 2);
  EXPECT_EQ(token(0, 1), 3);
  EXPECT_EQ(token(0, 2), 2);
  EXPECT_EQ(token(1, 0), 2);
  EXPECT_EQ(token(1, 1), 4);
  EXPECT_EQ(token(2, 2), 8);
  for (std::int64_t i = 0; i < kDim; ++i) EXPECT_EQ(memory_[i], 2 * kDim + i);
}

TEST_P(Latent, MovesFromPagesThatAreFreeButNotToThem) {
  manager_->move_tokens(std::array{TokenMove{3, 1, 0, 0}});
  EXPECT_EQ(token(0, 0), 10);
  const auto before = memory_.values();
  manager_->ref({1});
  const auto refusal = [&](TokenMove bad) {
    return error_of([&] { manager_->move_tokens(std::array{TokenMove{1, 0, 0, 1}, bad}); });
  };
  EXPECT_EQ(refusal({0, 0, 3, 0}), "move_tokens: page 3 is free; expected a page in use");
  EXPECT_THAT(refusal({0, 0, 1, 0}), HasSubstr("page 1 has 2 references"));
  EXPECT_THAT(refusal({0, 0, 0, 3}), HasSubstr("got slot 3; expected 0 <= slot < 3"));
  EXPECT_THAT(refusal({0, -1, 0, 0}), HasSubstr("got slot -1"));
  EXPECT_THAT(refusal({4, 0, 0, 0}), HasSubstr("got page 4"));
  EXPECT_EQ(memory_.values(), before);
}

INSTANTIATE_TEST_SUITE_P(Values, Latent, ::testing::Values(5, 8));

}  // namespace
}  // namespace seqattn
