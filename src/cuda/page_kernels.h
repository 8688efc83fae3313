#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "backend.h"

// Pages and slots of planes on a device, as bytes: vectors of 16 where everything is aligned to
// them, else element by element; offsets are 64-bit.
namespace seqattn {

// Page copies to be made in every plane; both lists lie in device memory.
struct PageList {
  const Plane* planes = nullptr;
  const PageCopy* copies = nullptr;
  std::int64_t num_planes = 0;
  std::int64_t num_copies = 0;
  bool at_once = false;  // no copy writes what another one reads or writes; else one by one
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
