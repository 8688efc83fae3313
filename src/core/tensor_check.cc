#include "tensor_check.h"

#include <algorithm>
#include <array>
#include <functional>
#include <limits>
#include <utility>

#include "message.h"
#include "seqattn/error.h"

namespace seqattn {
namespace {

bool fits(const TensorSpec& spec, DType dtype) noexcept {
  if (!spec.dtype) return !has_scales(dtype);
  return dtype == spec.dtype || (spec.or_float32 && dtype == DType::kFloat32);
}

std::string expected(const TensorSpec& spec) {
  const std::string_view dtype = spec.dtype ? to_string(*spec.dtype) : "float16, bfloat16";
  const bool or_float32 = !spec.dtype || (spec.or_float32 && spec.dtype != DType::kFloat32);
  return concat("expected ", dtype, or_float32 ? " or float32 " : " ", shape_to_string(spec.shape),
                " on ", to_string(spec.device));
}

}  // namespace

bool elements_are_apart(const TensorView& tensor) noexcept {
  if (tensor.num_elements() == 0) return true;
  using Dimension = std::pair<std::int64_t, std::int64_t>;  // {stride, size}
  std::array<Dimension, TensorView::kMaxRank> dims;
  dims.fill({std::numeric_limits<std::int64_t>::max(), 1});  // one element never meets another
  for (int i = 0; i < tensor.rank; ++i) {
    if (tensor.shape[i] > 1) dims[i] = {tensor.strides[i], tensor.shape[i]};
  }
  std::sort(dims.begin(), dims.end());
  std::int64_t extent = 1;
  for (const auto& [stride, size] : dims) {
    if (stride < extent) return false;
    extent += stride * (size - 1);
  }
  return true;
}

ByteRange byte_range(const TensorView& tensor) noexcept {
  std::int64_t last = 0;
  for (int i = 0; i < tensor.rank; ++i) last += tensor.strides[i] * (tensor.shape[i] - 1);
  const auto* const begin = static_cast<const std::byte*>(tensor.data);
  return {begin, begin + (last + 1) * size_of(tensor.dtype)};
}

bool ranges_meet(const TensorView& a, const TensorView& b) noexcept {
  if (!a || !b || a.device != b.device) return false;
  if (a.num_elements() == 0 || b.num_elements() == 0) return false;
  const ByteRange range_a = byte_range(a), range_b = byte_range(b);
  const std::less<const std::byte*> before;
  return before(range_a.begin, range_b.end) && before(range_b.begin, range_a.end);
}

void check_tensor(const TensorView& tensor, const TensorSpec& spec) {
  // The texts are made only for a tensor that fails: calls with small batches are frequent.
  const auto check = [&](bool condition, std::string_view detail = "") {
    if (!condition) [[unlikely]] {
      throw InvalidArgumentError(
          concat(spec.name, ": got ", tensor.to_string(), "; ", expected(spec), detail));
    }
  };
  const std::span<const std::int64_t> shape(tensor.shape.data(),
                                            static_cast<std::size_t>(tensor.rank));
  check(std::equal(shape.begin(), shape.end(), spec.shape.begin(), spec.shape.end()));
  check(fits(spec, tensor.dtype));
  check(tensor.device == spec.device);
  if (tensor.num_elements() == 0) return;
  check(tensor.data != nullptr, " with data, not a null pointer");
  check(spec.any_strides || tensor.shape[tensor.rank - 1] == 1 ||
            tensor.strides[tensor.rank - 1] == 1,
        " with a contiguous innermost dimension");
  for (int i = 0; i < tensor.rank; ++i) {
    check(tensor.shape[i] == 1 || tensor.strides[i] >= 0, " without negative strides");
  }
  if (!spec.output) return;
  check(!tensor.read_only, " that may be written, not a read-only tensor");
  check(elements_are_apart(tensor), " whose elements do not share memory");
}

void check_indptr(std::string_view name, std::span<const std::int32_t> indptr, std::int64_t size,
                  std::int64_t last) {
  require(static_cast<std::int64_t>(indptr.size()) == size, name, ": got ", indptr.size(),
          " entries; expected ", size);
  require(indptr.front() == 0, name, ": starts at ", indptr.front(), "; expected 0");
  const auto fall = std::adjacent_find(indptr.begin(), indptr.end(), std::greater<>());
  if (fall != indptr.end()) {
    throw InvalidArgumentError(concat(name, ": falls from ", fall[0], " to ", fall[1], " at entry ",
                                      fall - indptr.begin() + 1,
                                      "; expected entries that never fall"));
  }
  require(last < 0 || indptr.back() == last, name, ": ends at ", indptr.back(), "; expected ",
          last);
}

std::string shape_to_string(ListView<std::int64_t> shape) {
  std::string text = "[";
  for (std::size_t i = 0; i < shape.size(); ++i)
    text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + "]";
}

}  // namespace seqattn
