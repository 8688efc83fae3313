#pragma once

#include <cstdint>
#include <span>

#include "host_tensor.h"
#include "seqattn/tensor_view.h"
#include "seqattn/types.h"

namespace seqattn::testing {

// Element `d` of head `head` of the token at `position` of a sequence with these pages, read from
// the storage of one layer's keys or values by the definition of the layout.
inline float cached(const TensorView& cache, KVLayout layout, std::span<const PageId> pages,
                    std::int64_t position, std::int64_t head, std::int64_t d) {
  const std::int64_t page_size = cache.shape[layout == KVLayout::kNHD ? 1 : 2];
  const PageId page = pages[static_cast<std::size_t>(position / page_size)];
  const std::int64_t slot = position % page_size;
  return layout == KVLayout::kNHD ? element(cache, {page, slot, head, d})
                                  : element(cache, {page, head, slot, d});
}

}  // namespace seqattn::testing
