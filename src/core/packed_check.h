#pragma once

#include "seqattn/packed_data.h"
#include "seqattn/page_pool.h"

namespace seqattn {

// Throws InvalidArgumentError unless `packed` is a batch over this pool: every page is in
// [0, num_pages), every kv_last_page_len is at most page_size, and, where a descriptor packed it,
// that descriptor works on this pool and every page is live. The constructor of
// FlashInferPackedData has checked the rest. O(1) for a descriptor's tables while no page of the
// pool is freed, and no caller has dropped references or handed them over (adopt); else
// O(total_pages).
void check_packed(const PagePool& pool, const FlashInferPackedData& packed);

}  // namespace seqattn
