#pragma once

#include <cstdint>
#include <span>

#include "seqattn/packed_data.h"
#include "seqattn/paged_kv_cache_manager.h"

// Numbered tokens in real storage: every element of a token's keys and values, in every layer,
// holds a number that belongs to that place only.
namespace seqattn::testing {

KVCacheConfig numbered_config(std::int64_t num_pages, int page_size, KVLayout layout);

// Writes the last `lengths[i]` tokens of each row of the batch, numbered by `numbers` in order.
void append_numbers(PagedKVCacheManager& manager, const FlashInferPackedData& packed,
                    std::span<const std::int64_t> lengths, std::span<const std::int64_t> numbers);

// That the first slots of these pages hold these tokens.
void expect_numbers(const PagedKVCacheManager& manager, std::span<const PageId> pages,
                    std::span<const std::int64_t> numbers);

}  // namespace seqattn::testing
