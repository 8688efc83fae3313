#include "seqattn/dlpack.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <vector>

#include "error_text.h"

namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::testing::HasSubstr;

// The fields of DLPack's structures, as its header lays them out.
struct DLTensor {
  void* data = nullptr;
  struct {
    int device_type = 1;
    std::int32_t device_id = 0;
  } device;
  std::int32_t ndim = 0;
  struct {
    std::uint8_t code = 2;
    std::uint8_t bits = 32;
    std::uint16_t lanes = 1;
  } dtype;
  std::int64_t* shape = nullptr;
  std::int64_t* strides = nullptr;
  std::uint64_t byte_offset = 0;
};

class DLPack : public ::testing::Test {
 protected:
  DLPack() {
    tensor_.data = data_.data();
    tensor_.ndim = 3;
    tensor_.shape = shape_.data();
  }
  std::string refusal() {
    return error_of([&] { from_dlpack(tensor_); });
  }
  std::string unsupported() {
    return error_of<UnsupportedError>([&] { from_dlpack(tensor_); });
  }

  std::array<float, 24> data_{};
  std::vector<std::int64_t> shape_ = {2, 3, 4, 1, 1, 1};
  std::vector<std::int64_t> strides_ = {4, 8, 1};
  DLTensor tensor_;
};

TEST_F(DLPack, WithoutStridesIsRowMajor) {
  const TensorView view = from_dlpack(tensor_);
  EXPECT_EQ(view.data, data_.data());
  EXPECT_EQ(view.rank, 3);
  EXPECT_EQ(view.shape, (std::array<std::int64_t, 5>{2, 3, 4}));
  EXPECT_EQ(view.strides, (std::array<std::int64_t, 5>{12, 4, 1}));
  EXPECT_EQ(view.device, cpu());
  EXPECT_FALSE(view.read_only);
  EXPECT_TRUE(from_dlpack(tensor_, /*read_only=*/true).read_only);
}

TEST_F(DLPack, KeepsStridesAndTheByteOffset) {
  tensor_.strides = strides_.data();
  tensor_.byte_offset = 16;
  const TensorView view = from_dlpack(tensor_);
  EXPECT_EQ(view.data, data_.data() + 4);
  EXPECT_EQ(view.strides, (std::array<std::int64_t, 5>{4, 8, 1}));
}

TEST_F(DLPack, KnowsItsElementTypes) {
  EXPECT_EQ(from_dlpack(tensor_).dtype, DType::kFloat32);
  tensor_.dtype.bits = 16;
  EXPECT_EQ(from_dlpack(tensor_).dtype, DType::kFloat16);
  tensor_.dtype.code = 4;
  EXPECT_EQ(from_dlpack(tensor_).dtype, DType::kBFloat16);
  tensor_.dtype = {.code = 10, .bits = 8, .lanes = 1};
  EXPECT_EQ(from_dlpack(tensor_).dtype, DType::kFloat8E4M3);
}

TEST_F(DLPack, RefusesOtherElementTypes) {
  tensor_.dtype.code = 0;
  EXPECT_EQ(unsupported(),
            "DLPack tensor: type code 0 with 32 bits and 1 lanes; supported are float32, float16, "
            "bfloat16 and float8_e4m3fn");
  tensor_.dtype = {.code = 2, .bits = 64, .lanes = 1};
  EXPECT_THAT(unsupported(), HasSubstr("type code 2 with 64 bits"));
  tensor_.dtype = {.code = 2, .bits = 32, .lanes = 4};
  EXPECT_THAT(unsupported(), HasSubstr("4 lanes"));
  tensor_.dtype = {.code = 4, .bits = 32, .lanes = 1};
  EXPECT_THAT(unsupported(), HasSubstr("type code 4 with 32 bits"));
}

TEST_F(DLPack, KnowsItsDevices) {
  for (const int on_cpu : {1, 3}) {
    tensor_.device = {.device_type = on_cpu, .device_id = 0};
    EXPECT_EQ(from_dlpack(tensor_).device, cpu());
  }
  for (const int on_cuda : {2, 13}) {
    tensor_.device = {.device_type = on_cuda, .device_id = 5};
    EXPECT_EQ(from_dlpack(tensor_).device, cuda(5));
  }
  tensor_.device.device_type = 8;
  EXPECT_EQ(unsupported(), "DLPack tensor: device type 8; supported are CPU (1) and CUDA (2)");
}

TEST_F(DLPack, RefusesRanksThatAViewDoesNotHave) {
  for (const int rank : {-1, 0, 6}) {
    tensor_.ndim = rank;
    EXPECT_EQ(refusal(), "DLPack tensor: rank " + std::to_string(rank) + "; expected 1 to 5");
  }
  tensor_.ndim = 5;
  EXPECT_EQ(from_dlpack(tensor_).rank, 5);
}

TEST_F(DLPack, RefusesNegativeSizes) {
  shape_[1] = -3;
  EXPECT_EQ(refusal(), "DLPack tensor: size -3 of dimension 1 is negative");
}

TEST_F(DLPack, RefusesMoreElementsThanCanBeCounted) {
  shape_[0] = shape_[1] = std::int64_t{1} << 40;
  EXPECT_THAT(refusal(), HasSubstr("DLPack tensor: more than 2^63 elements"));
  tensor_.strides = strides_.data();
  EXPECT_THAT(refusal(), HasSubstr("DLPack tensor: more than 2^63 elements"));
}

}  // namespace
}  // namespace seqattn
