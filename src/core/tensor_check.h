#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "seqattn/tensor_view.h"

namespace seqattn {

// Of TensorSpec::dtype: every type whose elements mean something without scales.
inline constexpr std::optional<DType> kAnyUnscaled = std::nullopt;

// What a tensor argument has to be. check_tensor says all of it when one part is wrong.
struct TensorSpec {
  std::string_view name;
  ListView<std::int64_t> shape;
  std::optional<DType> dtype = DType::kFloat32;
  bool or_float32 = false;  // float32 will do as well
  Device device = {};
  bool output = false;       // written: refuses read-only tensors and slots that share memory
  bool any_strides = false;  // elements of the innermost dimension need not be side by side
};

// TensorSpec::dtype of what goes into or comes out of a cache: that of the cache, where it will do.
constexpr std::optional<DType> unscaled(DType cache) noexcept {
  return has_scales(cache) ? kAnyUnscaled : cache;
}

// Throws InvalidArgumentError: what was given, what was expected.
void check_tensor(const TensorView& tensor, const TensorSpec& spec);

// True when no two elements share memory (every stride clears the extent of the smaller ones).
bool elements_are_apart(const TensorView& tensor) noexcept;

struct ByteRange {
  const std::byte* begin = nullptr;
  const std::byte* end = nullptr;
};

// From the first to behind the last element. REQUIRES one.
ByteRange byte_range(const TensorView& tensor) noexcept;

// True when the two tensors' byte ranges meet; false for "no tensor".
bool ranges_meet(const TensorView& a, const TensorView& b) noexcept;

// Checks an indptr: `size` entries that start at 0, never fall and end at `last` (any end where
// `last` is negative). Throws InvalidArgumentError with the first entry that is wrong.
void check_indptr(std::string_view name, std::span<const std::int32_t> indptr, std::int64_t size,
                  std::int64_t last);

// "[3, 8, 128]".
std::string shape_to_string(ListView<std::int64_t> shape);

}  // namespace seqattn
