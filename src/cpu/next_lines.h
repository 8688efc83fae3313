#pragma once

#include <cstddef>

#include "hwy/base.h"

namespace seqattn {

inline constexpr std::size_t kLineBytes = 64;

// What comes next, line by line: into the second-level cache, so that it does not push out what is
// in use. Inner loops ask for a line at a time, at the pace at which they use them up: many at once
// would wait for each other, and the arithmetic for them.
class NextLines {
 public:
  NextLines(const std::byte* const* rows, std::size_t num_rows, std::size_t row_bytes)
      : row_(rows), end_(rows + num_rows), row_bytes_(row_bytes) {}
  HWY_INLINE void prefetch_one() {
    if (row_ == end_) return;
    __builtin_prefetch(*row_ + offset_, 0, 2);
    offset_ += kLineBytes;
    if (offset_ < row_bytes_) return;
    offset_ = 0;
    ++row_;
  }

 private:
  const std::byte* const* row_;
  const std::byte* const* end_;
  std::size_t row_bytes_, offset_ = 0;
};

}  // namespace seqattn
