// What FlashInfer's kernels get wrong, or do not check, when they are called with it.
#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "error_text.h"
#include "gpu_case.h"
#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/error.h"

namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CudaPitfalls : public GpuTest {
 protected:
  void set_up() override {
    c = gpu_case(DType::kFloat16);
    rows = random_rows(c, random);
    batch = std::make_unique<PagedBatch>(c, rows, cuda(0), random);
    attention = std::make_unique<BatchAttention>(batch->manager(), c.options());
  }
  std::string plan_error(const FlashInferPackedData& packed,
                         const std::vector<std::int32_t>& indptr) {
    return error_of([&] { attention->plan(packed, indptr); });
  }
  // A view whose elements begin, or lie apart, by so many elements more.
  static TensorView shifted(TensorView view, std::int64_t elements) {
    view.data = static_cast<std::byte*>(view.data) + elements * size_of(view.dtype);
    return view;
  }

  std::mt19937_64 random = random_source(5900);
  AttentionCase c;
  std::vector<ref::Row> rows;
  std::unique_ptr<PagedBatch> batch;
  std::unique_ptr<BatchAttention> attention;
};

TEST_F(CudaPitfalls, MoreQueriesThanKeysUnderACausalMask) {
  const FlashInferPackedData packed({0, 1, 2, 3, 4, 5, 6}, {0, 7}, {4});  // 100 keys
  EXPECT_THAT(plan_error(packed, {0, 200}), AllOf(HasSubstr("200 queries"), HasSubstr("100 keys")));
  EXPECT_THAT(plan_error(packed, {0, 101}), HasSubstr("101 queries"));
  AttentionCase all = c;
  all.causal = false;
  all.rows = {{200, 100}, {64, 63}, {2, 1}};
  const auto all_rows = random_rows(all, random);
  const PagedBatch all_batch(all, all_rows, cuda(0), random);
  expect_reference(all, all_rows, attend_on_gpu(all, all_rows, all_batch).tensors);
}

TEST_F(CudaPitfalls, NoRowsAndNoQueries) {
  const Tensor none(cuda(0), DType::kFloat16, {0, 8, 128});
  attention->plan(FlashInferPackedData(), std::vector<std::int32_t>{0});
  EXPECT_NO_THROW(attention->run(none.view(), none.view()));
  attention->plan(FlashInferPackedData({}, {0, 0, 0}, {0, 0}), std::vector<std::int32_t>{0, 0, 0});
  EXPECT_NO_THROW(attention->run(none.view(), none.view()));
  attention->plan(FlashInferPackedData({3}, {0, 1}, {5}), std::vector<std::int32_t>{0, 0});
  EXPECT_NO_THROW(attention->run(none.view(), none.view()));
  const Tensor kv(cuda(0), DType::kFloat16, {0, 2, 128});
  EXPECT_NO_THROW(attention->append_kv(kv.view(), kv.view()));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(CudaPitfalls, PageIdsOutsideThePool) {
  const auto num_pages = static_cast<std::int32_t>(batch->manager().config().num_pages);
  for (const std::int32_t page : {num_pages, num_pages + 1, 1 << 30}) {
    EXPECT_THAT(plan_error(FlashInferPackedData({0, page}, {0, 2}, {1}), {0, 1}),
                HasSubstr(std::to_string(page)));
  }
  EXPECT_THROW(FlashInferPackedData({0, -1}, {0, 2}, {1}), InvalidArgumentError);
}

TEST_F(CudaPitfalls, QueriesThatAreNotAligned) {
  attention->plan(batch->packed(), qo_indptr_of(rows));
  const std::int64_t tokens = c.num_q_tokens();
  const Tensor memory(cuda(0), DType::kFloat16, {tokens + 1, 8, 136});
  const CallTensors tensors(c, rows, cuda(0));
  const auto refuse = [&](const TensorView& q) {
    EXPECT_THAT(error_of([&] { attention->run(q, tensors.out.view()); }),
                AllOf(HasSubstr("q"), HasSubstr("16 bytes")));
  };
  TensorView q = tensors.q.view();
  q.data = memory.view().data;
  refuse(shifted(q, 1));
  refuse(shifted(q, 4));
  TensorView apart = q;
  apart.strides = {8 * 132, 132, 1};
  refuse(apart);
  apart.strides = {8 * 128 + 4, 128, 1};
  refuse(apart);
  // What is aligned may have gaps.
  apart.strides = {8 * 136, 136, 1};
  EXPECT_NO_THROW(attention->run(apart, tensors.out.view()));
  EXPECT_NO_THROW(attention->run(shifted(q, 8), tensors.out.view()));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

// DLPack lets them be anything, and NumPy's and CuPy's differ.
TEST_F(CudaPitfalls, StridesOfDimensionsOfOneEntryDoNotMatter) {
  AttentionCase single = c;
  single.num_qo_heads = single.num_kv_heads = 1;
  single.rows = {{1, 37}};
  const auto single_rows = random_rows(single, random);
  const PagedBatch single_batch(single, single_rows, cuda(0), random);
  BatchAttention object(single_batch.manager(), single.options());
  object.plan(single_batch.packed(), qo_indptr_of(single_rows));
  const CallTensors tensors(single, single_rows, cuda(0)), again(single, single_rows, cuda(0));
  object.run(tensors.q.view(), tensors.out.view());
  TensorView q = tensors.q.view();
  q.strides = {5, 3, 1};
  object.run(q, again.out.view());
  EXPECT_EQ(again.out.bytes(), tensors.out.bytes());

  TensorView cache = single_batch.manager().key_cache();
  cache.strides[2] = 7;  // of the only head
  const auto manager = PagedKVCacheManager::from_tensors(std::span(&cache, 1), std::span(&cache, 1),
                                                         single_batch.manager().config());
  manager->allocate(manager->config().num_pages);
  BatchAttention borrowed(*manager, single.options());
  const FlashInferPackedData packed(
      {single_batch.packed().kv_page_indices().begin(),
       single_batch.packed().kv_page_indices().end()},
      {0, static_cast<std::int32_t>(single_batch.packed().kv_page_indices().size())},
      {single_batch.packed().kv_last_page_len()[0]});
  borrowed.plan(packed, qo_indptr_of(single_rows));
  EXPECT_NO_THROW(borrowed.run(q, again.out.view()));
  EXPECT_EQ(cudaDeviceSynchronize(), cudaSuccess);
}

TEST_F(CudaPitfalls, CachesThatAreNotAligned) {
  const Tensor memory(cuda(0), DType::kFloat16, {5, 16, 2, 136});
  TensorView cache = memory.view();
  cache.shape = {4, 16, 2, 128};
  const auto error = [&](const TensorView& view) {
    const auto manager = PagedKVCacheManager::from_tensors(std::span(&view, 1), std::span(&view, 1),
                                                           c.cache_config(4, cuda(0)));
    BatchAttention object(*manager, c.options());
    object.plan(FlashInferPackedData({0}, {0, 1}, {5}), std::vector<std::int32_t>{0, 1});
    const Tensor q(cuda(0), DType::kFloat16, {1, 8, 128}),
        out = Tensor(cuda(0), DType::kFloat16, {1, 8, 128});
    return error_of([&] { object.run(q.view(), out.view()); });
  };
  EXPECT_THAT(error(shifted(cache, 4)), AllOf(HasSubstr("cache"), HasSubstr("16 bytes")));
  TensorView apart = cache;
  apart.strides = {16 * 2 * 132, 2 * 132, 132, 1};
  EXPECT_THAT(error(apart), HasSubstr("16 bytes"));
}

// FA3 takes the strides of keys for those of values.
TEST_F(CudaPitfalls, ValuesThatLieOtherwiseThanKeys) {
  for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
    AttentionCase many = long_query_case(DType::kBFloat16);
    many.kv_layout = layout;
    const auto many_rows = random_rows(many, random);
    for (const Placement& placement : {Placement{.with_gaps = true}, {.values_with_gaps = true}}) {
      const PagedBatch many_batch(many, many_rows, cuda(0), random, placement);
      expect_reference(many, many_rows, attend_on_gpu(many, many_rows, many_batch).tensors);
    }
  }
}

// FA3 reads them by a descriptor with strides of its own.
TEST_F(CudaPitfalls, LongQueriesWithStrides) {
  AttentionCase many = long_query_case(DType::kFloat16);
  const auto many_rows = random_rows(many, random);
  const PagedBatch many_batch(many, many_rows, cuda(0), random);
  BatchAttention object(many_batch.manager(), many.options());
  object.plan(many_batch.packed(), qo_indptr_of(many_rows));
  for (const TensorLayout layout : {TensorLayout::kWithGaps, TensorLayout::kHeadsFirst}) {
    CallTensors tensors(many, many_rows, cuda(0));
    tensors.q = CallTensors(many, many_rows, cuda(0), layout).q;
    object.run(tensors.q.read_only_view(), tensors.out.view(), tensors.run_options());
    expect_reference(many, many_rows, tensors);
  }
}

TEST_F(CudaPitfalls, QueriesBeyondOffsetsOf32Bits) {
  attention->plan(batch->packed(), qo_indptr_of(rows));
  const CallTensors tensors(c, rows, cuda(0));
  for (const int dimension : {0, 1}) {
    TensorView q = tensors.q.view();
    q.data = reinterpret_cast<void*>(std::uintptr_t{1} << 46);  // far from what is written
    q.strides[dimension] = dimension == 0 ? std::int64_t{1} << 31 : std::int64_t{1} << 30;
    EXPECT_THAT(error_of<UnsupportedError>([&] { attention->run(q, tensors.out.view()); }),
                AllOf(HasSubstr("q: strides of"), HasSubstr("2^32")));
  }
}

// Rows of one chunk are written in place by vectors of 16 bytes, where that is possible.
TEST_F(CudaPitfalls, OutputsThatAreNotAligned) {
  AttentionCase one = c;
  one.rows = {{1, 20}, {3, 33}, {16, 16}, {0, 5}, {2, 900}};
  const auto one_rows = random_rows(one, random);
  const PagedBatch one_batch(one, one_rows, cuda(0), random);
  BatchAttention object(one_batch.manager(), one.options());
  object.plan(one_batch.packed(), qo_indptr_of(one_rows));
  const CallTensors tensors(one, one_rows, cuda(0));
  object.run(tensors.q.view(), tensors.out.view());
  const auto expected = tensors.out.bytes();
  for (const std::int64_t elements : {1, 4, 8}) {
    const Tensor memory(cuda(0), DType::kFloat16, {one.num_q_tokens() + 1, 8, 128});
    TensorView out = tensors.out.view();
    out.data = memory.view().data;
    object.run(tensors.q.view(), shifted(out, elements));
    const auto bytes = memory.bytes();
    EXPECT_TRUE(std::equal(expected.begin(), expected.end(), bytes.begin() + elements * 2))
        << elements;
  }
}

// A large row's output is written by vectors.
TEST_F(CudaPitfalls, OutputsOfLongQueriesAreRowMajor) {
  AttentionCase many = long_query_case(DType::kBFloat16);
  const auto many_rows = random_rows(many, random);
  const PagedBatch many_batch(many, many_rows, cuda(0), random);
  BatchAttention object(many_batch.manager(), many.options());
  object.plan(many_batch.packed(), qo_indptr_of(many_rows));
  const CallTensors tensors(many, many_rows, cuda(0));
  const std::int64_t tokens = many.num_q_tokens();
  const Tensor apart(cuda(0), DType::kBFloat16, {tokens, 32, 128}, {{32 * 136, 136, 1}, 0});
  EXPECT_THAT(error_of([&] { object.run(tensors.q.view(), apart.view()); }),
              AllOf(HasSubstr("out"), HasSubstr("row-major")));
}

TEST_F(CudaPitfalls, ShapesWithoutAKernelSayWhichThereAre) {
  const auto refusal = [&](AttentionCase changed) {
    return error_of<UnsupportedError>([&] {
      PagedKVCacheManager manager(changed.cache_config(4, cuda(0)));
      BatchAttention object(manager, changed.options());
    });
  };
  for (const int head_dim : {96, 192, 8, 512}) {
    AttentionCase changed = c;
    changed.head_dim = head_dim;
    EXPECT_THAT(refusal(changed), AllOf(HasSubstr("head_dim " + std::to_string(head_dim)),
                                        HasSubstr("with head_dim 64, 128, 256")));
  }
  AttentionCase changed = c;
  changed.head_dim_v = 64;
  EXPECT_THAT(refusal(changed), HasSubstr("head_dim_v 64"));
  changed = c;
  changed.head_dim = 100;
  EXPECT_THAT(refusal(changed), HasSubstr("multiples of 8"));
  changed = c;
  changed.kv_dtype = DType::kFloat32;
  EXPECT_THAT(refusal(changed), HasSubstr("float16, bfloat16 and float8_e4m3fn"));
}

TEST_F(CudaPitfalls, QueriesInFloat32) {
  attention->plan(batch->packed(), qo_indptr_of(rows));
  const CallTensors tensors(c, rows, cuda(0));
  const Tensor q(cuda(0), DType::kFloat32, {c.num_q_tokens(), 8, 128});
  EXPECT_THAT(error_of<UnsupportedError>([&] { attention->run(q.view(), tensors.out.view()); }),
              AllOf(HasSubstr("float32"), HasSubstr("float16")));
}

// Partial results of a split row must not carry the rounding of the output's type.
TEST_F(CudaPitfalls, SplitRowsAreMergedInFloat32) {
  AttentionCase split = gpu_case(DType::kBFloat16);
  split.out_dtype = DType::kFloat32;
  split.rows = {{1, 30000}};
  const auto split_rows = random_rows(split, random);
  const PagedBatch split_batch(split, split_rows, cuda(0), random);
  const auto out = attend_on_gpu(split, split_rows, split_batch).tensors.out.read();
  const auto want = ref::attention(split_rows[0], split.reference_options()).out;
  double error = 0, size = 0;
  for (std::size_t i = 0; i < want.size(); ++i) {
    error += (out[i] - want[i]) * (out[i] - want[i]);
    size += want[i] * want[i];
  }
  EXPECT_LT(std::sqrt(error / size), 0.75 * epsilon(DType::kBFloat16));
}

}  // namespace
}  // namespace seqattn::testing
