// Attention on a GPU beside the oracle: types, head sizes, masks, options, layouts, group and page
// sizes, short and long queries.
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "gpu_case.h"
#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/error.h"

namespace seqattn::testing {
namespace {

class CudaOracle : public ::testing::TestWithParam<AttentionCase> {};

TEST_P(CudaOracle, Agrees) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5300);
  RecordProperty("kernel", check_on_gpu(GetParam(), random));
}

std::vector<AttentionCase> cases() {
  std::vector<AttentionCase> list;
  const auto add = [&](AttentionCase c, const std::string& name, auto change) {
    c.name = name + "_" + c.name;
    change(c);
    list.push_back(c);
  };
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (const int head_dim : {64, 128, 256}) {
      const AttentionCase base = gpu_case(dtype, head_dim);
      add(base, "Causal", [](AttentionCase&) {});
      add(base, "AllKeys", [](AttentionCase& c) { c.causal = false; });
      add(base, "Window", [](AttentionCase& c) { c.window_left = 100; });
      add(base, "WideWindow", [](AttentionCase& c) { c.window_left = 1400; });
      add(base, "WindowAllKeys", [](AttentionCase& c) { c.causal = false, c.window_left = 77; });
      add(base, "SoftCap", [](AttentionCase& c) { c.logits_soft_cap = 5; });
      add(base, "WideSoftCap", [](AttentionCase& c) { c.logits_soft_cap = 1e6; });
      add(base, "NarrowSoftCap", [](AttentionCase& c) { c.logits_soft_cap = 0.01; });
      add(base, "Scale", [](AttentionCase& c) { c.sm_scale = 0.3; });
      add(base, "Mask", [](AttentionCase& c) { c.mask_density = 0.6; });
      add(base, "MaskWindow", [](AttentionCase& c) { c.mask_density = 0.6, c.window_left = 50; });
      add(base, "MaskAllKeys", [](AttentionCase& c) { c.mask_density = 0.3, c.causal = false; });
      add(base, "Sinks", [](AttentionCase& c) { c.sinks = true; });
      add(base, "FloatOut", [](AttentionCase& c) { c.out_dtype = DType::kFloat32; });
      add(base, "Hnd", [](AttentionCase& c) { c.kv_layout = KVLayout::kHND; });
      const AttentionCase many = long_query_case(dtype, head_dim);
      add(many, "LongCausal", [](AttentionCase&) {});
      add(many, "LongAllKeys", [](AttentionCase& c) { c.causal = false; });
      add(many, "LongWindow", [](AttentionCase& c) { c.window_left = 60; });
      add(many, "LongSoftCap", [](AttentionCase& c) { c.logits_soft_cap = 3; });
      add(many, "LongWideSoftCap", [](AttentionCase& c) { c.logits_soft_cap = 1e6; });
      add(many, "LongMask", [](AttentionCase& c) { c.mask_density = 0.5; });
      add(many, "LongSinks", [](AttentionCase& c) { c.sinks = true; });
      add(many, "LongFloatOut", [](AttentionCase& c) { c.out_dtype = DType::kFloat32; });
      add(many, "LongHnd", [](AttentionCase& c) { c.kv_layout = KVLayout::kHND; });
    }
    const AttentionCase base = gpu_case(dtype);
    for (const int group : {1, 2, 3, 5, 7, 16, 71, 100}) {
      add(base, "Group" + std::to_string(group), [group](AttentionCase& c) {
        c.num_qo_heads = 2 * group;
        c.rows = {{1, 1}, {1, 700}, {3, 33}, {16, 16}, {0, 20}, {7, 90}};
      });
    }
    for (const int page_size : {1, 2, 3, 5, 8, 32, 48, 64, 128}) {
      add(base, "Page" + std::to_string(page_size), [page_size](AttentionCase& c) {
        c.page_size = page_size;
        c.rows = {{1, 300}, {20, 37}, {1, 256}, {33, 33}, {1, 257}, {2, 1025}, {1, 1}, {0, 64}};
      });
      add(long_query_case(dtype), "LongPage" + std::to_string(page_size),
          [page_size](AttentionCase& c) { c.page_size = page_size; });
    }
    add(base, "OneKvHead", [](AttentionCase& c) {
      c.num_kv_heads = 1;
      c.rows = {{1, 9000}, {4, 5000}};
    });
    add(base, "VeryLong", [](AttentionCase& c) { c.rows = {{1, 70001}, {1, 3}}; });
    add(base, "OneRow", [](AttentionCase& c) { c.rows = {{1, 15}}; });
    add(base, "NothingToAttendTo", [](AttentionCase& c) {
      c.causal = false;
      c.rows = {{3, 0}, {200, 0}, {1, 1}};
    });
  }
  return list;
}

INSTANTIATE_TEST_SUITE_P(, CudaOracle, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

// Lengths around every border: pages, the kernels' steps of keys, chunks.
TEST(CudaLengths, AroundEveryBorderAgreeWithTheOracle) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5301);
  AttentionCase c = gpu_case(DType::kFloat16);
  c.rows.clear();
  for (const std::int64_t border : {1, 16, 32, 64, 128, 192, 256, 512, 1024, 2048, 4096}) {
    for (const std::int64_t kv_len : {border - 1, border, border + 1}) {
      for (const std::int64_t q_len : {1, 2}) {
        if (q_len <= kv_len) c.rows.push_back({q_len, kv_len});
      }
    }
  }
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, cuda(0), random);
  expect_reference(c, rows, attend_on_gpu(c, rows, batch).tensors);
}

// A query that sees nothing gives 0 and -inf, in tiles of every size.
TEST(CudaMask, ThatHidesEverythingGivesNothing) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5304);
  for (const double density : {0.0, 0.02}) {
    for (const bool sinks : {false, true}) {
      AttentionCase c = gpu_case(DType::kBFloat16);
      c.mask_density = density;
      c.sinks = sinks;
      c.rows = {{1, 90}, {9, 30}, {70, 70}, {200, 300}, {2, 3000}};
      const auto rows = random_rows(c, random);
      const PagedBatch batch(c, rows, cuda(0), random);
      expect_reference(c, rows, attend_on_gpu(c, rows, batch).tensors);
    }
  }
}

// The kernels' maximum of logits is one of scaled logits only where the scale is positive, and
// their -5e4 for a hidden logit hides it only where the scale is not too small.
TEST(CudaScale, ThatIsTooSmallForTheKernelsIsRefusedOrRight) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5303);
  for (const double scale : {-0.3, 1e-30}) {
    AttentionCase c = gpu_case(DType::kFloat16);
    c.sm_scale = scale;
    c.rows = {{1, 90}, {4, 30}};
    const auto rows = random_rows(c, random);
    const PagedBatch batch(c, rows, cuda(0), random);
    try {
      expect_reference(c, rows, attend_on_gpu(c, rows, batch).tensors);
    } catch (const UnsupportedError&) {
    }
  }
}

// Theirs is a hidden logit of -5e4 times the cap.
TEST(CudaSoftCap, ThatIsTooSmallForTheKernelsIsRefused) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  AttentionCase c = gpu_case(DType::kFloat16);
  c.logits_soft_cap = 9e-4;
  PagedKVCacheManager manager(c.cache_config(4, cuda(0)));
  EXPECT_THROW(BatchAttention(manager, c.options()), UnsupportedError);
}

TEST(CudaKernelName, SaysWhatThePlanUses) {
  if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  auto random = random_source(5302);
  const auto name = [&](AttentionCase c, std::vector<RowLengths> lengths) {
    c.rows = lengths;
    const auto rows = random_rows(c, random);
    return attend_on_gpu(c, rows, PagedBatch(c, rows, cuda(0), random)).kernel;
  };
  const AttentionCase c = long_query_case(DType::kBFloat16);
  EXPECT_EQ(name(long_query_case(DType::kFloat16), {{40, 90}}), "cuda-fa2-float16");
  if (!is_hopper()) {
    EXPECT_EQ(name(c, {{1, 90}, {300, 300}}), "cuda-fa2-bfloat16");
    GTEST_SKIP() << "the other kernels are for Hopper";
  }
  EXPECT_EQ(name(c, {{1, 90}}), "cuda-decode-bfloat16");
  EXPECT_EQ(name(c, {{300, 300}}), "cuda-fa3-bfloat16");
  EXPECT_EQ(name(c, {{300, 300}, {1, 90}}), "cuda-decode+fa3-bfloat16");
  EXPECT_EQ(name(c, {{300, 300}, {1, 90}, {40, 90}}), "cuda-decode+fa2+fa3-bfloat16");
  AttentionCase odd = c;
  odd.page_size = 8;  // no whole tile of the decode kernel
  EXPECT_EQ(name(odd, {{1, 90}}), "cuda-fa2-bfloat16");
}

}  // namespace
}  // namespace seqattn::testing
