#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "seqattn/export.h"
#include "seqattn/types.h"

namespace seqattn {

// A borrowed tensor: pointer, element type, device, shape and strides. It owns nothing; the memory
// must outlive the call that takes the view (or, for `from_tensors`, the manager).
//
// Wherever the library takes a tensor of shape [tokens, heads, dim], the innermost dimension must
// be contiguous (stride 1); the others may have any stride that keeps elements apart.
struct SEQATTN_EXPORT TensorView {
  static constexpr int kMaxRank = 5;

  void* data = nullptr;
  DType dtype = DType::kFloat32;
  Device device = {};
  int rank = 0;
  std::array<std::int64_t, kMaxRank> shape = {};
  std::array<std::int64_t, kMaxRank> strides = {};  // in elements
  bool read_only = false;                           // refused as an output

  // A row-major tensor. A view over `const` memory is read-only.
  // Throws InvalidArgumentError when a size is negative, there are more than kMaxRank, or their
  // product does not fit int64.
  static TensorView contiguous(void* data, DType dtype, ListView<std::int64_t> shape,
                               Device device = cpu());
  static TensorView contiguous(const void* data, DType dtype, ListView<std::int64_t> shape,
                               Device device = cpu());

  // False for the default view, which stands for "no tensor" where one is optional.
  explicit operator bool() const noexcept { return rank != 0; }

  std::int64_t num_elements() const noexcept;
  bool is_contiguous()
      const noexcept;  // row-major without gaps; dimensions of size 1 do not matter

  // "float16[12, 8, 128] on cpu", with strides where they are not row-major; for messages.
  std::string to_string() const;
};

}  // namespace seqattn
