#pragma once

#include <cstdint>

namespace seqattn {

// How many threads a parallel loop may ask OpenMP for: `requested`, or all that OpenMP offers where
// that is 0; never more than the processors, or 64 where those are fewer, nor than
// OMP_THREAD_LIMIT. One in a child of fork(), where OpenMP's workers do not exist any more.
int usable_threads(int requested) noexcept;

// As many of them as copying so many bytes is worth.
int copy_threads(std::int64_t bytes, int requested) noexcept;

}  // namespace seqattn
