#include "sequence_plan.h"

#include <cstddef>
#include <utility>

#include "sequence_slots.h"
#include "tensor_check.h"

namespace seqattn {
namespace {

// The pages that a row's new tokens go to, and where they begin among all of them: the last page,
// most of the time. REQUIRES no more queries than keys.
void add_append_row(BatchPlan& plan, const SequenceRow& row, int last_page_len, int page_size) {
  const auto page_begin = static_cast<std::int64_t>(plan.written_pages.size());
  if (row.q_len == 0) {
    plan.append_rows.push_back({.page_begin = page_begin});
    return;
  }
  const std::int64_t num_in_front =
      row.q_len <= last_page_len ? 0 : pages_for(row.q_len - last_page_len, page_size);
  const auto first = row.pages.size() - 1 - static_cast<std::size_t>(num_in_front);
  for (const PageId page : row.pages.subspan(first)) plan.written_pages.push_back(page);
  plan.append_rows.push_back({.page_begin = page_begin,
                              .kv_len = num_in_front * page_size + last_page_len,
                              .num_new = row.q_len});
}

}  // namespace

SequencePlan make_sequence_plan(const AttentionShape& shape, const PlanCapacity& capacity,
                                const CacheDescriptor& sequences, SeqIds seq_ids,
                                std::span<const std::int32_t> qo_indptr) {
  const std::size_t num_rows = seq_ids.size();
  if (sequences.pool().handled_by_callers()) return {};
  check_indptr("qo_indptr", qo_indptr, static_cast<std::int64_t>(num_rows) + 1, -1);
  auto batch = std::make_unique<BatchPlan>();
  std::vector<SequenceRow> rows;
  rows.reserve(num_rows);
  batch->append_rows.reserve(num_rows);
  batch->written_pages.reserve(2 * num_rows);
  std::int64_t num_pages = 0;
  for (std::size_t i = 0; i < num_rows; ++i) {
    const SequenceData& data = sequences.sequence(seq_ids[i]);
    if (data.window.window > 0 || !data.tree_parents.empty()) return {};
    const auto num_held = static_cast<std::int64_t>(data.kv_page_indices.size());
    const SequenceRow& row = rows.emplace_back(
        SequenceRow{.pages = data.kv_page_indices,
                    .table_version = data.table_version,
                    .kv_len = tokens_of(num_held, data.last_page_len, shape.page_size),
                    .q_begin = qo_indptr[i],
                    .q_len = qo_indptr[i + 1] - qo_indptr[i]});
    check_q_len(i, row.q_len, row.kv_len, shape, capacity);
    // Queries without keys see nothing, and there is nothing to append.
    if (row.q_len > row.kv_len) return {};
    add_append_row(*batch, row, data.last_page_len, shape.page_size);
    num_pages += num_held;
  }
  check_capacity(capacity, static_cast<std::int64_t>(num_rows), qo_indptr.back(), num_pages);
  batch->attention.num_q_tokens = qo_indptr.back();
#ifndef NDEBUG
  batch->packed = sequences.pack_for_flashinfer(seq_ids);
#endif
  return {std::move(batch), std::move(rows)};
}

}  // namespace seqattn
