#pragma once

#include "seqattn/paged_kv_cache_manager.h"

// A small cache of 8-bit elements on the CPU.
namespace seqattn::testing {

inline constexpr int kHeads = 3, kDim = 5, kDimV = 4, kLayers = 2;

inline KVCacheConfig float8(KVScaling scaling, KVLayout layout = KVLayout::kNHD,
                            int page_size = 4) {
  return {.num_pages = 16,
          .page_size = page_size,
          .num_heads = kHeads,
          .head_dim = kDim,
          .head_dim_v = kDimV,
          .num_layers = kLayers,
          .dtype = DType::kFloat8E4M3,
          .kv_layout = layout,
          .kv_scaling = scaling};
}

}  // namespace seqattn::testing
