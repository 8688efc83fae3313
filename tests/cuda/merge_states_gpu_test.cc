// merge_states on a GPU, beside the formula in double precision.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "attention_case.h"
#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/batch_attention.h"
#include "tensor.h"

namespace seqattn::testing {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kTokens = 37, kHeads = 5, kDim = 72;

struct Side {
  std::vector<double> out, lse;
};

class CudaMergeStates : public GpuTest {
 protected:
  Side random_side(DType dtype) {
    std::normal_distribution<double> normal;
    Side side;
    for (std::int64_t i = 0; i < kTokens * kHeads * kDim; ++i) {
      side.out.push_back(rounded(dtype, normal(random)));
    }
    for (std::int64_t i = 0; i < kTokens * kHeads; ++i) {
      side.lse.push_back(rounded(DType::kFloat32, 20 * normal(random)));
    }
    return side;
  }
  static Side merged(const Side& a, const Side& b) {
    Side result = a;
    for (std::size_t i = 0; i < a.lse.size(); ++i) {
      const double max = std::max(a.lse[i], b.lse[i]);
      const double wa = max == -kInfinity ? 0 : std::exp(a.lse[i] - max);
      const double wb = max == -kInfinity ? 0 : std::exp(b.lse[i] - max);
      result.lse[i] = max == -kInfinity ? max : max + std::log(wa + wb);
      for (std::size_t d = i * kDim; d < (i + 1) * kDim; ++d) {
        // A side of no weight counts nothing, NaN included.
        const double from_a = wa == 0 ? 0 : wa * a.out[d], from_b = wb == 0 ? 0 : wb * b.out[d];
        result.out[d] = wa + wb == 0 ? 0 : (from_a + from_b) / (wa + wb);
      }
    }
    return result;
  }
  static void expect_near(const Tensor& out, const Tensor& lse, const Side& want) {
    const auto got = out.read(), got_lse = lse.read();
    const double eps = epsilon(out.view().dtype);
    for (std::size_t i = 0; i < got.size(); ++i) {
      ASSERT_NEAR(got[i], want.out[i], eps * std::abs(want.out[i]) + 1e-5) << "out " << i;
    }
    for (std::size_t i = 0; i < got_lse.size(); ++i) {
      if (got_lse[i] == want.lse[i]) continue;
      ASSERT_NEAR(got_lse[i], want.lse[i], 1e-5 * (1 + std::abs(want.lse[i]))) << "lse " << i;
    }
    EXPECT_TRUE(out.gaps_are_untouched() && lse.gaps_are_untouched());
  }
  static Tensor make(DType dtype, const Layout& layout, const std::vector<double>& values) {
    Tensor tensor(cuda(0), dtype, {kTokens, kHeads, kDim}, layout);
    if (!values.empty()) tensor.write(values);
    return tensor;
  }
  static Tensor make_lse(bool gaps, const std::vector<double>& values) {
    Tensor tensor(cuda(0), DType::kFloat32, {kTokens, kHeads},
                  gaps ? Layout{{kHeads + 2, 1}, 1} : Layout{});
    if (!values.empty()) tensor.write(values);
    return tensor;
  }
  std::mt19937_64 random = random_source(6000);
};

TEST_F(CudaMergeStates, AgreesWithTheFormulaInEveryTypeAndLayout) {
  constexpr DType kTypes[] = {DType::kFloat32, DType::kFloat16, DType::kBFloat16};
  for (const DType a_type : kTypes) {
    for (const DType b_type : kTypes) {
      for (const DType out_type : kTypes) {
        Side a = random_side(a_type), b = random_side(b_type);
        // Sides that saw nothing, whose outputs may be anything.
        for (std::size_t i = 0; i < a.lse.size(); ++i) {
          if (i % 7 == 0) a.lse[i] = -kInfinity;
          if (i % 5 == 0) b.lse[i] = -kInfinity;
        }
        for (std::size_t d = 0; d < kDim; ++d) a.out[d] = kInfinity;
        const bool gaps = a_type == b_type;
        const Layout layout = gaps ? with_gaps(kHeads, kDim) : Layout{};
        const Tensor out_a = make(a_type, layout, a.out), out_b = make(b_type, {}, b.out);
        const Tensor lse_a = make_lse(gaps, a.lse), lse_b = make_lse(false, b.lse);
        const Tensor out = make(out_type, heads_first(kTokens, kDim), {});
        const Tensor lse = make_lse(gaps, {});
        merge_states(out_a.view(), lse_a.view(), out_b.view(), lse_b.view(), out.view(),
                     lse.view());
        expect_near(out, lse, merged(a, b));
      }
    }
  }
}

TEST_F(CudaMergeStates, WorksInPlaceAndWithoutAnLse) {
  const Side a = random_side(DType::kFloat16), b = random_side(DType::kFloat16);
  const Side want = merged(a, b);
  for (const bool over_a : {true, false}) {
    const Tensor out_a = make(DType::kFloat16, {}, a.out), out_b = make(DType::kFloat16, {}, b.out);
    const Tensor lse_a = make_lse(false, a.lse), lse_b = make_lse(false, b.lse);
    const Tensor& out = over_a ? out_a : out_b;
    const Tensor& lse = over_a ? lse_a : lse_b;
    merge_states(out_a.view(), lse_a.view(), out_b.view(), lse_b.view(), out.view(), lse.view());
    expect_near(out, lse, want);
  }
  const Tensor out = make(DType::kFloat32, {}, {});
  const Tensor lse_a = make_lse(false, a.lse), lse_b = make_lse(false, b.lse);
  merge_states(make(DType::kFloat16, {}, a.out).view(), lse_a.view(),
               make(DType::kFloat16, {}, b.out).view(), lse_b.view(), out.view());
  expect_near(out, make_lse(false, want.lse), want);
}

}  // namespace
}  // namespace seqattn::testing
