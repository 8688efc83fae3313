// The last step: chunks are merged, and outputs written. Compiled once for each target.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "hwy/highway.h"
#include "simd_math-inl.h"
#include "tile_state-inl.h"
#include "unpack-inl.h"

#if defined(SEQATTN_CPU_STORE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQATTN_CPU_STORE_INL_H_
#undef SEQATTN_CPU_STORE_INL_H_
#else
#define SEQATTN_CPU_STORE_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {

template <class T>
void store_row(Floats value, T* out, std::size_t d, std::size_t dim) {
  if (d + kLanes <= dim) {
    store(value, out + d);
  } else {
    store_some(value, out + d, dim - d);
  }
}

// The chunks' factors, and the row's LSE: sum(weight_i out_i) is the row's output.
inline double merge_weights(std::span<const SoftmaxState> parts, int row, double sink,
                            std::array<float, kMaxChunks>& weights) {
  double max = sink;
  for (const SoftmaxState& part : parts) max = std::max(max, static_cast<double>(part.max[row]));
  const double subtracted = std::isinf(max) && max < 0 ? 0 : max;
  double sum = std::exp2(sink - subtracted);
  std::array<double, kMaxChunks> factors;
  for (std::size_t i = 0; i < parts.size(); ++i) {
    factors[i] = std::exp2(parts[i].max[row] - subtracted);
    sum += factors[i] * parts[i].sum[row];
  }
  for (std::size_t i = 0; i < parts.size(); ++i) {
    weights[i] = sum == 0 ? 0.0f : static_cast<float>(factors[i] / sum);
  }
  return (subtracted + std::log2(sum)) / static_cast<double>(kLog2E);
}

inline void store_tile(const AttentionCall& call, const QueryTile& tile,
                       std::span<const SoftmaxState> parts) {
  const int group = call.shape.group_size();
  const std::size_t dim = call.shape.head_dim_v;
  const std::size_t stride = padded_dim(call.shape.head_dim_v);
  for (int r = 0; r < tile.num_rows; ++r) {
    const std::int64_t token = tile.row.q_begin + (tile.first_row + r) / group;
    const std::int64_t head = tile.kv_head * group + (tile.first_row + r) % group;
    double sink = kMinusInfinity;
    if (call.sink_logits) {
      const auto* sinks = static_cast<const float*>(call.sink_logits.data);
      sink = sinks[head * call.sink_logits.strides[0]] * static_cast<double>(kLog2E);
    }
    std::array<float, kMaxChunks> weights;
    const double lse = merge_weights(parts, r, sink, weights);
    if (call.lse) {
      static_cast<float*>(call.lse.data)[token * call.lse.strides[0] + head * call.lse.strides[1]] =
          static_cast<float>(lse);
    }
    const std::int64_t offset = token * call.out.strides[0] + head * call.out.strides[1];
    for (std::size_t d = 0; d < dim; d += kLanes) {
      Floats sum = hn::Zero(kFloatTag);
      for (std::size_t i = 0; i < parts.size(); ++i) {
        sum = hn::MulAdd(load(parts[i].out + r * stride + d), hn::Set(kFloatTag, weights[i]), sum);
      }
      with_elements(call.out, offset, [&](auto* to) HWY_ATTR { store_row(sum, to, d, dim); });
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
