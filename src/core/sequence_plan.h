#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "batch_plan.h"
#include "seqattn/cache_descriptor.h"

namespace seqattn {

// A batch of sequences that a device plans by its own tables (AttentionKernel::plan_sequences).
struct SequencePlan {
  // Without the tables that a device keeps. Null for a batch that takes a packed table: with
  // windows or trees, or of a pool whose callers handle references themselves, which may have freed
  // what a sequence holds.
  std::unique_ptr<BatchPlan> batch;
  std::vector<SequenceRow> rows;  // good until a sequence changes
};

// Throws what BatchAttention::plan says. O(rows + pages written).
SequencePlan make_sequence_plan(const AttentionShape& shape, const PlanCapacity& capacity,
                                const CacheDescriptor& sequences, SeqIds seq_ids,
                                std::span<const std::int32_t> qo_indptr);

}  // namespace seqattn
