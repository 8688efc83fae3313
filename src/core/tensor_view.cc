#include "seqattn/tensor_view.h"

#include "message.h"
#include "tensor_check.h"

namespace seqattn {

TensorView TensorView::contiguous(void* data, DType dtype, ListView<std::int64_t> shape,
                                  Device device) {
  require(shape.size() <= kMaxRank, "tensor: got ", shape.size(), " dimensions; expected at most ",
          kMaxRank);
  TensorView view{
      .data = data, .dtype = dtype, .device = device, .rank = static_cast<int>(shape.size())};
  std::int64_t stride = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    require(shape[i] >= 0, "tensor: got shape ", shape_to_string(shape),
            "; expected no negative size");
    view.shape[i] = shape[i];
    view.strides[i] = stride;
    require(!__builtin_mul_overflow(stride, shape[i], &stride), "tensor: got shape ",
            shape_to_string(shape), "; expected fewer than 2^63 elements");
  }
  return view;
}

TensorView TensorView::contiguous(const void* data, DType dtype, ListView<std::int64_t> shape,
                                  Device device) {
  TensorView view = contiguous(const_cast<void*>(data), dtype, shape, device);
  view.read_only = true;
  return view;
}

std::int64_t TensorView::num_elements() const noexcept {
  std::int64_t count = 1;
  for (int i = 0; i < rank; ++i) count *= shape[i];
  return count;
}

bool TensorView::is_contiguous() const noexcept {
  std::uint64_t stride = 1;  // unsigned: messages show tensors whose sizes overflow, too
  for (int i = rank - 1; i >= 0; --i) {
    if (shape[i] != 1 && strides[i] != static_cast<std::int64_t>(stride)) return false;
    stride *= static_cast<std::uint64_t>(shape[i]);
  }
  return true;
}

std::string TensorView::to_string() const {
  if (rank == 0) return "no tensor";
  const auto list = [this](const auto& values) {
    return shape_to_string(
        std::span<const std::int64_t>(values.data(), static_cast<std::size_t>(rank)));
  };
  std::string text = concat(seqattn::to_string(dtype), list(shape));
  if (!is_contiguous()) text += " with strides " + list(strides);
  return text + " on " + seqattn::to_string(device);
}

}  // namespace seqattn
