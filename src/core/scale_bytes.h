#pragma once

#include <cstdint>

#include "seqattn/types.h"

namespace seqattn {

// Of one scale, in memory and in saved states.
inline constexpr auto kScaleBytes = static_cast<std::int64_t>(sizeof(float));

// Of the scales of a token's keys, and as many of its values: one a head where elements have them.
constexpr std::int64_t token_scale_bytes(DType dtype, int num_heads) noexcept {
  return has_scales(dtype) ? num_heads * kScaleBytes : 0;
}

}  // namespace seqattn
