#pragma once

#include <flashinfer/math.cuh>

// Soft caps for the kernels of FA2 and FA3, which multiply what this gives by the cap.
namespace seqattn {

// tanh(x) to a relative error of 1e-5 for every x. The hardware's own is off by 2^-11; from exp
// alone small values would cancel, and with them every logit far below its cap.
__device__ __forceinline__ float soft_cap_tanh(float x) {
  if (fabsf(x) < 0.03125f) return x - x * x * x * (1.0f / 3);
  const float power = flashinfer::math::ptx_exp2(2 * flashinfer::math::log2e * x);
  return 1 - 2 * flashinfer::math::ptx_rcp(1 + power);
}

}  // namespace seqattn
