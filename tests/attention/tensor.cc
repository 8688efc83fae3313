#include "tensor.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <utility>

namespace seqattn::testing {
namespace {

constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<std::byte> nan_bytes(DType dtype, std::int64_t num_elements) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(num_elements * size_of(dtype)));
  for (std::size_t i = 0; i < bytes.size(); i += static_cast<std::size_t>(size_of(dtype))) {
    encode(dtype, kNan, bytes.data() + i);
  }
  return bytes;
}

}  // namespace

double rounded(DType dtype, double value) {
  std::byte element[sizeof(float)];
  encode(dtype, value, element);
  return decode(dtype, element);
}

Tensor::Tensor(Device device, DType dtype, std::vector<std::int64_t> shape, const Layout& layout)
    : view_(TensorView::contiguous(static_cast<void*>(nullptr), dtype, shape, device)) {
  if (!layout.strides.empty())
    std::copy_n(layout.strides.begin(), shape.size(), view_.strides.begin());
  std::int64_t last = layout.offset;
  for (std::size_t i = 0; i < shape.size(); ++i) last += view_.strides[i] * (shape[i] - 1);
  const std::int64_t num_elements = view_.num_elements() == 0 ? 0 : last + 1;
  memory_ = DeviceMemory(device, num_elements * size_of(dtype));
  copy_to_device(device, memory_.data(), nan_bytes(dtype, num_elements));
  view_.data = memory_.data() + (num_elements == 0 ? 0 : layout.offset * size_of(dtype));
}

TensorView Tensor::read_only_view() const {
  TensorView view = view_;
  view.read_only = true;
  return view;
}

template <class Visit>
void Tensor::for_each_element(Visit visit) const {
  const std::int64_t base = static_cast<std::byte*>(view_.data) - memory_.data();
  for (std::int64_t i = 0; i < view_.num_elements(); ++i) {
    std::int64_t rest = i, offset = 0;
    for (int axis = view_.rank - 1; axis >= 0; --axis) {
      offset += rest % view_.shape[axis] * view_.strides[axis];
      rest /= view_.shape[axis];
    }
    visit(static_cast<std::size_t>(i), base + offset * size_of(view_.dtype));
  }
}

void Tensor::write(std::span<const double> values) {
  std::vector<std::byte> content = bytes();
  for_each_element(
      [&](std::size_t i, std::int64_t at) { encode(view_.dtype, values[i], content.data() + at); });
  copy_to_device(view_.device, memory_.data(), content);
}

std::vector<double> Tensor::read() const {
  const std::vector<std::byte> content = bytes();
  std::vector<double> values(static_cast<std::size_t>(view_.num_elements()));
  for_each_element([&](std::size_t i, std::int64_t at) {
    values[i] = decode(view_.dtype, content.data() + at);
  });
  return values;
}

std::vector<std::byte> Tensor::bytes() const {
  return copy_to_host(view_.device, memory_.data(), memory_.num_bytes());
}

bool Tensor::gaps_are_untouched() const {
  std::vector<std::byte> content = bytes();
  for_each_element(
      [&](std::size_t, std::int64_t at) { encode(view_.dtype, kNan, content.data() + at); });
  return content == nan_bytes(view_.dtype, memory_.num_bytes() / size_of(view_.dtype));
}

void fill_with_nan(const TensorView& view) {
  copy_to_device(view.device, view.data, nan_bytes(view.dtype, view.num_elements()));
}

void fill_with_normals(Tensor& tensor, std::mt19937_64& random) {
  std::normal_distribution<double> normal;
  std::vector<double> elements(static_cast<std::size_t>(tensor.view().num_elements()));
  for (double& x : elements) x = normal(random);
  tensor.write(elements);
}

Layout with_gaps(std::int64_t heads, std::int64_t dim, std::int64_t unit) {
  const std::int64_t head = dim + 5 * unit;
  return {{heads * head + 3 * unit, head, 1}, unit};
}

Layout heads_first(std::int64_t tokens, std::int64_t dim) { return {{dim, tokens * dim, 1}, 0}; }

TensorView head_slice(const TensorView& tensor, std::int64_t first, std::int64_t count) {
  TensorView slice = tensor;
  slice.data =
      static_cast<std::byte*>(tensor.data) + first * tensor.strides[1] * size_of(tensor.dtype);
  slice.shape[1] = count;
  return slice;
}

}  // namespace seqattn::testing
