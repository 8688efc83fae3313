#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "backend.h"
#include "seqattn/tensor_view.h"

// Tokens and pages of planes on a device. Vectors of 16 bytes where everything is aligned to them,
// else element by element; offsets are 64-bit.
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
};

// planes[i] <- tensors[i], i in {0, 1}: keys and values in one launch.
void launch_write_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                         const TokenTable& table, cudaStream_t stream);
// tensors[i] <- planes[i].
void launch_read_tokens(std::span<const Plane> planes, std::span<const TensorView> tensors,
                        const TokenTable& table, cudaStream_t stream);

// Page copies to be made in every plane; both lists lie in device memory.
struct PageList {
  const Plane* planes = nullptr;
  const PageCopy* copies = nullptr;
  std::int64_t num_planes = 0;
  std::int64_t num_copies = 0;
  bool at_once =
      false;  // no copy writes what another one reads or writes; else one after the other
};

// `sample` is one of the planes, in host memory: the launch takes its size from it.
void launch_copy_pages(const PageList& list, const Plane& sample, cudaStream_t stream);

// Moves of token slots to be made in every plane, in order; both lists lie in device memory.
struct MoveList {
  const Plane* planes = nullptr;
  const TokenMove* moves = nullptr;
  std::int64_t num_planes = 0;
  std::int64_t num_moves = 0;
};

// `planes` are those of the list, in host memory; no two of them share memory.
void launch_move_tokens(const MoveList& list, std::span<const Plane> planes, cudaStream_t stream);

}  // namespace seqattn
