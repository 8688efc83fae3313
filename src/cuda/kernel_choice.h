#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "attention_plan.h"
#include "decode/decode_call.h"
#include "fa2.h"
#include "fa3.h"

namespace seqattn {

// Whether the device is of compute capability 9.0, whose kernels no other runs.
bool is_hopper(int device);

// The compiled kernels that serve one configured attention, for one type of queries.
struct KernelChoice {
  DType q_dtype = DType::kFloat16;
  const Fa2Instance* unmasked = nullptr;
  const Fa2Instance* masked = nullptr;
  // Null where the device, the build or the shape has none.
  const Fa3Instance* fa3 = nullptr;
  const decode::Instance* decode = nullptr;       // of few query rows
  const decode::Instance* wide_decode = nullptr;  // of more

  // REQUIRES one that takes so many query rows.
  const decode::Instance& decode_of(std::int64_t query_rows) const noexcept {
    return decode != nullptr && query_rows <= decode->query_rows ? *decode : *wide_decode;
  }
  const Fa2Instance& fa2(bool has_mask) const noexcept { return has_mask ? *masked : *unmasked; }
  // Sets the kernels' attributes on the current device. Throws BackendError.
  void prepare() const;
};

// One for each type that queries may have: that of the cache, or, of 8 bits, any of 16 that this
// build has. Throws UnsupportedError for a shape without kernels, with the list of those that there
// are and the line that adds one.
std::vector<KernelChoice> choose_kernels(const AttentionShape& shape);

// "cuda-fa2-float16", "cuda-decode+fa2+fa3-float16"; the type is the cache's.
std::string kernel_name(DType kv_dtype, bool uses_decode, bool uses_fa2, bool uses_fa3);

}  // namespace seqattn
