#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "append_batch.h"
#include "attention_plan.h"
#include "seqattn/batch_attention.h"
#include "seqattn/packed_data.h"
#include "seqattn/page_pool.h"

namespace seqattn {

// A planned batch: what kernels read, and what the appends of its layers take besides.
struct BatchPlan {
  FlashInferPackedData packed;  // holds the page table that `attention` reads
  AttentionPlan attention;
  std::vector<AppendRow> append_rows;                  // as many new tokens as queries
  std::vector<std::vector<std::int64_t>> tree_depths;  // of each row; empty without trees

  bool is_foreign() const noexcept { return packed.pool_id() == 0; }
  AppendBatch append_batch() const noexcept {
    return {.page_indices = attention.page_indices, .rows = append_rows, .foreign = is_foreign()};
  }
};

// Throws what BatchAttention::plan says. O(pages).
std::unique_ptr<BatchPlan> make_batch_plan(const PagePool& pool, const AttentionShape& shape,
                                           const PlanCapacity& capacity,
                                           const FlashInferPackedData& packed,
                                           std::span<const std::int32_t> qo_indptr,
                                           const PlanInputs& inputs);

}  // namespace seqattn
