#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <numeric>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"

// Large logits do not overflow, small ones do not vanish.
namespace seqattn::testing {
namespace {

std::vector<AttentionCase> extreme_cases() {
  std::vector<AttentionCase> cases;
  const auto add = [&](const char* name, auto change) {
    AttentionCase c;
    c.name = name;
    c.rows = {{20, 50}, {1, 70}, {1, 900}, {110, 110}};
    change(c);
    cases.push_back(c);
  };
  add("thousands", [](AttentionCase& c) { c.key_magnitude = 1000; });
  add("capped_1e20", [](AttentionCase& c) {
    c.key_magnitude = 1e20;
    c.logits_soft_cap = 30;
  });
  add("tiny", [](AttentionCase& c) { c.key_magnitude = 1e-30; });
  add("subnormal_float16", [](AttentionCase& c) {
    c.kv_dtype = c.q_dtype = c.out_dtype = DType::kFloat16;
    c.key_magnitude = 1e-7;
  });
  add("subnormal_float16_times_1e7", [](AttentionCase& c) {
    c.kv_dtype = DType::kFloat16;
    c.key_magnitude = 1e-7;
    c.sm_scale = 1e7;
  });
  // The ends of what the options accept.
  add("greatest_scale", [](AttentionCase& c) {
    c.key_magnitude = 1e-18;
    c.sm_scale = 1e18;
  });
  add("least_cap_of_greatest_scale", [](AttentionCase& c) {
    c.logits_soft_cap = 1e-18;
    c.sm_scale = 1e18;
  });
  add("greatest_cap", [](AttentionCase& c) { c.logits_soft_cap = 1e18; });
  return cases;
}

class ExtremeLogits : public ConformanceSuite {};
TEST_P(ExtremeLogits, AgreeWithTheOracle) { check_case(attention_case(), device(), random); }
SEQATTN_INSTANTIATE_CASES(ExtremeLogits, extreme_cases());

std::vector<AttentionCase> huge_cases() {
  struct Huge {
    DType dtype;
    double magnitude;
  };
  std::vector<AttentionCase> cases;
  for (const Huge huge : {Huge{DType::kFloat32, 1e5},
                          {DType::kFloat32, 1e34},
                          {DType::kFloat16, 500},
                          {DType::kBFloat16, 1e34}}) {
    AttentionCase c;
    c.name = std::string(to_string(huge.dtype)) + "_" + std::to_string(cases.size());
    c.rows = {{20, 50}, {1, 70}, {110, 110}, {1, 100}};
    c.kv_dtype = huge.dtype;
    c.key_magnitude = huge.magnitude;
    cases.push_back(c);
  }
  return cases;
}

// Keys are multiples 1, 2, ... of one vector, in random order, and queries lie well on one side of
// it: every query gives all its weight to one key, whose value is the output to the bit.
class HugeLogits : public ConformanceSuite {
 protected:
  ref::Row graded(ref::Row row, double unit) {
    std::vector<int> factors(static_cast<std::size_t>(row.kv_len));
    std::iota(factors.begin(), factors.end(), 1);
    std::shuffle(factors.begin(), factors.end(), random);
    const std::size_t size = row.k.size() / factors.size();
    for (std::size_t i = 0; i < row.k.size(); ++i) {
      row.k[i] = rounded(attention_case().kv_dtype, unit * factors[i / size]);
    }
    const auto dim = static_cast<std::size_t>(row.head_dim);
    for (std::size_t i = 0; i < row.q.size(); ++i) {
      row.q[i] =
          rounded(attention_case().q_dtype, std::abs(row.q[i]) * (i / dim % 3 == 0 ? -1 : 1));
    }
    return row;
  }
};

TEST_P(HugeLogits, GiveAllTheWeightToTheGreatest) {
  const AttentionCase& c = attention_case();
  auto rows = random_rows(c, random);
  std::vector<double> expected;
  for (ref::Row& row : rows) {
    row = graded(row, c.key_magnitude);
    const auto out = ref::attention(row, c.reference_options()).out;
    expected.insert(expected.end(), out.begin(), out.end());
  }
  const PagedBatch batch(c, rows, device(), random);
  const CallTensors result = attend(c, rows, batch);
  expect_reference(c, rows, result);  // the LSE
  EXPECT_EQ(result.out.read(), expected);
}
SEQATTN_INSTANTIATE_CASES(HugeLogits, huge_cases());

}  // namespace
}  // namespace seqattn::testing
