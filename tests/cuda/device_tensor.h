#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "seqattn/half.h"
#include "seqattn/tensor_view.h"

namespace seqattn::testing {

inline void check(cudaError_t status) {
  if (status != cudaSuccess) throw std::runtime_error(cudaGetErrorString(status));
}

// Whether this machine has a GPU. Tests that need one skip themselves, and say so, where it has
// none.
inline bool has_gpu() {
  int count = 0;
  return cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
}

#define SEQATTN_NEEDS_GPU() \
  if (!::seqattn::testing::has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one"

// The same elements in host and device memory.
class Mirror {
 public:
  Mirror(DType dtype, std::vector<std::int64_t> shape) : dtype_(dtype), shape_(std::move(shape)) {
    std::int64_t count = 1;
    for (const std::int64_t size : shape_) count *= size;
    host_.resize(static_cast<std::size_t>(count * size_of(dtype)));
    check(cudaMalloc(&device_, host_.size() + 16));
    poison();
  }
  ~Mirror() { cudaFree(device_); }
  Mirror(const Mirror&) = delete;
  Mirror& operator=(const Mirror&) = delete;

  std::int64_t size() const { return static_cast<std::int64_t>(host_.size()) / size_of(dtype_); }
  TensorView host() {
    return TensorView::contiguous(static_cast<void*>(host_.data()), dtype_, shape_);
  }
  TensorView device() { return TensorView::contiguous(device_, dtype_, shape_, cuda(0)); }

  void randomise(std::mt19937_64& random) {
    std::normal_distribution<float> normal;
    for (std::int64_t i = 0; i < size(); ++i) set(i, normal(random));
    upload();
  }
  // Every byte 0xff: NaN in all types.
  void poison() {
    std::fill(host_.begin(), host_.end(), std::byte{0xff});
    upload();
  }
  void upload() { check(cudaMemcpy(device_, host_.data(), host_.size(), cudaMemcpyHostToDevice)); }
  // The device's elements.
  std::vector<float> fetch() const {
    std::vector<std::byte> bytes(host_.size());
    check(cudaMemcpy(bytes.data(), device_, bytes.size(), cudaMemcpyDeviceToHost));
    return decode(bytes);
  }
  std::vector<float> on_host() const { return decode(host_); }

 private:
  void set(std::int64_t i, float value) {
    if (dtype_ == DType::kFloat32) {
      reinterpret_cast<float*>(host_.data())[i] = value;
    } else {
      reinterpret_cast<std::uint16_t*>(host_.data())[i] =
          dtype_ == DType::kFloat16 ? to_float16(value) : to_bfloat16(value);
    }
  }
  std::vector<float> decode(const std::vector<std::byte>& bytes) const {
    std::vector<float> values(static_cast<std::size_t>(size()));
    for (std::size_t i = 0; i < values.size(); ++i) {
      if (dtype_ == DType::kFloat32) {
        values[i] = reinterpret_cast<const float*>(bytes.data())[i];
      } else {
        const std::uint16_t bits = reinterpret_cast<const std::uint16_t*>(bytes.data())[i];
        values[i] = dtype_ == DType::kFloat16 ? from_float16(bits) : from_bfloat16(bits);
      }
    }
    return values;
  }

  DType dtype_;
  std::vector<std::int64_t> shape_;
  std::vector<std::byte> host_;
  void* device_ = nullptr;
};

}  // namespace seqattn::testing
