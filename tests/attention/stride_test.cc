#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"

// Tensors and caches that are not packed: gaps after heads and tokens, heads outside tokens, views
// into a fused buffer.
namespace seqattn::testing {
namespace {

std::vector<AttentionCase> stride_cases() {
  std::vector<AttentionCase> cases;
  for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
    for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const int head_dim : {16, 21}) {
        AttentionCase c;
        c.name = std::string(to_string(dtype)) + "_" + std::string(to_string(layout)) + "_" +
                 std::to_string(head_dim);
        c.kv_layout = layout;
        c.kv_dtype = c.q_dtype = c.out_dtype = dtype;
        c.head_dim = head_dim;
        c.sinks = true;
        c.rows.push_back({50, 60});
        cases.push_back(c);
      }
    }
  }
  return cases;
}

class Strides : public ConformanceSuite {};
TEST_P(Strides, OfTensorsMayLeaveGaps) {
  check_case(attention_case(), device(), random, {}, TensorLayout::kWithGaps);
}
TEST_P(Strides, OfTensorsMayPutHeadsOutsideTokens) {
  check_case(attention_case(), device(), random, {}, TensorLayout::kHeadsFirst);
}
TEST_P(Strides, OfCachesMayLeaveGaps) {
  check_case(attention_case(), device(), random, {.unused = Unused::kMixed, .with_gaps = true});
}
TEST_P(Strides, DoNotChangeABit) {
  const AttentionCase c = attention_case();
  const auto rows = random_rows(c, random);
  const PagedBatch packed(c, rows, device(), random);
  const PagedBatch apart(c, rows, device(), random, {.with_gaps = true});
  const CallTensors expected = attend(c, rows, packed);
  for (const TensorLayout layout : {TensorLayout::kWithGaps, TensorLayout::kHeadsFirst}) {
    const CallTensors result = attend(c, rows, apart, 0, layout);
    EXPECT_EQ(result.out.read(), expected.out.read());
    EXPECT_EQ(result.lse.read(), expected.lse.read());
  }
}
SEQATTN_INSTANTIATE_CASES(Strides, stride_cases());

class FusedTensors : public DeviceSuite {};

// Projections of a model leave queries, keys and values side by side, token by token.
TEST_P(FusedTensors, OfQueriesKeysAndValuesAreUsedWhereTheyLie) {
  AttentionCase c;
  c.kv_dtype = c.q_dtype = DType::kFloat16;
  c.rows = {{9, 9}, {5, 5}};
  c = device_case(c, device());
  const auto rows = random_rows(c, random);
  const std::int64_t tokens = c.num_q_tokens(), heads = c.num_qo_heads + 2 * c.num_kv_heads;
  std::vector<double> elements;
  for (const ref::Row& row : rows) {
    for (std::int64_t token = 0; token < row.q_len; ++token) {
      for (const auto* part : {&row.q, &row.k, &row.v}) {
        const auto size = static_cast<std::ptrdiff_t>(part->size()) / row.q_len;
        elements.insert(elements.end(), part->begin() + token * size,
                        part->begin() + (token + 1) * size);
      }
    }
  }
  Tensor fused(device(), c.kv_dtype, {tokens, heads, c.head_dim});
  fused.write(elements);
  const TensorView q = head_slice(fused.read_only_view(), 0, c.num_qo_heads);
  const TensorView keys = head_slice(fused.read_only_view(), c.num_qo_heads, c.num_kv_heads);
  const TensorView values =
      head_slice(fused.read_only_view(), c.num_qo_heads + c.num_kv_heads, c.num_kv_heads);

  PagedKVCacheManager manager(c.cache_config(8, device()));
  BatchAttention attention(manager, c.options());
  attention.plan(random_table({9, 5}, c.page_size, 8, random), qo_indptr_of(rows));
  attention.append_kv(keys, values);
  CallTensors result(c, rows, device());
  attention.run(q, result.out.view(), result.run_options());
  expect_reference(c, rows, result);
}

// Outputs side by side in one buffer would meet; outputs beside other data of their own do not.
TEST_P(FusedTensors, MayHoldAnOutputBesideOtherData) {
  const AttentionCase c = device_case({}, device());
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, device(), random);
  const CallTensors expected = attend(c, rows, batch);
  Tensor fused(device(), c.out_dtype, {c.num_q_tokens(), 3 * c.num_qo_heads, c.head_dim});
  const TensorView out = head_slice(fused.view(), c.num_qo_heads, c.num_qo_heads);
  BatchAttention attention(batch.manager(), c.options());
  attention.plan(batch.packed(), qo_indptr_of(rows));
  attention.run(expected.q.view(), out);
  const auto all = fused.read(), part = expected.out.read();
  const auto size = static_cast<std::size_t>(c.num_qo_heads * c.head_dim);
  for (std::size_t i = 0; i < all.size(); ++i) {
    const std::size_t token = i / (3 * size), at = i % (3 * size);
    if (at >= size && at < 2 * size) {
      ASSERT_EQ(all[i], part[token * size + at - size]);
    } else {
      ASSERT_TRUE(std::isnan(all[i])) << "written beside the output";
    }
  }
}

SEQATTN_INSTANTIATE_DEVICES(FusedTensors);

}  // namespace
}  // namespace seqattn::testing
