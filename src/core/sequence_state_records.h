#pragma once

#include <algorithm>
#include <array>
#include <cstdint>
#include <span>

#include "backend.h"
#include "message.h"
#include "seqattn/cache_descriptor.h"
#include "sequence_state_format.h"
#include "token_buffer.h"

// What saving and restoring have in common.
namespace seqattn {

inline PagedKVCacheManager& manager_of(const CacheDescriptor& descriptor, const char* call) {
  PagedKVCacheManager* const manager = descriptor.manager();
  require(manager != nullptr, call,
          ": the descriptor is over a bare pool, which holds no tokens; expected one over a "
          "PagedKVCacheManager");
  return *manager;
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

// The bytes of tokens as a cache has them, where its elements have scales.
struct StoredTokens {
  PagedKVCacheManager& manager;
  PageSlice slice;
  int layer;
  Stream stream;

  void read(TokenBuffer& buffer, std::int64_t count) const {
    exchange(&Backend::read_tokens, buffer, count);
  }
  // REQUIRES scales that follow tokens.
  void write(TokenBuffer& buffer, std::int64_t count) const {
    exchange(&Backend::write_tokens, buffer, count);
  }

 private:
  using Exchange = void (Backend::*)(std::span<const Plane>, std::span<const TensorView>,
                                     std::span<const TokenRange>, Stream);
  void exchange(Exchange call, TokenBuffer& buffer, std::int64_t count) const {
    const auto planes = manager.layer_planes(layer);
    const std::array parts{planes[0].without_scales(), planes[1].without_scales(),
                           planes[0].scale_plane(), planes[1].scale_plane()};
    const std::array tensors{buffer.keys(count), buffer.values(count), buffer.key_scales(count),
                             buffer.value_scales(count)};
    const TokenRange range{
        .pages = slice.pages.data(), .first = slice.first, .count = count, .row = 0};
    // Two by two: whoever takes planes takes keys and values.
    for (const std::size_t first : {0, 2}) {
      (manager.backend_.*call)(std::span(parts).subspan(first, 2),
                               std::span(tensors).subspan(first, 2), std::span(&range, 1), stream);
    }
  }
};

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

}  // namespace seqattn
