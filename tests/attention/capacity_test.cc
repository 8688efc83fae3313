#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "error_text.h"

// What a plan's capacity allows, and tensors that are padded to it.
namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class Capacity : public DeviceSuite {
 protected:
  void prepare() override {
    c.rows = {{9, 9}, {6, 11}, {1, 14}};  // 16 queries, 3 + 3 + 4 pages of 4 tokens
    rows = random_rows(c, random);
    batch = std::make_unique<PagedBatch>(c, rows, device(), random);
  }
  std::unique_ptr<BatchAttention> planned(const PlanCapacity& capacity) {
    auto attention = std::make_unique<BatchAttention>(batch->manager(), c.options(), capacity);
    attention->plan(batch->packed(), qo_indptr_of(rows));
    return attention;
  }

  AttentionCase c;
  std::vector<ref::Row> rows;
  std::unique_ptr<PagedBatch> batch;
};

TEST_P(Capacity, MayBeUsedToTheLast) {
  const PlanCapacity exact{.max_sequences = 3, .max_q_tokens = 16, .max_q_len = 9, .max_pages = 10};
  const auto attention = planned(exact);
  EXPECT_EQ(attention->capacity().max_q_len, 9);
  CallTensors tensors(c, rows, device());
  attention->run(tensors.q.view(), tensors.out.view(), tensors.run_options());
  expect_reference(c, rows, tensors);
}

TEST_P(Capacity, MayNotBeExceeded) {
  EXPECT_THAT(error_of([&] { planned({.max_sequences = 2}); }),
              AllOf(HasSubstr("3 sequences"), HasSubstr("at most 2")));
  EXPECT_THAT(error_of([&] { planned({.max_q_tokens = 15}); }),
              AllOf(HasSubstr("16 query tokens"), HasSubstr("at most 15")));
  EXPECT_THAT(error_of([&] { planned({.max_pages = 9}); }),
              AllOf(HasSubstr("10 pages"), HasSubstr("at most 9")));
  EXPECT_THAT(error_of<UnsupportedError>([&] { planned({.max_q_len = 8}); }),
              AllOf(HasSubstr("row 0"), HasSubstr("9 queries"), HasSubstr("at most 8")));
}

TEST_P(Capacity, ThatIsExceededLeavesThePlanBefore) {
  const auto attention = planned({.max_sequences = 3, .max_q_len = 9});
  const std::vector<std::int32_t> indptr{0, 9, 20, 21};
  EXPECT_THROW(attention->plan(batch->packed(), indptr), UnsupportedError);
  CallTensors tensors(c, rows, device());
  attention->run(tensors.q.view(), tensors.out.view(), tensors.run_options());
  expect_reference(c, rows, tensors);
}

TEST_P(Capacity, MayNotBeNegative) {
  const auto refuse = [&](const PlanCapacity& capacity, const char* name) {
    EXPECT_THAT(
        error_of([&] { BatchAttention attention(batch->manager(), c.options(), capacity); }),
        AllOf(HasSubstr(name), HasSubstr("got -1")));
  };
  refuse({.max_sequences = -1}, "max_sequences");
  refuse({.max_q_tokens = -1}, "max_q_tokens");
  refuse({.max_q_len = -1}, "max_q_len");
  refuse({.max_pages = -1}, "max_pages");
}

TEST_P(Capacity, LetsTensorsHaveAsManyRowsAsItNames) {
  constexpr std::int64_t kRows = 20;
  const auto attention = planned({.max_q_tokens = kRows});
  const CallTensors packed(c, rows, device());
  Tensor q(device(), DType::kFloat32, {kRows, c.num_qo_heads, c.head_dim});
  auto queries = packed.q.read();
  queries.resize(static_cast<std::size_t>(q.view().num_elements()), std::nan(""));
  q.write(queries);
  const Tensor out(device(), DType::kFloat32, {kRows, c.num_qo_heads, c.head_dim});
  const Tensor lse(device(), DType::kFloat32, {kRows, c.num_qo_heads});
  attention->run(q.view(), out.view(), {.lse = lse.view()});

  attention->run(packed.q.view(), packed.out.view(), packed.run_options());
  expect_reference(c, rows, packed);
  const auto compare = [](const Tensor& padded, const Tensor& exact) {
    const auto all = padded.read(), part = exact.read();
    EXPECT_EQ(
        std::vector<double>(all.begin(), all.begin() + static_cast<std::ptrdiff_t>(part.size())),
        part);
    for (std::size_t i = part.size(); i < all.size(); ++i) {
      ASSERT_TRUE(std::isnan(all[i])) << "rows behind the batch's are not written";
    }
  };
  compare(out, packed.out);
  compare(lse, packed.lse);
}

TEST_P(Capacity, LetsNewTokensHaveAsManyRowsAsItNames) {
  PagedKVCacheManager manager(c.cache_config(12, device()));
  BatchAttention attention(manager, c.options(), {.max_q_tokens = 20});
  const FlashInferPackedData packed({3, 7}, {0, 2}, {1});
  attention.plan(packed, std::vector<std::int32_t>{0, 5});
  Tensor keys(device(), DType::kFloat32, {20, c.num_kv_heads, c.head_dim});
  std::vector<double> values(static_cast<std::size_t>(keys.view().num_elements()), 7);
  keys.write(values);
  attention.append_kv(keys.view(), keys.view());
  const Tensor stored(device(), DType::kFloat32, {8, c.num_kv_heads, c.head_dim});
  const Tensor stored_values(device(), DType::kFloat32, {8, c.num_kv_heads, c.head_dim});
  manager.read_kv(packed.kv_page_indices(), 0, 8, stored.view(), stored_values.view());
  const auto got = stored.read();
  const auto per_token = static_cast<std::size_t>(c.num_kv_heads * c.head_dim);
  for (std::size_t i = 0; i < got.size(); ++i) ASSERT_EQ(got[i], i < 5 * per_token ? 7 : 0);
}

TEST_P(Capacity, IsTheOnlyOtherNumberOfRows) {
  const auto attention = planned({.max_q_tokens = 20});
  for (const std::int64_t num_rows : {15, 17, 19, 21}) {
    const Tensor q(device(), DType::kFloat32, {num_rows, c.num_qo_heads, c.head_dim});
    const Tensor out(device(), DType::kFloat32, {num_rows, c.num_qo_heads, c.head_dim});
    EXPECT_THAT(error_of([&] { attention->run(q.view(), out.view()); }),
                AllOf(HasSubstr("q: got"), HasSubstr(std::to_string(num_rows))));
  }
  const Tensor padded(device(), DType::kFloat32, {20, c.num_qo_heads, c.head_dim});
  const CallTensors exact(c, rows, device());
  EXPECT_THROW(attention->run(padded.view(), exact.out.view()), InvalidArgumentError);
  EXPECT_THROW(attention->run(exact.q.view(), padded.view()), InvalidArgumentError);
}

SEQATTN_INSTANTIATE_DEVICES(Capacity);

}  // namespace
}  // namespace seqattn::testing
