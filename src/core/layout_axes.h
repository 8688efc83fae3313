#pragma once

#include <array>
#include <cstdint>

#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/types.h"

namespace seqattn {

// Which dimensions of a layer's cache, [num_pages, ., ., head_dim], are its page_size tokens and
// its num_heads heads. Scales of tokens lie likewise, without the last dimension.
struct LayoutAxes {
  int token = 0;
  int head = 0;
};

constexpr LayoutAxes axes_of(KVLayout layout) noexcept {
  return layout == KVLayout::kNHD ? LayoutAxes{.token = 1, .head = 2}
                                  : LayoutAxes{.token = 2, .head = 1};
}

// [num_pages, ., .].
inline std::array<std::int64_t, 3> slots_shape(const KVCacheConfig& config) noexcept {
  const auto [token, head] = axes_of(config.kv_layout);
  std::array<std::int64_t, 3> shape{config.num_pages};
  shape[token] = config.page_size;
  shape[head] = config.num_heads;
  return shape;
}

}  // namespace seqattn
