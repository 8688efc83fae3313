// Batches so large that decode's blocks take runs of chunks (decode_items_test.cc says which):
// every row has the bits that it has alone, when each chunk of it is a block's. Rows are forks of a
// few sequences, so that many of them take little memory.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
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
    EXPECT_EQ(attention->kernel_name(), decode_kernel_name(c));
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
    for (const Tensor* tensor : {&outs[0], &lses[0]}) {
      const auto elements = tensor->read();
      EXPECT_TRUE(std::none_of(elements.begin(), elements.end(), [](double x) {
        return std::isnan(x);
      })) << "not all was written";
    }
    for (std::size_t i = 1; i < outs.size(); ++i) {
      EXPECT_TRUE(outs[i].bytes() == outs[0].bytes() && lses[i].bytes() == lses[0].bytes());
    }
    return rows_of(outs[0], lses[0], count);
  }

  // Of tensors of so many rows, or of which those are the first.
  std::vector<std::vector<std::byte>> rows_of(const Tensor& out, const Tensor& lse,
                                              std::size_t count) const {
    std::vector<std::vector<std::byte>> rows(count);
    for (const Tensor* tensor : {&out, &lse}) {
      const auto bytes = tensor->bytes();
      const auto num_rows = static_cast<std::size_t>(tensor->view().shape[0] / param.q_len);
      const std::size_t of_row = bytes.size() / num_rows;
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

class CudaDecodeRagged : public CudaDecodeRuns {
 protected:
  static constexpr std::size_t kNumRagged = std::size(kRaggedLengths);  // in front of the others

  // The first `count` rows, of a graph that is captured once.
  std::vector<std::vector<std::byte>> replay(std::size_t count) {
    if (graph == nullptr) {
      const auto num_rows = static_cast<std::int64_t>(ids.size());
      std::int64_t num_pages = 0;
      for (const SeqId id : ids) num_pages += (sequences->length(id) + 15) / 16;
      captured = std::make_unique<BatchAttention>(*manager, c.options(),
                                                  PlanCapacity{.max_sequences = num_rows + 3,
                                                               .max_q_tokens = num_rows,
                                                               .max_q_len = 1,
                                                               .max_pages = num_pages});
      out = Tensor(cuda(0), c.out_dtype, {num_rows, c.num_qo_heads, c.dim_v()});
      lse = Tensor(cuda(0), DType::kFloat32, {num_rows, c.num_qo_heads});
      stream = std::make_unique<OwnStream>();
      plan_first(count);
      graph = std::make_unique<CapturedGraph>(*stream, [&] {
        captured->run(q.view(), out.view(), {.lse = lse.view()}, 0, stream->get());
      });
    } else {
      plan_first(count);
    }
    fill_with_nan(out.view());
    fill_with_nan(lse.view());
    graph->launch(*stream);
    stream->wait();
    EXPECT_EQ(captured->kernel_name(), decode_kernel_name(c));
    const auto all = lse.read();
    const auto is_nan = [](double x) { return std::isnan(x); };
    EXPECT_TRUE(std::all_of(all.begin() + static_cast<std::ptrdiff_t>(count) * c.num_qo_heads,
                            all.end(), is_nan))
        << "rows behind the batch were written";
    return rows_of(out, lse, count);
  }
  void plan_first(std::size_t count) {
    std::vector<std::int32_t> indptr;
    for (std::size_t i = 0; i <= count; ++i) indptr.push_back(static_cast<std::int32_t>(i));
    captured->plan_sequences(*sequences, std::span(ids).first(count), indptr, stream->get());
  }

  std::unique_ptr<OwnStream> stream;  // of these, none where there is no GPU
  std::unique_ptr<BatchAttention> captured;
  std::unique_ptr<CapturedGraph> graph;
  Tensor out, lse;
};

// Eight times over: all of them, planned on the device and on the host, each row alone, some beside
// each other, and as many as come through a replayed graph.
TEST_P(CudaDecodeRagged, RepeatTheirBitsInEveryCompany) {
  const auto expected = attend(0, ids.size(), /*packs=*/false);
  const auto expect_rows = [&](const char* what, std::size_t first,
                               const std::vector<std::vector<std::byte>>& got) {
    for (std::size_t i = 0; i < got.size(); ++i) {
      EXPECT_TRUE(got[i] == expected[first + i]) << what << ", row " << first + i;
    }
  };
  for (int repetition = 0; repetition < 8 && !HasFailure(); ++repetition) {
    SCOPED_TRACE(repetition);
    const bool packs = repetition % 2 == 1;
    expect_rows("planned on the device", 0, attend(0, ids.size(), false));
    expect_rows("packed", 0, attend(0, ids.size(), true));
    for (std::size_t row = 0; row < kNumRagged; ++row) {
      expect_rows("alone", row, attend(row, 1, packs));
    }
    for (int i = 0; i < 4; ++i) {
      const std::size_t first = random() % kNumRagged;
      const std::size_t count = 1 + random() % (ids.size() - first);
      expect_rows("some", first, attend(first, count, packs));
      expect_rows("replayed", 0, replay(i == 0 ? ids.size() : count));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, CudaDecodeRagged, ::testing::ValuesIn(ragged_cases()),
                         [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace seqattn::testing
