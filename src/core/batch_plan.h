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
  // Holds the page table that `attention` reads. Empty for sequences whose tables a device keeps,
  // but in debug builds, which check it.
  FlashInferPackedData packed;
  AttentionPlan attention;
  // Of sequences whose tables a device keeps: themselves, good until one changes, and the pages
  // that their new tokens go to.
  SequenceBatch sequences;
  std::vector<PageId> written_pages;
  std::vector<AppendRow> append_rows;                  // as many new tokens as queries
  std::vector<std::vector<std::int64_t>> tree_depths;  // of each row; empty without trees
  bool is_foreign = false;                             // AppendBatch

  bool is_packed() const noexcept { return !attention.rows.empty(); }
  AppendBatch append_batch() const noexcept {
    return {
        .page_indices = written_pages.empty() ? attention.page_indices : std::span(written_pages),
        .rows = append_rows,
        .foreign = is_foreign};
  }
};

// Throw what BatchAttention::plan says of the size of a batch, and of a row's queries.
void check_capacity(const PlanCapacity& capacity, std::int64_t num_sequences,
                    std::int64_t num_q_tokens, std::int64_t num_pages);
void check_unusual_q_len(std::size_t row, std::int64_t q_len, std::int64_t kv_len,
                         const AttentionShape& shape, const PlanCapacity& capacity);
inline void check_q_len(std::size_t row, std::int64_t q_len, std::int64_t kv_len,
                        const AttentionShape& shape, const PlanCapacity& capacity) {
  const bool fits = capacity.max_q_len == 0 || q_len <= capacity.max_q_len;
  if (!fits || q_len > kv_len) check_unusual_q_len(row, q_len, kv_len, shape, capacity);
}

// Throws what BatchAttention::plan says. O(pages).
std::unique_ptr<BatchPlan> make_batch_plan(const PagePool& pool, const AttentionShape& shape,
                                           const PlanCapacity& capacity,
                                           const FlashInferPackedData& packed,
                                           std::span<const std::int32_t> qo_indptr,
                                           const PlanInputs& inputs);

}  // namespace seqattn
