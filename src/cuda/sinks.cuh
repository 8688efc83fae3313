#pragma once

#include <cstdint>

// Sink logits as kernels see them, which add one to the denominator of each softmax.
namespace seqattn {

inline constexpr float kLn2 = 0.693147180559945309f;
inline constexpr float kLog2E = 1.44269504088896341f;

struct Sinks {
  const float* data = nullptr;  // none: minus infinity
  std::int64_t stride = 0;

  __device__ float natural(std::int64_t head) const {
    return data == nullptr ? -INFINITY : data[head * stride];
  }
  // As finite as the sink is.
  __device__ float base2(std::int64_t head) const {
    constexpr float kMaxFloat = 3.402823466e38f;
    const float sink = natural(head);
    return isinf(sink) ? sink : fminf(fmaxf(sink * kLog2E, -kMaxFloat), kMaxFloat);
  }
  // The natural LSE of a sum whose terms were divided by 2^subtracted.
  __device__ float lse(std::int64_t head, float subtracted, float sum) const {
    constexpr float kHuge = 1e30f;
    if (fabsf(subtracted) > kHuge) return natural(head);  // only a sink is as large
    return (subtracted + log2f(sum)) * kLn2;
  }
};

}  // namespace seqattn
