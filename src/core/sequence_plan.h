#pragma once

#include <cstdint>
#include <span>

#include "batch_plan.h"
#include "seqattn/cache_descriptor.h"

namespace seqattn {

// Plans a batch of sequences that a device plans by its own tables
// (AttentionKernel::plan_sequences): without the tables that it keeps. False for a batch that takes
// a packed table: with windows or trees, or of a pool whose callers handle references themselves,
// which may have freed what a sequence holds. `plan` is new, or one that this has made, whose
// memory is used again; it is good where true is returned. Throws what BatchAttention::plan says.
// O(rows + pages written).
bool make_sequence_plan(BatchPlan& plan, const AttentionShape& shape, const PlanCapacity& capacity,
                        const CacheDescriptor& sequences, SeqIds seq_ids,
                        std::span<const std::int32_t> qo_indptr);

}  // namespace seqattn
