#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "backend.h"
#include "seqattn/tensor_view.h"

// Tokens of planes on a device. Vectors of 16 bytes where everything is aligned to them, else
// element by element; offsets are 64-bit.
namespace seqattn {

// Rows of new (or read) tokens, in device memory. Token t of [indptr[i], indptr[i + 1]) belongs to
// row i and lies at position begin[i] + t - indptr[i] of the sequence whose pages start at
// page_indices[page_begin[i]].
struct TokenTable {
  const std::int32_t* page_indices = nullptr;
  const std::int32_t* page_begin = nullptr;  // [num_rows]
  const std::int32_t* begin = nullptr;       // [num_rows]
  const std::int32_t* indptr = nullptr;      // [num_rows + 1]
  std::int32_t num_rows = 0;
  // How many tokens the launch covers; where num_tokens_device is given it holds how many there
  // are.
  std::int64_t num_tokens = 0;
  const std::int32_t* num_tokens_device = nullptr;
  bool overlap_launch = false;  // launch.h
};

// planes[i] <- tensors[i], i in {0, 1}: keys and values in one launch.
void launch_write_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                         const TokenTable& table, cudaStream_t stream);
// tensors[i] <- planes[i].
void launch_read_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                        const TokenTable& table, cudaStream_t stream);

}  // namespace seqattn
