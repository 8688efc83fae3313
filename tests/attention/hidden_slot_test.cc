#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"

// What a query does not see cannot reach it, NaN and infinities included.
namespace seqattn::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<AttentionCase> hidden_cases() {
  std::vector<AttentionCase> cases;
  for (const DType dtype : {DType::kFloat32, DType::kFloat16, DType::kBFloat16}) {
    for (const int head_dim : {16, 33}) {
      AttentionCase c;
      c.name = std::string(to_string(dtype)) + "_" + std::to_string(head_dim);
      c.kv_dtype = dtype;
      c.head_dim = head_dim;
      c.page_size = 7;
      c.rows = {{1, 50}, {1, 1}, {30, 60}, {5, 1000}, {2, 97}, {100, 120}, {1, 1600}};
      cases.push_back(c);
    }
  }
  return cases;
}

class HiddenSlots : public ConformanceSuite {
 protected:
  // Fills the tokens of a row that `is_hidden` picks with NaN and infinities.
  template <class IsHidden>
  void poison(ref::Row& row, IsHidden is_hidden) {
    const auto fill = [&](std::vector<double>& tokens, std::int64_t token, int size) {
      for (std::int64_t i = token * size; i < (token + 1) * size; ++i) {
        tokens[static_cast<std::size_t>(i)] = std::array{kNan, kInfinity, -kInfinity}[random() % 3];
      }
    };
    for (std::int64_t token = 0; token < row.kv_len; ++token) {
      if (!is_hidden(token)) continue;
      fill(row.k, token, row.num_kv_heads * row.head_dim);
      fill(row.v, token, row.num_kv_heads * row.head_dim_v);
    }
  }
  void check(const AttentionCase& c, const std::vector<ref::Row>& rows) {
    const PagedBatch batch(c, rows, device(), random, {.unused = Unused::kMixed});
    expect_reference(c, rows, attend(c, rows, batch));
  }
};

TEST_P(HiddenSlots, OfPagesMayHoldAnything) {
  for (const Unused unused : {Unused::kNaN, Unused::kInfinity, Unused::kMixed}) {
    check_case(attention_case(), device(), random, {.unused = unused});
  }
}

TEST_P(HiddenSlots, BeforeEveryWindowMayHoldAnything) {
  AttentionCase c = attention_case();
  c.window_left = 11;
  auto rows = random_rows(c, random);
  for (ref::Row& row : rows) {
    poison(row, [&](std::int64_t token) { return token < row.kv_len - row.q_len - 11; });
  }
  check(c, rows);
}

TEST_P(HiddenSlots, ThatAMaskHidesMayHoldAnything) {
  if (const char* why = why_hidden_nan_is_seen(device())) GTEST_SKIP() << why;
  AttentionCase c = attention_case();
  c.mask_density = 0.7;
  auto rows = random_rows(c, random);
  for (ref::Row& row : rows) {
    const auto is_hidden = [](std::int64_t token) { return token % 5 == 2; };
    poison(row, is_hidden);
    for (std::size_t i = 0; i < row.mask.size(); ++i) {
      if (is_hidden(static_cast<std::int64_t>(i) % row.kv_len)) row.mask[i] = 0;
    }
  }
  check(c, rows);
}

// Some queries see the NaN and become NaN. Those before it, in the same tile, do not.
TEST_P(HiddenSlots, OfTheFutureAreNotSeenByQueriesBeforeThem) {
  if (const char* why = why_hidden_nan_is_seen(device())) GTEST_SKIP() << why;
  const AttentionCase c = attention_case();
  auto rows = random_rows(c, random);
  for (ref::Row& row : rows) {
    poison(row, [&](std::int64_t token) { return token >= row.kv_len - row.q_len / 2; });
    if (row.q_len == 1) continue;
    const auto expected = ref::attention(row, c.reference_options()).out;
    ASSERT_TRUE(std::isfinite(expected.front()));
    ASSERT_FALSE(std::isfinite(expected.back()));
  }
  check(c, rows);
}

// With a window, a NaN leaves the sight of the queries after it, in the same tile.
TEST_P(HiddenSlots, ThatAWindowHasPassedAreForgotten) {
  if (const char* why = why_hidden_nan_is_seen(device())) GTEST_SKIP() << why;
  AttentionCase c = attention_case();
  c.window_left = 3;
  auto rows = random_rows(c, random);
  for (ref::Row& row : rows) {
    if (row.q_len < 6) continue;
    poison(row, [&](std::int64_t token) { return token == row.kv_len - row.q_len + 1; });
    const auto expected = ref::attention(row, c.reference_options()).out;
    ASSERT_TRUE(std::isfinite(expected.front()) && std::isfinite(expected.back()));
  }
  check(c, rows);
}

// Nor may it be lost: who merges the result with another has to see it in the LSE.
TEST_P(HiddenSlots, ThatAreNotHiddenReachOutAndLse) {
  AttentionCase c = attention_case();
  for (const int page_size : {7, 16}) {  // by other kernels, perhaps
    c.page_size = page_size;
    check_nan_is_passed_on(c, device(), random);
  }
}

SEQATTN_INSTANTIATE_CASES(HiddenSlots, hidden_cases());
}  // namespace
}  // namespace seqattn::testing
