#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"

// The life of a plan: made once, used for many runs, replaced as a whole or not at all.
namespace seqattn::testing {
namespace {

using ::testing::HasSubstr;

class Plans : public DeviceSuite {
 protected:
  void prepare() override {
    rows = random_rows(c, random);
    batch = std::make_unique<PagedBatch>(c, rows, device(), random);
    attention = std::make_unique<BatchAttention>(batch->manager(), c.options());
  }
  void plan() { attention->plan(batch->packed(), qo_indptr_of(rows)); }
  // One run of the present plan on the rows' queries, into fresh tensors.
  CallTensors run() {
    CallTensors tensors(c, rows, device());
    attention->run(tensors.q.read_only_view(), tensors.out.view(), tensors.run_options());
    return tensors;
  }

  AttentionCase c = device_case({}, device());
  std::vector<ref::Row> rows;
  std::unique_ptr<PagedBatch> batch;
  std::unique_ptr<BatchAttention> attention;
};

TEST_P(Plans, ServeManyRuns) {
  plan();
  const CallTensors first = run();
  expect_reference(c, rows, first);
  for (int i = 0; i < 5; ++i) EXPECT_EQ(run().out.bytes(), first.out.bytes());
}

TEST_P(Plans, SayHowManyQueriesTheyHave) {
  EXPECT_EQ(attention->num_q_tokens(), 0);
  plan();
  EXPECT_EQ(attention->num_q_tokens(), c.num_q_tokens());
  attention->plan({}, std::vector<std::int32_t>{0});
  EXPECT_EQ(attention->num_q_tokens(), 0);
}

TEST_P(Plans, TakeBracedLists) {
  attention->plan({{3}, {0, 1}, {2}}, {0, 2});
  EXPECT_EQ(attention->num_q_tokens(), 2);
}

TEST_P(Plans, KeepTheirOwnCopyOfEveryInput) {
  c.mask_density = 0.5;
  rows = random_rows(c, random);
  batch = std::make_unique<PagedBatch>(c, rows, device(), random);
  attention = std::make_unique<BatchAttention>(batch->manager(), c.options());
  {
    auto table = std::make_unique<FlashInferPackedData>(batch->packed());
    auto indptr = qo_indptr_of(rows);
    auto mask = mask_of(rows);
    attention->plan(*table, indptr, {.mask = mask});
    table.reset();
    std::fill(indptr.begin(), indptr.end(), -1);
    std::fill(mask->begin(), mask->end(), 0);
  }
  expect_reference(c, rows, run());
}

// The table without its first rows.
FlashInferPackedData tail(const FlashInferPackedData& packed, std::size_t num_skipped) {
  const std::int32_t begin = packed.kv_page_indptr()[num_skipped];
  std::vector<std::int32_t> indptr;
  for (const std::int32_t end : packed.kv_page_indptr().subspan(num_skipped)) {
    indptr.push_back(end - begin);
  }
  const auto pages = packed.kv_page_indices().subspan(static_cast<std::size_t>(begin));
  const auto lengths = packed.kv_last_page_len().subspan(num_skipped);
  return {{pages.begin(), pages.end()}, indptr, {lengths.begin(), lengths.end()}};
}

TEST_P(Plans, AreReplacedByTheNextOne) {
  for (const std::size_t num_skipped : {0u, 2u, 5u, 0u}) {
    const std::vector<ref::Row> part(rows.begin() + static_cast<std::ptrdiff_t>(num_skipped),
                                     rows.end());
    attention->plan(tail(batch->packed(), num_skipped), qo_indptr_of(part));
    CallTensors tensors(c, part, device());
    attention->run(tensors.q.view(), tensors.out.view(), tensors.run_options());
    expect_reference(c, part, tensors);
  }
}

TEST_P(Plans, ThatFailLeaveTheOneBefore) {
  plan();
  const CallTensors before = run();
  const auto indptr = qo_indptr_of(rows);
  const auto reversed = std::vector<std::int32_t>(indptr.rbegin(), indptr.rend());
  const std::vector<std::uint8_t> mask(3);
  const auto too_long = [&] {
    auto longer = indptr;
    for (std::size_t i = 2; i < longer.size(); ++i) longer[i] += 100;
    return longer;
  }();
  const FlashInferPackedData unknown({1000}, {0, 1}, {1});
  EXPECT_THROW(attention->plan(batch->packed(), reversed), InvalidArgumentError);
  EXPECT_THROW(attention->plan(batch->packed(), too_long), InvalidArgumentError);
  EXPECT_THROW(attention->plan(batch->packed(), indptr, {.mask = mask}), InvalidArgumentError);
  EXPECT_THROW(attention->plan(unknown, std::vector<std::int32_t>{0, 1}), InvalidArgumentError);
  EXPECT_EQ(attention->num_q_tokens(), c.num_q_tokens());
  EXPECT_EQ(run().out.bytes(), before.out.bytes());
}

TEST_P(Plans, AreNeededBeforeAnythingElse) {
  const CallTensors tensors(c, rows, device());
  const TensorView keys = head_slice(tensors.q.view(), 0, c.num_kv_heads);
  EXPECT_THAT(error_of([&] { attention->run(tensors.q.view(), tensors.out.view()); }),
              HasSubstr("expected a call of plan first"));
  EXPECT_THAT(error_of([&] { attention->append_kv(keys, keys); }),
              HasSubstr("expected a call of plan first"));
  EXPECT_THROW(attention->plan(batch->packed(), {}), InvalidArgumentError);
  EXPECT_THAT(error_of([&] { attention->run(tensors.q.view(), tensors.out.view()); }),
              HasSubstr("expected a call of plan first"));
}

TEST_P(Plans, OfNothingRunOverEmptyTensors) {
  attention->plan({}, std::vector<std::int32_t>{0});
  const Tensor q(device(), c.q_dtype, {0, c.num_qo_heads, c.head_dim});
  const Tensor lse(device(), DType::kFloat32, {0, c.num_qo_heads});
  attention->run(q.view(), q.view(), {.lse = lse.view()});
  TensorView without_memory = q.view();
  without_memory.data = nullptr;
  attention->run(without_memory, without_memory);
  const Tensor keys(device(), DType::kFloat32, {0, c.num_kv_heads, c.head_dim});
  attention->append_kv(keys.view(), keys.view());
}

TEST_P(Plans, WhosePagesWereFreedAreRefusedInDebugBuilds) {
  PagedKVCacheManager manager(c.cache_config(8, device()));
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1, 2}, {6, 3});
  BatchAttention over(manager, c.options());
  over.plan(descriptor.pack_for_flashinfer({1, 2}), std::vector<std::int32_t>{0, 1, 2});
  const Tensor q(device(), c.q_dtype, {2, c.num_qo_heads, c.head_dim});
  const Tensor out(device(), DType::kFloat32, {2, c.num_qo_heads, c.head_dim});
  [[maybe_unused]] const TensorView keys = head_slice(q.view(), 0, c.num_kv_heads);
  over.run(q.view(), out.view());
  descriptor.allocate({3}, {4});  // what takes pages frees none
  over.run(q.view(), out.view());
  descriptor.release({2});
  descriptor.allocate({4}, {20});  // the freed page lives again, for another
#ifdef NDEBUG
  over.run(q.view(), out.view());
#else
  EXPECT_THAT(error_of([&] { over.run(q.view(), out.view()); }),
              ::testing::AllOf(HasSubstr("page 2"), HasSubstr("freed"), HasSubstr("plan again")));
  EXPECT_THAT(error_of([&] { over.append_kv(keys, keys); }), HasSubstr("plan again"));
#endif
  over.plan(descriptor.pack_for_flashinfer({1, 3}), std::vector<std::int32_t>{0, 1, 2});
  over.run(q.view(), out.view());
}

TEST_P(Plans, OfPackedDataWhosePagesWereFreedAreRefused) {
  PagedKVCacheManager manager(c.cache_config(8, device()));
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1, 2}, {6, 3});
  const auto packed = descriptor.pack_for_flashinfer({1, 2});
  descriptor.release({2});
  BatchAttention over(manager, c.options());
  EXPECT_THAT(error_of([&] {
                over.plan(packed, std::vector<std::int32_t>{0, 1, 2});
              }),
              ::testing::AllOf(HasSubstr("page 2"), HasSubstr("free"), HasSubstr("pack")));
}

SEQATTN_INSTANTIATE_DEVICES(Plans);

}  // namespace
}  // namespace seqattn::testing
