#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "every_option.h"

// Attention over caches of 8-bit elements: with the scales of heads, and with those of tokens. The
// oracle has the products of elements and scales in double.
namespace seqattn::testing {
namespace {

constexpr KVScaling kScalings[] = {KVScaling::kFixed, KVScaling::kPerToken};

AttentionCase float8_case(KVScaling scaling) {
  AttentionCase c;
  c.kv_dtype = DType::kFloat8E4M3;
  c.kv_scaling = scaling;
  c.name = to_string(scaling);
  return c;
}

class Float8 : public ::testing::TestWithParam<std::string> {
 protected:
  ForcedPath forced_{GetParam()};
  std::mt19937_64 random = random_source(3100);
};

TEST_P(Float8, AgreesWithTheOracleForEveryTypeOfQueriesAndOutputs) {
  for (const KVScaling scaling : kScalings) {
    for (const DType q : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
      for (const DType out : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
        AttentionCase c = float8_case(scaling);
        c.q_dtype = q;
        c.out_dtype = out;
        c.rows.push_back({1, 1700});
        c.rows.push_back({40, 300});
        check_case(c, cpu(), random);
      }
    }
  }
}

TEST_P(Float8, AgreesWithTheOracleForEveryHeadDimension) {
  for (const KVScaling scaling : kScalings) {
    for (const int head_dim : {1, 3, 8, 15, 16, 33, 64, 72, 128, 576}) {
      for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
        AttentionCase c = float8_case(scaling);
        c.kv_layout = layout;
        c.head_dim = head_dim;
        c.rows = {{1, 60}, {9, 97}, {30, 30}};
        check_case(c, cpu(), random, {.with_gaps = true});
        c.head_dim = 24;
        c.head_dim_v = head_dim;
        check_case(c, cpu(), random, {.unused = Unused::kMixed, .values_with_gaps = true});
        ASSERT_FALSE(HasFailure()) << to_string(scaling) << " " << head_dim;
      }
    }
  }
}

TEST_P(Float8, AgreesWithTheOracleUnderEveryOption) {
  for (const KVScaling scaling : kScalings) check_every_option(float8_case(scaling), random);
}

// Each row alone has the bits that it has in the batch, whatever the number of threads.
TEST_P(Float8, DoesNotDependOnTheBatch) {
  for (const KVScaling scaling : kScalings) {
    AttentionCase c = float8_case(scaling);
    c.rows = {{1, 2500}, {40, 40}, {3, 900}, {70, 95}};
    const auto rows = random_rows(c, random);
    const PagedBatch batch(c, rows, cpu(), random);
    const auto all = attend(c, rows, batch, 3).out.bytes();
    std::size_t begin = 0;
    for (const ref::Row& row : rows) {
      const std::vector<ref::Row> one{row};
      const PagedBatch alone(c, one, cpu(), random);
      const auto bytes = attend(c, one, alone, 1).out.bytes();
      ASSERT_LE(begin + bytes.size(), all.size());
      EXPECT_TRUE(
          std::equal(bytes.begin(), bytes.end(), all.begin() + static_cast<std::ptrdiff_t>(begin)));
      begin += bytes.size();
    }
  }
}

INSTANTIATE_TEST_SUITE_P(, Float8, ::testing::ValuesIn(paths_of(cpu())),
                         [](const auto& param_info) { return param_info.param; });

}  // namespace
}  // namespace seqattn::testing
