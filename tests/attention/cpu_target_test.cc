#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "error_text.h"
#include "every_option.h"

// Every instruction set of this build and machine computes the same thing, and one can be asked
// for by name.
namespace seqattn::testing {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

constexpr DType kDTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};

class CpuTargets : public ::testing::TestWithParam<std::string> {
 protected:
  std::mt19937_64 random = random_source(3000);
};

// The name of the path that an object made now takes.
std::string kernel_of(DType dtype) {
  AttentionCase c;
  c.kv_dtype = dtype;
  PagedKVCacheManager manager(c.cache_config(1, cpu()));
  return std::string(BatchAttention(manager, c.options()).kernel_name());
}

TEST_P(CpuTargets, AreChosenByName) {
  std::string upper = GetParam();
  std::transform(upper.begin(), upper.end(), upper.begin(),
                 [](char c) { return static_cast<char>(std::toupper(c)); });
  for (const DType dtype : kDTypes) {
    const std::string expected = "cpu-" + GetParam() + "-" + std::string(to_string(dtype));
    for (const std::string& name : {GetParam(), upper}) {
      const ForcedPath forced(name);
      EXPECT_EQ(kernel_of(dtype), expected);
    }
  }
}

TEST_P(CpuTargets, StayWithTheObjectThatChoseThem) {
  AttentionCase c;
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, cpu(), random);
  auto attention = [&] {
    const ForcedPath forced(GetParam());
    return std::make_unique<BatchAttention>(batch.manager(), c.options());
  }();
  CallTensors late(c, rows, cpu());
  attention->plan(batch.packed(), qo_indptr_of(rows));
  attention->run(late.q.view(), late.out.view());
  const ForcedPath forced(GetParam());
  EXPECT_EQ(late.out.bytes(), attend(c, rows, batch).out.bytes());
}

TEST_P(CpuTargets, AgreeWithTheOracleInEveryType) {
  const ForcedPath forced(GetParam());
  for (const DType kv : kDTypes) {
    for (const DType out : {DType::kFloat32, kv}) {
      AttentionCase c;
      c.kv_dtype = kv;
      c.q_dtype = c.out_dtype = out;
      c.rows.push_back({1, 1700});
      c.rows.push_back({40, 300});
      check_case(c, cpu(), random);
    }
  }
}

TEST_P(CpuTargets, AgreeWithTheOracleForEveryHeadDimension) {
  const ForcedPath forced(GetParam());
  for (const DType dtype : kDTypes) {
    for (const int head_dim :
         {1, 2, 3, 4, 5, 7, 8, 12, 15, 16, 17, 31, 32, 64, 72, 100, 128, 576}) {
      AttentionCase c;
      c.kv_dtype = c.out_dtype = dtype;
      c.head_dim = head_dim;
      c.rows = {{1, 60}, {9, 97}, {30, 30}};
      check_case(c, cpu(), random);
      c.head_dim = 24;
      c.head_dim_v = head_dim;
      check_case(c, cpu(), random);
      ASSERT_FALSE(HasFailure()) << to_string(dtype) << " " << head_dim;
    }
  }
}

TEST_P(CpuTargets, AgreeWithTheOracleForEveryNumberOfQueries) {
  const ForcedPath forced(GetParam());
  AttentionCase c;
  c.num_kv_heads = c.num_qo_heads = 1;
  c.kv_dtype = DType::kFloat16;
  for (int q_len = 1; q_len <= 100; ++q_len) c.rows.push_back({q_len, q_len + 30});
  check_case(c, cpu(), random);
}

// A thread takes all heads of few query rows at once, each with working memory of its own.
TEST_P(CpuTargets, AgreeWithTheOracleForManyHeadsAtOnce) {
  const ForcedPath forced(GetParam());
  for (const int num_kv_heads : {15, 16, 33}) {
    for (const int group : {1, 2, 4, 5, 8}) {
      AttentionCase c;
      c.num_kv_heads = num_kv_heads;
      c.num_qo_heads = group * num_kv_heads;
      c.head_dim = 16;
      c.kv_dtype = DType::kFloat16;
      for (int q_len = 1; q_len <= 8 / group; ++q_len) c.rows.push_back({q_len, 119 + q_len});
      const auto rows = random_rows(c, random);
      const PagedBatch batch(c, rows, cpu(), random);
      expect_reference(c, rows, attend(c, rows, batch, /*num_threads=*/1));
      ASSERT_FALSE(HasFailure()) << num_kv_heads << " heads, groups of " << group;
    }
  }
}

TEST_P(CpuTargets, AgreeWithTheOracleUnderEveryOption) {
  const ForcedPath forced(GetParam());
  for (const DType dtype : kDTypes) {
    AttentionCase c;
    c.kv_dtype = dtype;
    check_every_option(c, random);
  }
}

INSTANTIATE_TEST_SUITE_P(, CpuTargets, ::testing::ValuesIn(paths_of(cpu())),
                         [](const auto& param_info) { return param_info.param; });

TEST(CpuTarget, IsTheBestOneUnlessForced) {
  const ForcedPath forced("");
  unsetenv("SEQATTN_CPU_TARGET");
  ASSERT_FALSE(paths_of(cpu()).empty());
  EXPECT_EQ(kernel_of(DType::kFloat16), "cpu-" + paths_of(cpu()).front() + "-float16");
  setenv("SEQATTN_CPU_TARGET", "", 1);
  EXPECT_EQ(kernel_of(DType::kFloat16), "cpu-" + paths_of(cpu()).front() + "-float16");
}

TEST(CpuTarget, ThatIsUnknownIsRefusedWithTheNamesThereAre) {
  for (const char* name : {"avx9", "avx", "av x2", "cpu-avx2", " "}) {
    const ForcedPath forced(name);
    const std::string error = error_of<InvalidArgumentError>([] { kernel_of(DType::kFloat32); });
    EXPECT_THAT(error, HasSubstr("SEQATTN_CPU_TARGET is '" + std::string(name) + "'"));
    for (const std::string& path : paths_of(cpu())) EXPECT_THAT(error, HasSubstr(path));
  }
}

}  // namespace
}  // namespace seqattn::testing
