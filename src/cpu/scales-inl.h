// Caches of 8-bit elements: scores and weights take the scales that their tokens' keys and values
// were divided by. Compiled once for each target.

#include <cstddef>

#include "hwy/highway.h"
#include "simd_math-inl.h"
#include "tile_state-inl.h"

#if defined(SEQATTN_CPU_SCALES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef SEQATTN_CPU_SCALES_INL_H_
#undef SEQATTN_CPU_SCALES_INL_H_
#else
#define SEQATTN_CPU_SCALES_INL_H_
#endif

HWY_BEFORE_NAMESPACE();
namespace seqattn {
namespace HWY_NAMESPACE {

// q . (scale k) is scale (q . k).
inline void scale_scores(const ScoreShape& shape, const TokenTile& tokens, float* scores) {
  for (int t = 0; t < tokens.padded_count; ++t, scores += shape.stride) {
    const float scale = tokens.key_scales[static_cast<std::size_t>(t)];
    for (std::size_t r = 0; r < shape.stride; ++r) scores[r] *= scale;
  }
}

// w (scale v) is (w scale) v. What a query may not see has a weight of 0 and any scale, NaN too.
inline void scale_weights(const ScoreShape& shape, const TokenTile& tokens, bool all_visible,
                          float* weights) {
  for (int t = 0; t < tokens.padded_count; ++t, weights += shape.stride) {
    const float scale = tokens.value_scales[static_cast<std::size_t>(t)];
    for (std::size_t r = 0; r < shape.stride; ++r) {
      const float scaled = weights[r] * scale;
      weights[r] = all_visible || weights[r] != 0 ? scaled : 0;
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace seqattn
HWY_AFTER_NAMESPACE();

#endif
