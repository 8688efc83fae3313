#pragma once

#include "seqattn/packed_data.h"
#include "seqattn/page_pool.h"

namespace seqattn {

// Throws InvalidArgumentError unless `packed` is a batch over this pool: every page is in
// [0, num_pages), every kv_last_page_len is at most page_size, and, where a descriptor packed it,
// that descriptor works on this pool and every page is live (debug builds: the whole time). The
// constructor of FlashInferPackedData has checked the rest. O(1) for a descriptor's tables while no
// page of the pool is freed, and no caller has dropped references or handed them over (adopt); else
// O(total_pages).
void check_packed(const PagePool& pool, const FlashInferPackedData& packed);

// The part of check_packed that tells pages which were freed and taken anew from ones that lived
// on: debug builds throw InvalidArgumentError, others do nothing. Same complexity.
void check_not_freed(const PagePool& pool, const FlashInferPackedData& packed);

}  // namespace seqattn
