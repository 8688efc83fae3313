// Batches so large that decode's blocks take runs of chunks (decode_items_test.cc says which):
// every row has the bits that it has alone, when each chunk of it is a block's. Rows are forks of a
// few sequences, so that many of them take little memory.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "decode_run_cases.h"
#include "gpu_case.h"
#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/seqattn.h"

namespace seqattn::testing {
namespace {

// Kernels differ by these as well.
AttentionCase attention_of(const RunCase& c) {
  AttentionCase attention =
      c.float8_scaling
          ? float8_gpu_case(*c.float8_scaling, DType::kBFloat16, c.head_dim)
          : gpu_case(c.head_dim == 64 ? DType::kFloat16 : DType::kBFloat16, c.head_dim);
  attention.num_qo_heads = c.num_qo_heads;
  attention.num_kv_heads = c.num_kv_heads;
  attention.window_left = c.window_left;
  if (c.head_dim == 64) {
    attention.kv_layout = KVLayout::kHND;
    attention.logits_soft_cap = 2;
  }
  return attention;
}

class CudaDecodeRuns : public ::testing::TestWithParam<RunCase> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
    std::int64_t num_pages = 0;
    for (const auto& [kv_len, count] : param.rows) num_pages += (kv_len + 15) / 16;
    manager = std::make_unique<PagedKVCacheManager>(c.cache_config(num_pages, cuda(0)));
    sequences = std::make_unique<CacheDescriptor>(*manager);
    attention = std::make_unique<BatchAttention>(*manager, c.options());
    for (const auto& [kv_len, count] : param.rows) start(kv_len, count);
    const auto num_queries = static_cast<std::int64_t>(ids.size()) * param.q_len;
    q = Tensor(cuda(0), c.q_dtype, {num_queries, c.num_qo_heads, c.head_dim});
    fill_with_normals(q, random);
  }

  void start(std::int64_t kv_len, int count) {
    const auto parent = static_cast<SeqId>(ids.size());
    start_with_normals(c, *manager, *sequences, parent, kv_len, random);
    for (int i = 0; i < count; ++i) {
      const auto id = parent + i;
      if (i > 0) sequences->fork(parent, id);
      ids.push_back(id);
    }
  }

  // The bytes of out and lse of some of the rows, [rows][bytes].
  std::vector<std::vector<std::byte>> attend(std::size_t first, std::size_t count, bool packs) {
    std::vector<SeqId> some(ids.begin() + static_cast<std::ptrdiff_t>(first),
                            ids.begin() + static_cast<std::ptrdiff_t>(first + count));
    std::vector<std::int32_t> indptr{0};
    for (std::size_t i = 0; i < count; ++i) {
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(param.q_len));
    }
    if (packs) {
      attention->plan(sequences->pack_for_flashinfer(some), indptr);
    } else {
      attention->plan_sequences(*sequences, some, indptr);
    }
    TensorView queries = q.view();
    queries.data = static_cast<std::byte*>(queries.data) + static_cast<std::int64_t>(first) *
                                                               param.q_len * queries.strides[0] *
                                                               size_of(c.q_dtype);
    queries.shape[0] = indptr.back();
    // One behind the other, so that launches overlap where they may.
    std::vector<Tensor> outs, lses;
    for (int i = 0; i < 3; ++i) {
      outs.emplace_back(cuda(0), c.out_dtype,
                        std::vector<std::int64_t>{indptr.back(), c.num_qo_heads, c.dim_v()});
      lses.emplace_back(cuda(0), DType::kFloat32,
                        std::vector<std::int64_t>{indptr.back(), c.num_qo_heads});
    }
    for (std::size_t i = 0; i < outs.size(); ++i) {
      attention->run(queries, outs[i].view(), {.lse = lses[i].view()});
    }
    check(cudaDeviceSynchronize());
    for (std::size_t i = 1; i < outs.size(); ++i) {
      EXPECT_TRUE(outs[i].bytes() == outs[0].bytes() && lses[i].bytes() == lses[0].bytes());
    }
    std::vector<std::vector<std::byte>> rows(count);
    for (const auto& bytes : {outs[0].bytes(), lses[0].bytes()}) {
      const std::size_t of_row = bytes.size() / count;
      for (std::size_t i = 0; i < count; ++i) {
        rows[i].insert(rows[i].end(), bytes.data() + i * of_row, bytes.data() + (i + 1) * of_row);
      }
    }
    return rows;
  }

  const RunCase param = GetParam();
  const AttentionCase c = attention_of(param);
  std::mt19937_64 random = random_source(5600);
  std::unique_ptr<PagedKVCacheManager> manager;
  std::unique_ptr<CacheDescriptor> sequences;
  std::unique_ptr<BatchAttention> attention;
  std::vector<SeqId> ids;
  Tensor q;
};

TEST_P(CudaDecodeRuns, GiveRowsTheBitsThatTheyHaveAlone) {
  const auto expected = attend(0, ids.size(), /*packs=*/false);
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(attend(0, ids.size(), /*packs=*/i % 2 == 0) == expected) << "run " << i;
  }
  std::size_t first = 0;
  for (const auto& [kv_len, rows] : param.rows) {
    const auto count = static_cast<std::size_t>(rows);
    for (const std::size_t row : {first, first + count / 2, first + count - 1}) {
      EXPECT_TRUE(attend(row, 1, /*packs=*/false)[0] == expected[row])
          << "row " << row << ", " << kv_len << " keys";
    }
    first += count;
  }
}

INSTANTIATE_TEST_SUITE_P(, CudaDecodeRuns, ::testing::ValuesIn(run_cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace seqattn::testing
