#include "host_tensor.h"

#include <cstring>
#include <limits>
#include <utility>

#include "seqattn/half.h"

namespace seqattn::testing {
namespace {

float load(const std::byte* at, DType dtype) {
  if (dtype == DType::kFloat32) {
    float value = 0;
    std::memcpy(&value, at, sizeof value);
    return value;
  }
  std::uint16_t bits = 0;
  std::memcpy(&bits, at, sizeof bits);
  return dtype == DType::kFloat16 ? from_float16(bits) : from_bfloat16(bits);
}

void store(std::byte* at, DType dtype, float value) {
  if (dtype == DType::kFloat32) {
    std::memcpy(at, &value, sizeof value);
    return;
  }
  const std::uint16_t bits = dtype == DType::kFloat16 ? to_float16(value) : to_bfloat16(value);
  std::memcpy(at, &bits, sizeof bits);
}

std::byte* address(const TensorView& tensor, ListView<std::int64_t> indices) {
  std::int64_t offset = 0;
  for (std::size_t i = 0; i < indices.size(); ++i) offset += indices[i] * tensor.strides[i];
  return static_cast<std::byte*>(tensor.data) + offset * size_of(tensor.dtype);
}

}  // namespace

HostTensor::HostTensor(DType dtype, std::vector<std::int64_t> shape)
    : view_(TensorView::contiguous(static_cast<void*>(nullptr), dtype, shape)) {
  bytes_.resize(static_cast<std::size_t>(view_.num_elements() * size_of(dtype)));
  view_.data = bytes_.data();
  for (std::int64_t i = 0; i < size(); ++i) set(i, std::numeric_limits<float>::quiet_NaN());
}

float HostTensor::operator[](std::int64_t i) const {
  return load(bytes_.data() + i * size_of(view_.dtype), view_.dtype);
}

void HostTensor::set(std::int64_t i, float value) {
  store(bytes_.data() + i * size_of(view_.dtype), view_.dtype, value);
}

std::vector<float> HostTensor::values() const {
  std::vector<float> values;
  for (std::int64_t i = 0; i < size(); ++i) values.push_back((*this)[i]);
  return values;
}

HostTensor random_tensor(std::mt19937_64& random, DType dtype, std::vector<std::int64_t> shape) {
  HostTensor tensor(dtype, std::move(shape));
  std::uniform_real_distribution<float> uniform(-1, 1);
  for (std::int64_t i = 0; i < tensor.size(); ++i) tensor.set(i, uniform(random));
  return tensor;
}

float element(const TensorView& tensor, ListView<std::int64_t> indices) {
  return load(address(tensor, indices), tensor.dtype);
}

void set_element(const TensorView& tensor, ListView<std::int64_t> indices, float value) {
  store(address(tensor, indices), tensor.dtype, value);
}

std::vector<std::byte> bytes_of(const TensorView& tensor) {
  const auto* const begin = static_cast<const std::byte*>(tensor.data);
  return {begin, begin + tensor.num_elements() * size_of(tensor.dtype)};
}

}  // namespace seqattn::testing
