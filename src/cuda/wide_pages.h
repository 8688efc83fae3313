#pragma once

#include <cuda_runtime_api.h>

#include <array>
#include <cstdint>
#include <span>

#include "attention_plan.h"
#include "backend.h"
#include "device_memory.h"

namespace seqattn {

// Pages of 8 bits as 16-bit ones, for kernels that read no others: one layer's at a time, made at
// each run.
class WidePages {
 public:
  explicit WidePages(const AttentionShape& shape) : shape_(shape) {}

  // Makes room. Throws BackendError.
  void reserve(std::int64_t num_pages, cudaStream_t stream);
  // The keys and values of such pages (a list in device memory), in that order. REQUIRES room.
  std::array<Plane, 2> widen(std::span<const Plane> planes, DType dtype, const std::int32_t* pages,
                             std::int64_t num_pages, cudaStream_t stream) const;

 private:
  std::int64_t page_bytes() const noexcept;  // of keys, and of values

  AttentionShape shape_;
  DeviceBuffer buffer_;  // pages of keys, then those of values: [page_size, num_heads, head_dim]
};

}  // namespace seqattn
