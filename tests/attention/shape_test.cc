#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "error_text.h"

// Every type, layout, page size, group size and head size.
namespace seqattn::testing {
namespace {

using ::testing::HasSubstr;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
constexpr KVLayout kLayouts[] = {KVLayout::kNHD, KVLayout::kHND};

std::string text(DType dtype) { return std::string(to_string(dtype)); }
std::string text(KVLayout layout) { return std::string(to_string(layout)); }

// Queries and outputs in the type of the cache, or in float32.
std::vector<AttentionCase> type_cases() {
  std::vector<AttentionCase> cases;
  for (const KVLayout layout : kLayouts) {
    for (const DType kv : kDTypes) {
      for (const DType q : {DType::kFloat32, kv}) {
        for (const DType out : {DType::kFloat32, kv}) {
          AttentionCase c;
          c.name = "kv_" + text(kv) + "_q_" + text(q) + "_out_" + text(out) + "_" + text(layout);
          c.kv_layout = layout;
          c.kv_dtype = kv;
          c.q_dtype = q;
          c.out_dtype = out;
          if (cases.empty() || cases.back().name != c.name) cases.push_back(c);
          if (kv == DType::kFloat32) break;  // all three are the same
        }
        if (kv == DType::kFloat32) break;
      }
    }
  }
  return cases;
}

class Types : public ConformanceSuite {};
TEST_P(Types, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
SEQATTN_INSTANTIATE_CASES(Types, type_cases());

std::vector<AttentionCase> page_size_cases() {
  std::vector<AttentionCase> cases;
  for (const KVLayout layout : kLayouts) {
    for (const int page_size : {1, 2, 3, 5, 16, 17, 64, 256}) {
      AttentionCase c;
      c.name = std::to_string(page_size) + "_" + text(layout);
      c.page_size = page_size;
      c.kv_layout = layout;
      c.kv_dtype = DType::kFloat16;
      c.num_qo_heads = 6;
      c.rows = {{1, 300}, {20, 37}, {1, 256}, {33, 33}, {1, 257}, {2, 512}, {1, 1}, {0, 64}};
      cases.push_back(c);
    }
  }
  return cases;
}

class PageSizes : public ConformanceSuite {};
TEST_P(PageSizes, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
SEQATTN_INSTANTIATE_CASES(PageSizes, page_size_cases());

// Query heads that share a KV head: from one to more than a tile of queries holds.
std::vector<AttentionCase> group_cases() {
  std::vector<AttentionCase> cases;
  for (const int group : {1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 16, 71, 100}) {
    for (const int num_kv_heads : {1, 3}) {
      AttentionCase c;
      c.name = std::to_string(group) + "_of_" + std::to_string(num_kv_heads);
      c.num_kv_heads = num_kv_heads;
      c.num_qo_heads = group * num_kv_heads;
      c.head_dim = 24;
      c.kv_dtype = group % 2 == 0 ? DType::kFloat16 : DType::kBFloat16;
      c.rows = {{1, 50}, {1, 131}, {4, 4}, {7, 23}, {2, 99}};
      cases.push_back(c);
    }
  }
  return cases;
}

class Groups : public ConformanceSuite {};
TEST_P(Groups, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
SEQATTN_INSTANTIATE_CASES(Groups, group_cases());

struct HeadDims {
  int head_dim;
  int head_dim_v;
};

std::vector<AttentionCase> head_dim_cases() {
  constexpr HeadDims kHeadDims[] = {{1, 1},     {7, 7},     {8, 8},     {16, 16},   {33, 33},
                                    {64, 64},   {72, 72},   {80, 80},   {96, 96},   {100, 100},
                                    {128, 128}, {192, 192}, {256, 256}, {512, 512}, {575, 575},
                                    {576, 576}, {192, 128}, {576, 512}, {512, 576}, {64, 1},
                                    {1, 64},    {1, 576},   {576, 1},   {33, 72}};
  std::vector<AttentionCase> cases;
  for (const HeadDims& dims : kHeadDims) {
    for (const DType dtype : kDTypes) {
      AttentionCase c;
      c.name =
          std::to_string(dims.head_dim) + "_" + std::to_string(dims.head_dim_v) + "_" + text(dtype);
      c.head_dim = dims.head_dim;
      c.head_dim_v = dims.head_dim_v;
      c.kv_dtype = dtype;
      c.q_dtype = dtype;
      c.kv_layout = dtype == DType::kFloat16 ? KVLayout::kHND : KVLayout::kNHD;
      c.rows = {{1, 100}, {9, 13}, {1, 12}, {1, 1}, {2, 197}};  // few query rows, and many
      cases.push_back(c);
    }
  }
  return cases;
}

class HeadDimensions : public ConformanceSuite {};
TEST_P(HeadDimensions, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
SEQATTN_INSTANTIATE_CASES(HeadDimensions, head_dim_cases());

// What a device's kernels cannot do is said when the object is made, with what they can.
class TooLargeHeads : public DeviceSuite {};
TEST_P(TooLargeHeads, AreRefusedWithTheLimit) {
  if (device().type != DeviceType::kCPU) GTEST_SKIP() << "pitfall_test.cc has what a GPU refuses";
  for (const HeadDims dims : {HeadDims{577, 577}, {577, 64}, {64, 577}, {4096, 4096}}) {
    AttentionCase c;
    c.head_dim = dims.head_dim;
    c.head_dim_v = dims.head_dim_v;
    PagedKVCacheManager manager(c.cache_config(2, device()));
    const std::string error =
        error_of<UnsupportedError>([&] { BatchAttention attention(manager, c.options()); });
    EXPECT_THAT(error, HasSubstr(std::to_string(dims.head_dim)));
    EXPECT_THAT(error, HasSubstr(std::to_string(dims.head_dim_v)));
    EXPECT_THAT(error, HasSubstr("576"));
  }
}
SEQATTN_INSTANTIATE_DEVICES(TooLargeHeads);

}  // namespace
}  // namespace seqattn::testing
