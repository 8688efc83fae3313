#pragma once

#include <cstdint>

// The softmax so far of some query rows over some keys, and the memory that it takes.
namespace seqattn {

// Up to so many query rows a tile waits for memory rather than for arithmetic.
inline constexpr int kFewRows = 8;

constexpr std::int64_t round_up(std::int64_t n, std::int64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// Vectors of head_dim floats are padded to this many, which whole vectors of any target fill.
inline constexpr int kDimPadding = 16;

inline constexpr std::int64_t kAlignedFloats = 32;  // two cache lines: threads share none

// `out` holds sum(2^(x - max) v), `sum` the sum of the weights 2^(x - max), x being logits in base
// 2.
struct SoftmaxState {
  float* max = nullptr;  // [num_rows]
  float* sum = nullptr;  // [num_rows]
  float* out = nullptr;  // [num_rows, head_dim_v padded to kDimPadding]

  SoftmaxState() = default;
  SoftmaxState(float* memory, int num_rows) noexcept
      : max(memory), sum(memory + padded(num_rows)), out(memory + 2 * padded(num_rows)) {}

  // A multiple of kAlignedFloats.
  static std::int64_t num_floats(int num_rows, int head_dim_v) noexcept {
    return round_up(padded(num_rows) * (2 + round_up(head_dim_v, kDimPadding)), kAlignedFloats);
  }

 private:
  // Rows are computed 4 or 6 at a time; a multiple of 4 keeps every part aligned.
  static std::int64_t padded(int num_rows) noexcept {
    return num_rows <= kFewRows ? round_up(num_rows, 4) : round_up(num_rows, 12);
  }
};

}  // namespace seqattn
