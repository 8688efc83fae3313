#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "seqattn/error.h"

// Two disjoint sets of keys, merged into their union.
namespace seqattn::testing {
namespace {

using ::testing::HasSubstr;

constexpr std::int64_t kTokens = 5, kHeads = 3, kDim = 300;  // more than one piece of a row
constexpr double kInfinity = std::numeric_limits<double>::infinity();

struct Sides {
  Tensor out_a, lse_a, out_b, lse_b;

  Sides(Device device, std::array<DType, 2> types, std::mt19937_64& random,
        const Layout& layout = {})
      : out_a(device, types[0], {kTokens, kHeads, kDim}, layout),
        lse_a(device, DType::kFloat32, {kTokens, kHeads}),
        out_b(device, types[1], {kTokens, kHeads, kDim}, layout),
        lse_b(device, DType::kFloat32, {kTokens, kHeads}) {
    for (Tensor* tensor : {&out_a, &lse_a, &out_b, &lse_b}) fill_with_normals(*tensor, random);
  }
};

struct Union {
  std::vector<double> out, lse;
};

// The formula of docs/formulas.md in double precision, from what the tensors hold.
Union expected_union(const Sides& sides) {
  const auto out_a = sides.out_a.read(), lse_a = sides.lse_a.read();
  const auto out_b = sides.out_b.read(), lse_b = sides.lse_b.read();
  Union result{std::vector<double>(out_a.size()), lse_a};
  for (std::size_t i = 0; i < lse_a.size(); ++i) {
    const double max = std::max(lse_a[i], lse_b[i]);
    const double shift = max == -kInfinity ? 0 : max;
    const double a = std::exp(lse_a[i] - shift), b = std::exp(lse_b[i] - shift);
    result.lse[i] = a + b == 0 ? -kInfinity : shift + std::log(a + b);
    for (std::size_t d = i * kDim; d < (i + 1) * kDim; ++d) {
      result.out[d] = (a == 0 ? 0 : a / (a + b) * out_a[d]) + (b == 0 ? 0 : b / (a + b) * out_b[d]);
    }
  }
  return result;
}

void expect_union(const Union& expected, const Tensor& out, const Tensor* lse) {
  const double relative = epsilon(out.view().dtype) + 8 * epsilon(DType::kFloat32);
  const auto got = out.read();
  for (std::size_t i = 0; i < got.size(); ++i) {
    ASSERT_NEAR(got[i], expected.out[i], relative * 8) << "out element " << i;
  }
  if (lse == nullptr) return;
  const auto got_lse = lse->read();
  for (std::size_t i = 0; i < got_lse.size(); ++i) {
    if (got_lse[i] == expected.lse[i]) continue;  // -inf, too
    ASSERT_NEAR(got_lse[i], expected.lse[i], 0x1p-20) << "lse element " << i;
  }
}

class MergeStates : public DeviceSuite {};

TEST_P(MergeStates, GivesTheUnionInEveryMixtureOfTypes) {
  constexpr std::array kTypes{DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  for (const DType a : kTypes) {
    for (const DType b : kTypes) {
      for (const DType to : kTypes) {
        const Sides sides(device(), {a, b}, random);
        const Tensor out(device(), to, {kTokens, kHeads, kDim});
        const Tensor lse(device(), DType::kFloat32, {kTokens, kHeads});
        merge_states(sides.out_a.read_only_view(), sides.lse_a.read_only_view(),
                     sides.out_b.read_only_view(), sides.lse_b.read_only_view(), out.view(),
                     lse.view());
        expect_union(expected_union(sides), out, &lse);
      }
    }
  }
}

TEST_P(MergeStates, WritesStridedOutputsAndNeedsNoLse) {
  const Sides sides(device(), {DType::kFloat16, DType::kFloat16}, random, with_gaps(kHeads, kDim));
  const Tensor out(device(), DType::kFloat16, {kTokens, kHeads, kDim}, heads_first(kTokens, kDim));
  merge_states(sides.out_a.view(), sides.lse_a.view(), sides.out_b.view(), sides.lse_b.view(),
               out.view());
  expect_union(expected_union(sides), out, nullptr);
  EXPECT_TRUE(out.gaps_are_untouched());
}

// A side that saw no key has weight 0, and its output may be anything.
TEST_P(MergeStates, NeverReadsASideWithoutKeys) {
  Sides sides(device(), {DType::kFloat32, DType::kFloat32}, random);
  auto lse_a = sides.lse_a.read(), lse_b = sides.lse_b.read();
  auto out_a = sides.out_a.read();
  lse_a[0] = lse_a[1] = lse_b[1] = -kInfinity;  // one side, then both
  std::fill_n(out_a.begin(), 2 * kDim, std::numeric_limits<double>::quiet_NaN());
  sides.lse_a.write(lse_a);
  sides.lse_b.write(lse_b);
  sides.out_a.write(out_a);
  const Tensor out(device(), DType::kFloat32, {kTokens, kHeads, kDim});
  const Tensor lse(device(), DType::kFloat32, {kTokens, kHeads});
  const Union expected = expected_union(sides);
  merge_states(sides.out_a.view(), sides.lse_a.view(), sides.out_b.view(), sides.lse_b.view(),
               out.view(), lse.view());
  expect_union(expected, out, &lse);
  EXPECT_EQ(lse.read()[1], -kInfinity);
}

// Of either side, whatever the other has seen.
TEST_P(MergeStates, PassesNanOn) {
  for (const double other : {-kInfinity, 0.5}) {
    for (const bool is_a : {true, false}) {
      Sides sides(device(), {DType::kFloat32, DType::kFloat32}, random);
      const std::vector<double> nan(kTokens * kHeads, std::nan("")), others(nan.size(), other);
      sides.lse_a.write(is_a ? nan : others);
      sides.lse_b.write(is_a ? others : nan);
      Tensor out(device(), DType::kFloat32, {kTokens, kHeads, kDim});
      Tensor lse(device(), DType::kFloat32, {kTokens, kHeads});
      for (Tensor* tensor : {&out, &lse}) fill_with_normals(*tensor, random);
      merge_states(sides.out_a.view(), sides.lse_a.view(), sides.out_b.view(), sides.lse_b.view(),
                   out.view(), lse.view());
      for (const Tensor* tensor : {&out, &lse}) {
        for (const double x : tensor->read()) ASSERT_TRUE(std::isnan(x)) << x;
      }
    }
  }
}

TEST_P(MergeStates, WorksInPlaceOfEitherSide) {
  for (const bool into_a : {true, false}) {
    const Sides sides(device(), {DType::kBFloat16, DType::kBFloat16}, random);
    const Union expected = expected_union(sides);
    const Tensor& out = into_a ? sides.out_a : sides.out_b;
    const Tensor& lse = into_a ? sides.lse_b : sides.lse_a;
    merge_states(sides.out_a.view(), sides.lse_a.view(), sides.out_b.view(), sides.lse_b.view(),
                 out.view(), lse.view());
    expect_union(expected, out, &lse);
  }
}

// Cascade: attention over each half of the keys, merged, is attention over all of them.
TEST_P(MergeStates, OfTwoHalvesOfTheKeysIsAttentionOverAll) {
  AttentionCase c = device_case({}, device());
  c.causal = false;
  c.rows = {{7, 40}};
  const ref::Row whole = random_row(c, c.rows[0], random);
  std::array<ref::Row, 2> halves{whole, whole};
  const auto cut = [](std::vector<double>& tokens, std::size_t per_token, bool first) {
    const auto middle = tokens.begin() + static_cast<std::ptrdiff_t>(25 * per_token);
    first ? tokens.erase(middle, tokens.end()) : tokens.erase(tokens.begin(), middle);
  };
  const auto per_token = static_cast<std::size_t>(c.num_kv_heads * c.head_dim);
  for (const bool first : {true, false}) {
    ref::Row& half = halves[first ? 0 : 1];
    half.kv_len = first ? 25 : 15;
    cut(half.k, per_token, first);
    cut(half.v, per_token, first);
  }
  std::vector<CallTensors> parts;
  for (const ref::Row& half : halves) {
    const PagedBatch batch(c, {half}, device(), random);
    parts.push_back(attend(c, {half}, batch));
  }
  CallTensors merged(c, {whole}, device());
  merge_states(parts[0].out.view(), parts[0].lse.view(), parts[1].out.view(), parts[1].lse.view(),
               merged.out.view(), merged.lse.view());
  expect_reference(c, {whole}, merged);
}

TEST_P(MergeStates, RefusesTensorsThatDoNotAgree) {
  const Sides sides(device(), {DType::kFloat32, DType::kFloat32}, random);
  const Tensor out(device(), DType::kFloat32, {kTokens, kHeads, kDim});
  const Tensor lse(device(), DType::kFloat32, {kTokens, kHeads});
  const TensorView a = sides.out_a.view(), a_lse = sides.lse_a.view();
  const TensorView b = sides.out_b.view(), b_lse = sides.lse_b.view();
  const auto refusal = [&](const TensorView& out_a, const TensorView& lse_a,
                           const TensorView& out_b, const TensorView& to,
                           const TensorView& to_lse) -> std::string {
    try {
      merge_states(out_a, lse_a, out_b, b_lse, to, to_lse);
    } catch (const InvalidArgumentError& error) {
      return error.what();
    }
    return "no error";
  };
  TensorView shorter = b;
  shorter.shape[2] -= 1;
  EXPECT_THAT(refusal(a, a_lse, shorter, out.view(), lse.view()), HasSubstr("out_b: got"));
  EXPECT_THAT(refusal(a_lse, a_lse, b, out.view(), lse.view()),
              HasSubstr("expected [tokens, heads, dim]"));
  EXPECT_THAT(refusal(a, {}, b, out.view(), lse.view()), HasSubstr("lse_a: got no tensor"));
  EXPECT_THAT(refusal(a, a_lse, b, out.read_only_view(), {}), HasSubstr("out: got"));
  EXPECT_THAT(refusal(a, a_lse, b, {}, {}), HasSubstr("out: got no tensor"));

  // Neither in place nor apart: one row on.
  const Tensor long_out(device(), DType::kFloat32, {kTokens + 1, kHeads, kDim});
  TensorView first = long_out.view(), second = long_out.view();
  first.shape[0] = second.shape[0] = kTokens;
  second.data = static_cast<float*>(second.data) + kHeads * kDim;
  EXPECT_THAT(refusal(first, a_lse, b, second, {}), HasSubstr("shares memory with out_a"));
  TensorView lse_in_out = lse.view();
  lse_in_out.data = out.view().data;
  EXPECT_THAT(refusal(a, a_lse, b, out.view(), lse_in_out), HasSubstr("shares memory with out"));
  for (const double x : out.read()) ASSERT_TRUE(std::isnan(x)) << "written by a refused call";
}

SEQATTN_INSTANTIATE_DEVICES(MergeStates);

}  // namespace
}  // namespace seqattn::testing
