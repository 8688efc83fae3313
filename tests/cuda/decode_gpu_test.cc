// Rows that our own kernel serves, beside the oracle: that it serves them, with every option.
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <string>
#include <vector>

#include "gpu_case.h"
#include "gpu_support.h"
#include "random_source.h"

namespace seqattn::testing {
namespace {

class CudaDecodeOracle : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(CudaDecodeOracle, Agrees) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5310);
  EXPECT_EQ(check_on_gpu(GetParam(), random), decode_kernel_name(GetParam()));
}

// What decides which kernel is compiled: the types, the head's size and how many query rows.
struct Kernel {
  DType q_dtype;
  int head_dim, query_rows;
  std::optional<KVScaling> float8_scaling;  // of a cache of 8 bits
};

std::vector<Kernel> decode_kernels() {
  std::vector<Kernel> list;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const auto& scaling : {std::optional<KVScaling>(), std::optional(KVScaling::kFixed),
                                std::optional(KVScaling::kPerToken)}) {
      for (const int head_dim : {64, 128, 256}) {
        for (const int query_rows : {8, 16}) {
          if (head_dim * query_rows > 256 * 8) continue;  // not compiled
          list.push_back({dtype, head_dim, query_rows, scaling});
        }
      }
    }
  }
  return list;
}

AttentionCase case_of(const Kernel& kernel) {
  AttentionCase c = kernel.float8_scaling
                        ? float8_gpu_case(*kernel.float8_scaling, kernel.q_dtype, kernel.head_dim)
                        : gpu_case(kernel.q_dtype, kernel.head_dim);
  c.name.append("_").append(std::to_string(kernel.query_rows));
  const std::int64_t most = kernel.query_rows * c.num_kv_heads / c.num_qo_heads;
  c.rows = {{most, 700}, {1, 1}, {1, 16},      {2, 33}, {most, 2500}, {1, 129},
            {0, 20},     {0, 0}, {most, most}, {1, 15}, {1, 4200}};
  return c;
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> list;
  const auto add = [&](AttentionCase c, const std::string& name, auto change) {
    c.name = name + "_" + c.name;
    change(c);
    list.push_back(c);
  };
  for (const Kernel& kernel : decode_kernels()) {
    const AttentionCase base = case_of(kernel);
    add(base, "Causal", [](AttentionCase&) {});
    add(base, "AllKeys", [](AttentionCase& c) { c.causal = false; });
    add(base, "Hnd", [](AttentionCase& c) { c.kv_layout = KVLayout::kHND; });
    for (const int window : {0, 1, 17, 1000, std::numeric_limits<int>::max()}) {
      add(base, "Window" + std::to_string(window),
          [window](AttentionCase& c) { c.window_left = window; });
    }
    add(base, "WindowAllKeys", [](AttentionCase& c) { c.causal = false, c.window_left = 40; });
    add(base, "SoftCap", [](AttentionCase& c) { c.logits_soft_cap = 2; });
    add(base, "Sinks", [](AttentionCase& c) { c.sinks = true; });
    add(base, "Everything", [](AttentionCase& c) {
      c.kv_layout = KVLayout::kHND;
      c.window_left = 300;
      c.logits_soft_cap = 3;
      c.sm_scale = 0.2;
      c.sinks = true;
      c.out_dtype = DType::kFloat32;
    });
    for (const int page_size : {32, 48, 64, 256}) {
      add(base, "Page" + std::to_string(page_size),
          [page_size](AttentionCase& c) { c.page_size = page_size; });
    }
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(, CudaDecodeOracle, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

// A cache with gaps, keys and values of unlike strides, in tensors with gaps; sinks of any size.
TEST(CudaDecode, TakesAnyStridesAndSinks) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5305);
  for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
    for (const int page_size : {16, 48}) {
      AttentionCase c = gpu_case(DType::kBFloat16);
      c.kv_layout = layout;
      c.page_size = page_size;
      c.rows = {{1, 1}, {2, 700}, {1, 3000}, {0, 9}, {1, 16}};
      check_case(c, cuda(0), random, {.with_gaps = true}, TensorLayout::kWithGaps);
      check_case(c, cuda(0), random, {.values_with_gaps = true}, TensorLayout::kHeadsFirst);
      c.sinks = true;
      auto rows = random_rows(c, random);
      for (const double sink : {3e38, -3e38, 1e5, -1e5}) {
        for (ref::Row& row : rows) std::fill(row.sink_logits.begin(), row.sink_logits.end(), sink);
        const PagedBatch batch(c, rows, cuda(0), random);
        expect_reference(c, rows, attend_on_gpu(c, rows, batch).tensors);
      }
    }
  }
}

// A key's in any chunk, also where a query sees no other key.
TEST(CudaDecode, PassesNanOn) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5307);
  for (AttentionCase c : {gpu_case(DType::kBFloat16), gpu_case(DType::kFloat16, 64),
                          float8_gpu_case(KVScaling::kFixed, DType::kBFloat16)}) {
    c.rows = {{1, 1}, {1, 16}, {2, 700}, {1, 5000}};
    check_nan_is_passed_on(c, cuda(0), random);
    c.sinks = true;
    check_nan_is_passed_on(c, cuda(0), random);
  }
}

// A pool may have no pages at all.
TEST(CudaDecode, TakesAnEmptyPool) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5306);
  AttentionCase c = gpu_case(DType::kBFloat16);
  c.causal = false;
  c.rows = {{1, 0}, {2, 0}};
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, cuda(0), random, {.spare_pages = 0});
  expect_reference(c, rows, attend_on_gpu(c, rows, batch).tensors);
}

}  // namespace
}  // namespace seqattn::testing
