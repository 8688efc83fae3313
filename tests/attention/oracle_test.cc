#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <limits>
#include <random>
#include <vector>

#include "random_source.h"
#include "reference_attention.h"

// The oracle's own witnesses: values worked out by hand, and the softmax written down again in
// another way.
namespace seqattn {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Pointwise;

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kRounding = 1e-14;

// One head of one element: with q = 1 and sm_scale = 1 the logits are the keys.
ref::Row line(std::vector<double> keys, std::vector<double> values, std::int64_t q_len = 1) {
  const auto kv_len = static_cast<std::int64_t>(keys.size());
  return {.num_qo_heads = 1,
          .num_kv_heads = 1,
          .head_dim = 1,
          .head_dim_v = 1,
          .q_len = q_len,
          .kv_len = kv_len,
          .q = std::vector<double>(static_cast<std::size_t>(q_len), 1.0),
          .k = std::move(keys),
          .v = std::move(values),
          .mask = {},
          .sink_logits = {}};
}

auto near(const std::vector<double>& values) { return Pointwise(DoubleNear(kRounding), values); }

TEST(Oracle, WeighsValuesByTheExponentialsOfLogits) {
  // exp(ln 3) : exp(0) = 3 : 1.
  const auto result = ref::attention(line({std::log(3.0), 0}, {8, 4}), {});
  EXPECT_THAT(result.out, near({7}));
  EXPECT_THAT(result.lse, near({std::log(4.0)}));
}

TEST(Oracle, ScalesBeforeItCaps) {
  // 2 * 3 = 6, capped at 4: 4 tanh(1.5).
  const auto result = ref::attention(
      line({3}, {5}), {.causal = true, .window_left = -1, .sm_scale = 2, .logits_soft_cap = 4});
  EXPECT_THAT(result.out, near({5}));
  EXPECT_THAT(result.lse, near({3.6205930145794656}));
}

TEST(Oracle, ACausalQuerySeesKeysUpToItsOwnPosition) {
  const auto result = ref::attention(line({0, 0, 0}, {1, 3, 8}, 2), {});
  EXPECT_THAT(result.out, near({2, 4}));
  EXPECT_THAT(result.lse, near({std::log(2.0), std::log(3.0)}));
}

TEST(Oracle, WithoutCausalityEveryQuerySeesEveryKey) {
  const auto result = ref::attention(line({0, 0, 0}, {1, 3, 8}, 2), {.causal = false});
  EXPECT_THAT(result.out, near({4, 4}));
}

TEST(Oracle, AWindowKeepsTheKeysJustBeforeAPosition) {
  const auto row = line({0, 0, 0, 0}, {1, 3, 8, 10}, 2);
  EXPECT_THAT(ref::attention(row, {.causal = true, .window_left = 1}).out, near({5.5, 9}));
  EXPECT_THAT(ref::attention(row, {.causal = true, .window_left = 0}).out, near({8, 10}));
  EXPECT_THAT(ref::attention(row, {.causal = false, .window_left = 1}).out, near({7, 9}));
}

TEST(Oracle, AMaskHidesKeysAndTheirNaN) {
  ref::Row row = line({0, kNan, 0}, {2, kNan, 6});
  row.mask = {1, 0, 1};
  const auto result = ref::attention(row, {});
  EXPECT_THAT(result.out, near({4}));
  EXPECT_THAT(result.lse, near({std::log(2.0)}));
}

TEST(Oracle, WithoutAVisibleKeyTheOutputIsZeroAndTheLseMinusInfinity) {
  ref::Row row = line({1, 2}, {3, 4});
  row.mask = {0, 0};
  EXPECT_THAT(ref::attention(row, {}).out, ElementsAre(0.0));
  EXPECT_THAT(ref::attention(row, {}).lse, ElementsAre(-kInfinity));
  EXPECT_THAT(ref::attention(line({}, {}), {}).out, ElementsAre(0.0));
  EXPECT_THAT(ref::attention(line({}, {}), {}).lse, ElementsAre(-kInfinity));
}

TEST(Oracle, AKeyOfNaNMakesNaNOfOutAndLse) {
  for (const ref::Row& row : {line({kNan}, {3}), line({kNan, 1}, {3, 4})}) {
    EXPECT_TRUE(std::isnan(ref::attention(row, {}).out[0]));
    EXPECT_TRUE(std::isnan(ref::attention(row, {}).lse[0]));
  }
}

TEST(Oracle, ASinkTakesWeightAndGivesNoValue) {
  ref::Row row = line({0, 0}, {3, 5});
  row.sink_logits = {std::log(2.0)};
  EXPECT_THAT(ref::attention(row, {}).out, near({2}));
  EXPECT_THAT(ref::attention(row, {}).lse, near({std::log(4.0)}));
  row.mask = {0, 0};
  EXPECT_THAT(ref::attention(row, {}).out, ElementsAre(0.0));
  EXPECT_THAT(ref::attention(row, {}).lse, near({std::log(2.0)}));
  row.sink_logits = {-kInfinity};
  EXPECT_THAT(ref::attention(row, {}).lse, ElementsAre(-kInfinity));
}

TEST(Oracle, QueryHeadsReadTheirGroupsKeyValueHead) {
  // Four query heads over two KV heads of one key: each gives its KV head's value.
  const ref::Row row{.num_qo_heads = 4,
                     .num_kv_heads = 2,
                     .head_dim = 1,
                     .head_dim_v = 2,
                     .q_len = 1,
                     .kv_len = 1,
                     .q = {1, 2, 3, 4},
                     .k = {10, 20},
                     .v = {1, 2, 3, 4},
                     .mask = {},
                     .sink_logits = {}};
  const auto result = ref::attention(row, {.causal = true, .window_left = -1, .sm_scale = 0.5});
  EXPECT_THAT(result.out, near({1, 2, 1, 2, 3, 4, 3, 4}));
  EXPECT_THAT(result.lse, near({5, 10, 30, 40}));
}

TEST(Oracle, HugeLogitsDoNotOverflow) {
  const auto result = ref::attention(line({1e6, 1e6, -1e6}, {2, 4, 100}), {});
  EXPECT_THAT(result.out, near({3}));
  EXPECT_DOUBLE_EQ(result.lse[0], 1e6 + std::log(2.0));
}

// d lse / d logit_t is the weight of key t: the derivative of the LSE along the values must be the
// output. This uses the logits alone, never the oracle's weights.
TEST(Oracle, TheOutputIsTheDerivativeOfTheLse) {
  auto random = testing::random_source(1);
  std::normal_distribution<double> normal;
  std::vector<double> keys(13), values(13);
  for (double& key : keys) key = normal(random);
  for (double& value : values) value = normal(random);
  constexpr double kStep = 1e-5;
  const auto lse_along = [&](double step) {
    std::vector<double> moved = keys;
    for (std::size_t t = 0; t < keys.size(); ++t) moved[t] += step * values[t];
    return ref::attention(line(moved, values), {}).lse[0];
  };
  const double derivative = (lse_along(kStep) - lse_along(-kStep)) / (2 * kStep);
  EXPECT_NEAR(ref::attention(line(keys, values), {}).out[0], derivative, 1e-8);
}

// Softmax by its definition, in long double and without subtracting a maximum.
TEST(Oracle, AgreesWithTheDefinitionWordForWord) {
  auto random = testing::random_source(2);
  std::normal_distribution<double> normal;
  const std::int64_t q_len = 3, kv_len = 7;
  const int heads = 2, dim = 5, dim_v = 4;
  ref::Row row{heads, heads, dim, dim_v, q_len, kv_len, {}, {}, {}, {}, {}};
  row.q.resize(static_cast<std::size_t>(q_len * heads * dim));
  row.k.resize(static_cast<std::size_t>(kv_len * heads * dim));
  row.v.resize(static_cast<std::size_t>(kv_len * heads * dim_v));
  for (auto* list : {&row.q, &row.k, &row.v}) {
    for (double& x : *list) x = normal(random);
  }
  const auto result = ref::attention(row, {.causal = true, .window_left = 3, .sm_scale = 0.3});
  for (std::int64_t j = 0; j < q_len; ++j) {
    for (int h = 0; h < heads; ++h) {
      for (int d = 0; d < dim_v; ++d) {
        long double above = 0, below = 0;
        for (std::int64_t t = j + 1; t <= j + 4; ++t) {  // position j + 4, three keys before it
          long double dot = 0;
          for (int i = 0; i < dim; ++i) {
            dot += static_cast<long double>(
                       row.q[static_cast<std::size_t>((j * heads + h) * dim + i)]) *
                   row.k[static_cast<std::size_t>((t * heads + h) * dim + i)];
          }
          const long double weight = std::exp(0.3L * dot);
          above += weight * row.v[static_cast<std::size_t>((t * heads + h) * dim_v + d)];
          below += weight;
        }
        const auto at = static_cast<std::size_t>((j * heads + h) * dim_v + d);
        EXPECT_NEAR(result.out[at], static_cast<double>(above / below), 1e-14);
        EXPECT_NEAR(result.lse[at / dim_v], static_cast<double>(std::log(below)), 1e-14);
      }
    }
  }
}

}  // namespace
}  // namespace seqattn
