#pragma once

#include <string>

#include "attention_plan.h"
#include "fa2.h"
#include "fa3.h"

namespace seqattn {

// Whether the device is of compute capability 9.0, whose kernels no other runs.
bool is_hopper(int device);

// The compiled kernels that serve one configured attention.
struct KernelChoice {
  const Fa2Instance* unmasked = nullptr;
  const Fa2Instance* masked = nullptr;
  const Fa3Instance* fa3 = nullptr;  // null where the device or the build has none
  DType dtype = DType::kFloat16;

  const Fa2Instance& fa2(bool has_mask) const noexcept { return has_mask ? *masked : *unmasked; }
  // Sets the kernels' attributes on the current device. Throws BackendError.
  void prepare() const;
  // "cuda-fa2-float16", "cuda-decode+fa2+fa3-float16".
  std::string name(bool uses_decode, bool uses_fa2, bool uses_fa3) const;
};

// Throws UnsupportedError for a shape without kernels, with the list of those that there are and
// the line that adds one.
KernelChoice choose_kernels(const AttentionShape& shape);

}  // namespace seqattn
