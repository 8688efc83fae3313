#pragma once

#include <cstddef>
#include <cstdint>
#include <random>
#include <vector>

#include "seqattn/tensor_view.h"

namespace seqattn::testing {

// A tensor in host memory whose elements are read and written as floats, whatever its dtype.
// Starts as NaN, so that an element that nobody wrote shows.
class HostTensor {
 public:
  HostTensor(DType dtype, std::vector<std::int64_t> shape);
  HostTensor(HostTensor&&) = default;  // the view points at the bytes
  HostTensor& operator=(HostTensor&&) = default;

  const TensorView& view() const noexcept { return view_; }
  std::int64_t size() const noexcept { return view_.num_elements(); }
  // By position in row-major order.
  float operator[](std::int64_t i) const;
  void set(std::int64_t i, float value);  // rounds to the dtype
  std::vector<float> values() const;

 private:
  std::vector<std::byte> bytes_;
  TensorView view_;
};

// Elements in [-1, 1), no two alike but by chance.
HostTensor random_tensor(std::mt19937_64& random, DType dtype, std::vector<std::int64_t> shape);

// One element of any view, by its indices.
float element(const TensorView& tensor, ListView<std::int64_t> indices);
void set_element(const TensorView& tensor, ListView<std::int64_t> indices, float value);

// The bytes of a contiguous tensor.
std::vector<std::byte> bytes_of(const TensorView& tensor);

}  // namespace seqattn::testing
