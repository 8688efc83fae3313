#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <utility>
#include <vector>

#include "bfloat16_units.h"
#include "conformance.h"
#include "conformance_suite.h"
#include "cpu_attention.h"
#include "every_option.h"

// When the dot products of bfloat16 are used, which one ran, and what it rounds. The attention
// suite in this program runs over them, too.
namespace seqattn::testing {
namespace {

using ::testing::EndsWith;
using ::testing::Not;

AttentionCase bfloat16_case() { return device_case({}, cpu()); }

std::string kernel_of(const AttentionCase& c) {
  PagedKVCacheManager manager(c.cache_config(1, cpu()));
  return std::string(BatchAttention(manager, c.options()).kernel_name());
}

class Units : public ::testing::TestWithParam<std::string> {
 protected:
  const ForcedPath forced{GetParam()};
  std::mt19937_64 random = random_source(3100);
};

TEST_P(Units, AreInTheNameOfTheKernel) {
  EXPECT_EQ(kernel_of(bfloat16_case()),
            "cpu-" + cpu_attention_targets().front() + "-bfloat16-" + GetParam());
}

TEST_P(Units, AgreeWithTheOracleForEveryNumberOfQueries) {
  AttentionCase c = bfloat16_case();
  c.num_kv_heads = c.num_qo_heads = 1;
  c.rows.clear();
  for (int q_len = 1; q_len <= 100; ++q_len) c.rows.push_back({q_len, q_len + 30});
  check_case(c, cpu(), random);
}

TEST_P(Units, AgreeWithTheOracleForEveryHeadDimension) {
  for (int head_dim = 32; head_dim <= 576; head_dim += 32) {
    AttentionCase c = bfloat16_case();
    c.head_dim = head_dim;
    c.head_dim_v = 608 - head_dim;
    c.rows = {{1, 60}, {9, 97}, {30, 30}};
    if (c.head_dim_v > 576) c.head_dim_v = 0;
    check_case(c, cpu(), random);
    ASSERT_FALSE(HasFailure()) << head_dim;
  }
}

TEST_P(Units, AgreeWithTheOracleUnderEveryOption) { check_every_option(bfloat16_case(), random); }

// Scores of bfloat16 queries are as good as on the exact path; only weights are rounded.
TEST_P(Units, LeaveTheLseAlone) {
  AttentionCase c = bfloat16_case();
  c.rows = {{1, 1700}, {40, 300}, {3, 12}};
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, cpu(), random);
  const std::vector<double> lse = attend(c, rows, batch).lse.read();
  std::size_t first = 0;
  for (const ref::Row& row : rows) {
    const auto expected = ref::attention(row, c.reference_options()).lse;
    for (std::size_t i = 0; i < expected.size(); ++i) {
      EXPECT_NEAR(lse[first + i], expected[i], lse_tolerance(c, row).at(expected[i]));
    }
    first += expected.size();
  }
}

TEST_P(Units, RoundQueriesThatComeAsFloats) {
  AttentionCase c = bfloat16_case();
  c.rows = {{1, 900}, {40, 60}, {7, 7}};
  const auto rows = random_rows(c, random);
  const PagedBatch batch(c, rows, cpu(), random);
  const CallTensors expected = attend(c, rows, batch);
  auto near = rows;
  std::uniform_real_distribution<double> within(-0.49, 0.49);
  for (ref::Row& row : near) {
    for (double& x : row.q) {
      const double half_step = std::ldexp(1.0, std::ilogb(x == 0 ? 1 : x) - 8);
      x = rounded(DType::kFloat32, x + within(random) * half_step);
    }
  }
  c.q_dtype = DType::kFloat32;
  EXPECT_EQ(attend(c, near, batch).out.bytes(), expected.out.bytes());
}

TEST_P(Units, LetInfinitiesAndNanReachThoseWhoSeeThem) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  AttentionCase c = bfloat16_case();
  c.rows = {{1, 50}, {30, 60}, {4, 100}};
  auto rows = random_rows(c, random);
  for (ref::Row& row : rows) {
    const auto at = [&](std::int64_t token, int d) -> double& {
      return row.v[static_cast<std::size_t>(token * row.num_kv_heads * row.head_dim_v + d)];
    };
    at(row.kv_len - 2, 0) = kInfinity;
    at(row.kv_len - 1, 1) = -kInfinity;
    at(0, 5) = std::nan("");
  }
  const PagedBatch batch(c, rows, cpu(), random);
  const CallTensors result = attend(c, rows, batch);
  expect_reference(c, rows, result);
  EXPECT_TRUE(std::isnan(result.out.read()[5]));
}

INSTANTIATE_TEST_SUITE_P(, Units, ::testing::ValuesIn(paths_of(cpu())),
                         [](const auto& param_info) { return param_info.param; });

// Whatever a unit does not serve is what it would be without having been asked for.
class ExactPath : public ::testing::Test {
 protected:
  void expect_exact(AttentionCase c) {
    EXPECT_THAT(kernel_of(c), Not(EndsWith("emulated")));
    EXPECT_THAT(kernel_of(c), EndsWith(std::string(to_string(c.kv_dtype))));
    c.rows = {{1, 60}, {20, 40}};
    const auto rows = random_rows(c, random);
    const PagedBatch batch(c, rows, cpu(), random);
    const CallTensors result = attend(c, rows, batch);
    c.bfloat16_products = false;
    EXPECT_EQ(result.out.bytes(), attend(c, rows, batch).out.bytes());
  }
  std::mt19937_64 random = random_source(3101);
};

TEST_F(ExactPath, IsWhatRunsUnlessAskedOtherwise) {
  AttentionCase c = bfloat16_case();
  c.bfloat16_products = false;
  expect_exact(c);
}

TEST_F(ExactPath, ServesOtherTypes) {
  for (const DType dtype : {DType::kFloat32, DType::kFloat16}) {
    AttentionCase c = bfloat16_case();
    c.kv_dtype = c.q_dtype = dtype;
    expect_exact(c);
  }
}

TEST_F(ExactPath, ServesHeadDimensionsThatAreNoWholeBlocks) {
  AttentionCase c = bfloat16_case();
  c.head_dim = 48;
  c.head_dim_v = 32;
  expect_exact(c);
  std::swap(c.head_dim, c.head_dim_v);
  expect_exact(c);
}

TEST_F(ExactPath, IsForcedByName) {
  for (const std::string& target : cpu_attention_targets()) {
    setenv("SEQATTN_CPU_TARGET", target.c_str(), 1);
    expect_exact(bfloat16_case());
    EXPECT_EQ(kernel_of(bfloat16_case()), "cpu-" + target + "-bfloat16");
  }
  unsetenv("SEQATTN_CPU_TARGET");
}

TEST(CpuUnit, IsUsedWhereTheCpuHasIt) {
  set_bfloat16_unit_for_test(nullptr);
  const BFloat16Unit* const own = bfloat16_unit();
  const std::string kernel = kernel_of(bfloat16_case());
  use_default_bfloat16_unit();
#ifdef __x86_64__
  EXPECT_EQ(own != nullptr, __builtin_cpu_supports("avx512bf16") != 0);
#endif
  EXPECT_THAT(kernel, EndsWith(own == nullptr ? "-bfloat16" : "-bfloat16-avx512_bf16"));
}

}  // namespace
}  // namespace seqattn::testing
