#pragma once

#include <algorithm>
#include <cstdint>
#include <span>

#include "message.h"
#include "seqattn/cache_descriptor.h"
#include "sequence_state_format.h"

// What saving and restoring have in common.
namespace seqattn {

inline PagedKVCacheManager& manager_of(const CacheDescriptor& descriptor, const char* call) {
  PagedKVCacheManager* const manager = descriptor.manager();
  require(manager != nullptr, call,
          ": the descriptor is over a bare pool, which holds no tokens; expected one over a "
          "PagedKVCacheManager");
  return *manager;
}

// Calls body(layer, first, count) for every record of a state, in order.
template <class Body>
void for_each_record(const SequenceStateInfo& info, const Body& body) {
  const std::int64_t most = StateRecords(info).most_tokens;
  for (int layer = 0; layer < info.num_layers; ++layer) {
    for (std::int64_t first = 0; first < info.num_kv_tokens; first += most) {
      body(layer, first, std::min(most, info.num_kv_tokens - first));
    }
  }
}

// Tokens of a sequence as the pages that hold them, so that a call need not look at all.
struct PageSlice {
  std::span<const PageId> pages;
  std::int64_t first = 0;  // in those pages
};

inline PageSlice slice_of(std::span<const PageId> pages, int page_size, std::int64_t first,
                          std::int64_t count) {
  const std::int64_t begin = first / page_size, end = (first + count - 1) / page_size + 1;
  return {pages.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(end - begin)),
          first % page_size};
}

}  // namespace seqattn
