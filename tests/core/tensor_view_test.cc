#include "seqattn/tensor_view.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <limits>

#include "error_text.h"

namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::testing::HasSubstr;

constexpr std::int64_t kHuge = std::int64_t{1} << 40;

TEST(TensorView, ByDefaultIsNoTensor) {
  const TensorView none;
  EXPECT_FALSE(none);
  EXPECT_EQ(none.to_string(), "no tensor");
}

TEST(TensorView, ContiguousIsRowMajor) {
  std::array<float, 24> data{};
  const auto view = TensorView::contiguous(data.data(), DType::kFloat32, {2, 3, 4});
  EXPECT_TRUE(view);
  EXPECT_EQ(view.data, data.data());
  EXPECT_EQ(view.dtype, DType::kFloat32);
  EXPECT_EQ(view.device, cpu());
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.shape, (std::array<std::int64_t, 5>{2, 3, 4}));
  EXPECT_EQ(view.strides, (std::array<std::int64_t, 5>{12, 4, 1}));
  EXPECT_EQ(view.num_elements(), 24);
  EXPECT_TRUE(view.is_contiguous());
  EXPECT_FALSE(view.read_only);
}

TEST(TensorView, OverConstMemoryIsReadOnly) {
  const std::array<float, 2> data{};
  EXPECT_TRUE(TensorView::contiguous(data.data(), DType::kFloat32, {2}).read_only);
}

TEST(TensorView, KnowsWhetherItIsContiguous) {
  auto view = TensorView::contiguous(static_cast<void*>(nullptr), DType::kFloat16, {2, 1, 4});
  view.strides[1] = 999;  // of a dimension of size 1: does not matter
  EXPECT_TRUE(view.is_contiguous());
  view.strides[0] = 5;
  EXPECT_FALSE(view.is_contiguous());
  view.strides = {4, 4, 2};
  EXPECT_FALSE(view.is_contiguous());
}

TEST(TensorView, MayHaveNoElements) {
  const auto view = TensorView::contiguous(static_cast<void*>(nullptr), DType::kFloat32, {3, 0, 2});
  EXPECT_TRUE(view);
  EXPECT_EQ(view.num_elements(), 0);
}

TEST(TensorView, PrintsItselfForMessages) {
  auto view =
      TensorView::contiguous(static_cast<void*>(nullptr), DType::kFloat16, {12, 8, 128}, cuda(1));
  EXPECT_EQ(view.to_string(), "float16[12, 8, 128] on cuda:1");
  view.device = cpu();
  view.strides[0] = 2048;
  EXPECT_EQ(view.to_string(), "float16[12, 8, 128] with strides [2048, 128, 1] on cpu");
}

TEST(TensorView, RefusesTooManyDimensionsAndNegativeSizes) {
  void* const data = nullptr;
  EXPECT_EQ(error_of([&] {
              TensorView::contiguous(data, DType::kFloat32, {1, 1, 1, 1, 1, 1});
            }),
            "tensor: got 6 dimensions; expected at most 5");
  EXPECT_EQ(error_of([&] {
              TensorView::contiguous(data, DType::kFloat32, {2, -1});
            }),
            "tensor: got shape [2, -1]; expected no negative size");
  EXPECT_EQ(TensorView::contiguous(data, DType::kFloat32, {1, 1, 1, 1, 1}).rank, 5);
}

TEST(TensorView, RefusesMoreElementsThanCanBeCounted) {
  void* const data = nullptr;
  EXPECT_THAT(error_of([&] {
                TensorView::contiguous(data, DType::kFloat32, {kHuge, kHuge});
              }),
              HasSubstr("got shape [1099511627776, 1099511627776]"));
  EXPECT_THROW(TensorView::contiguous(data, DType::kFloat16, {kHuge, 2, kHuge}),
               InvalidArgumentError);
}

// A view made by hand, as a wrong argument might be: printing it for the message must work.
TEST(TensorView, PrintsSizesThatOverflow) {
  TensorView view{.rank = 2, .shape = {kHuge, kHuge}, .strides = {kHuge, 1}};
  EXPECT_EQ(view.to_string(), "float32[1099511627776, 1099511627776] on cpu");
  view.strides[1] = std::numeric_limits<std::int64_t>::max();
  EXPECT_THAT(view.to_string(), HasSubstr("9223372036854775807"));
}

}  // namespace
}  // namespace seqattn
