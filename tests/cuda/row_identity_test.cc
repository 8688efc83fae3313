// The bits of a row do not depend on the batch, on page placement, on how often it is computed or
// on whether a graph replays it.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>

#include "gpu_case.h"
#include "gpu_support.h"
#include "random_source.h"

namespace seqattn::testing {
namespace {

class CudaBitIdentity : public ::testing::TestWithParam<AttentionCase> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
    rows = random_rows(GetParam(), random);
    expected = bytes(rows);
  }
  // What a batch of these rows gives, row by row; pages are dealt anew.
  std::vector<std::vector<std::byte>> bytes(const std::vector<ref::Row>& batch_rows,
                                            const Placement& placement = {}) {
    const PagedBatch batch(GetParam(), batch_rows, cuda(0), random, placement);
    return bytes_by_row(batch_rows, attend_on_gpu(GetParam(), batch_rows, batch).tensors);
  }

  std::mt19937_64 random = random_source(5400);
  std::vector<ref::Row> rows;
  std::vector<std::vector<std::byte>> expected;
};

TEST_P(CudaBitIdentity, AcrossRepeatedRuns) {
  const PagedBatch batch(GetParam(), rows, cuda(0), random);
  for (int i = 0; i < 10; ++i) {
    EXPECT_TRUE(bytes_by_row(rows, attend_on_gpu(GetParam(), rows, batch).tensors) == expected)
        << "run " << i;
  }
}

TEST_P(CudaBitIdentity, AcrossPagePlacements) {
  EXPECT_TRUE(bytes(rows, {.unused = Unused::kMixed, .spare_pages = 100}) == expected);
}

TEST_P(CudaBitIdentity, OfARowAloneAndAmongOthers) {
  for (std::size_t i = 0; i < rows.size(); ++i) {
    EXPECT_TRUE(bytes({rows[i]})[0] == expected[i])
        << "row " << i << ": " << rows[i].q_len << " queries, " << rows[i].kv_len << " keys";
  }
}

TEST_P(CudaBitIdentity, InAnyOrderAndCompany) {
  std::vector<std::size_t> order(rows.size());
  for (std::size_t i = 0; i < order.size(); ++i) order[i] = i;
  for (int round = 0; round < 4; ++round) {
    std::shuffle(order.begin(), order.end(), random);
    std::vector<ref::Row> some;
    for (std::size_t i = 0; i < rows.size(); ++i) some.push_back(rows[order[i % 5]]);
    const auto result = bytes(some);
    for (std::size_t i = 0; i < some.size(); ++i) {
      EXPECT_TRUE(result[i] == expected[order[i % 5]]) << "row " << order[i % 5];
    }
  }
}

// Without an LSE rows of one chunk are written in place, where the batch holds no others; with one,
// as partial results that are merged.
TEST_P(CudaBitIdentity, WithAndWithoutAnLse) {
  const AttentionCase& c = GetParam();
  for (std::size_t i = 0; i <= rows.size(); ++i) {
    const auto some = i < rows.size() ? std::vector{rows[i]} : rows;
    const PagedBatch batch(c, some, cuda(0), random);
    const CallTensors with = attend_on_gpu(c, some, batch).tensors;
    const CallTensors without(c, some, cuda(0));
    BatchAttention attention(batch.manager(), c.options());
    const auto mask = mask_of(some);
    attention.plan(batch.packed(), qo_indptr_of(some), {.mask = mask});
    RunOptions options = without.run_options();
    options.lse = {};
    attention.run(without.q.read_only_view(), without.out.view(), options);
    EXPECT_TRUE(with.out.bytes() == without.out.bytes()) << "row " << i << " of " << rows.size();
  }
}

// The same rows, as far as a capacity allows them, through a captured graph of runs with nothing
// between them.
TEST_P(CudaBitIdentity, OfAReplayedGraph) {
  AttentionCase c = GetParam();
  if (c.mask_density >= 0) GTEST_SKIP() << "masks are not part of a captured graph";
  const std::int64_t longest =
      has_scales(c.kv_dtype) ? 16 * c.num_kv_heads / c.num_qo_heads
                             : (c.head_dim == 256 ? 64 : 128) * c.num_kv_heads / c.num_qo_heads;
  std::vector<ref::Row> short_rows;
  std::vector<std::vector<std::byte>> want;
  for (std::size_t i = 0; i < rows.size(); ++i) {
    if (rows[i].q_len > longest) continue;
    short_rows.push_back(rows[i]);
    want.push_back(expected[i]);
  }
  const PagedBatch batch(c, short_rows, cuda(0), random);
  std::vector<CallTensors> runs;
  for (int i = 0; i < 3; ++i) runs.emplace_back(c, short_rows, cuda(0));
  const OwnStream stream;
  BatchAttention attention(
      batch.manager(), c.options(),
      {.max_sequences = static_cast<std::int64_t>(short_rows.size()) + 3,
       .max_q_tokens = runs[0].q.view().shape[0],
       .max_pages = static_cast<std::int64_t>(batch.packed().kv_page_indices().size()) + 9});
  attention.plan(batch.packed(), qo_indptr_of(short_rows), {}, stream.get());
  const CapturedGraph graph(stream, [&] {
    for (const CallTensors& run : runs) {
      attention.run(run.q.view(), run.out.view(), run.run_options(), 0, stream.get());
    }
  });
  for (int i = 0; i < 3; ++i) {
    for (const CallTensors& run : runs) {
      fill_with_nan(run.out.view());
      fill_with_nan(run.lse.view());
    }
    graph.launch(stream);
    stream.wait();
    for (std::size_t run = 0; run < runs.size(); ++run) {
      EXPECT_TRUE(bytes_by_row(short_rows, runs[run]) == want) << "replay " << i << ", run " << run;
    }
  }
}

// Decode rows around every border of how keys are split, with 1 to most_queries queries each.
std::vector<RowLengths> ragged_rows(std::int64_t most_queries) {
  std::vector<RowLengths> rows;
  for (const std::int64_t kv_len :
       {2,    3,    15,   16,   17,   33,   128,   129,   1000,  1024,  1025,  2047, 2048,
        4096, 4097, 8191, 8192, 8193, 9000, 16384, 16385, 30000, 45000, 65536, 70001}) {
    rows.push_back({1 + static_cast<std::int64_t>(rows.size()) % most_queries, kv_len});
  }
  rows.push_back({1, 1});
  return rows;
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> list;
  const auto add = [&](const std::string& name, AttentionCase c) {
    c.name = name;
    list.push_back(c);
  };
  AttentionCase c = gpu_case(DType::kFloat16);
  c.rows = {{1, 2500}, {40, 40}, {1, 1}, {3, 900},  {2, 770},   {0, 9},
            {70, 95},  {1, 767}, {0, 0}, {30, 300}, {16, 4000}, {1, 9000}};
  add("Float16", c);
  c.sinks = true;
  c.window_left = 1800;
  c.logits_soft_cap = 2;
  add("WindowCapSinks", c);
  c = gpu_case(DType::kFloat16);
  c.mask_density = 0.5;
  add("Mask", c);
  c = gpu_case(DType::kBFloat16, 256);
  c.kv_layout = KVLayout::kHND;
  add("BFloat16Hnd256", c);
  c = gpu_case(DType::kBFloat16, 64);
  c.page_size = 1;
  c.num_kv_heads = 1;
  add("OneKvHeadPage1", c);
  c = gpu_case(DType::kBFloat16);
  c.num_kv_heads = 1;
  c.rows = ragged_rows(1);
  add("RaggedDecode", c);
  c.rows = ragged_rows(2);  // up to 16 query rows
  add("RaggedDecodeOfTwo", c);
  c = float8_gpu_case(KVScaling::kFixed, DType::kBFloat16);
  c.num_kv_heads = 1;
  c.rows = ragged_rows(2);
  add("RaggedDecodeFloat8", c);
  c = gpu_case(DType::kFloat16, 64);
  c.num_kv_heads = 1;
  c.rows = ragged_rows(2);
  add("RaggedDecodeOfTwo64", c);
  for (const bool is_float8 : {false, true}) {  // one block a processor
    c = is_float8 ? float8_gpu_case(KVScaling::kFixed, DType::kBFloat16, 256)
                  : gpu_case(DType::kBFloat16, 256);
    c.num_kv_heads = 1;
    c.rows = ragged_rows(1);
    add("RaggedDecode" + std::string(is_float8 ? "Float8" : "") + "Of256", c);
  }
  for (const DType kv_dtype : {DType::kBFloat16, DType::kFloat8E4M3}) {
    c = kv_dtype == DType::kBFloat16 ? gpu_case(kv_dtype)
                                     : float8_gpu_case(KVScaling::kPerToken, DType::kBFloat16);
    c.num_qo_heads = 16;
    c.num_kv_heads = 4;
    c.rows = {{1, 1025}, {3, 2048}, {1, 2049}, {2, 4096}, {4, 4097}, {1, 1500}, {2, 16385}};
    add("FourHeads" + std::string(kv_dtype == DType::kBFloat16 ? "16" : "8"), c);
  }
  c = gpu_case(DType::kFloat16, 64);
  c.num_qo_heads = 6;
  c.kv_layout = KVLayout::kHND;
  c.rows = {{1, 7000}, {2, 3000}, {1, 16}, {1, 257}, {2, 2}, {1, 4095}, {1, 4096}, {1, 12000}};
  add("RaggedDecodeHnd64", c);
  for (const KVScaling scaling : {KVScaling::kFixed, KVScaling::kPerToken}) {
    c = float8_gpu_case(scaling, DType::kBFloat16);
    c.num_kv_heads = scaling == KVScaling::kFixed ? 1 : 2;
    c.rows = {{1, 2500}, {40, 40},  {1, 1}, {2, 900},  {1, 770},  {0, 9},
              {70, 95},  {1, 8191}, {0, 0}, {30, 300}, {1, 9000}, {1, 40000}};
    add("Float8" + std::string(scaling == KVScaling::kFixed ? "Fixed" : "PerToken"), c);
  }
  c = long_query_case(DType::kBFloat16);
  c.rows = {{300, 700}, {1, 900}, {600, 600}, {129, 2000}, {40, 50}, {1, 1}, {200, 200}};
  add("LongQueries", c);
  c.out_dtype = DType::kFloat32;
  add("LongQueriesFloatOut", c);
  return list;
}

INSTANTIATE_TEST_SUITE_P(, CudaBitIdentity, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace seqattn::testing
