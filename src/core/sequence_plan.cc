#include "sequence_plan.h"

#include <cstddef>

#include "sequence_finder.h"
#include "sequence_slots.h"
#include "tensor_check.h"

namespace seqattn {
namespace {

// The pages that a row's new tokens go to, which join `written`: the last page, most of the time.
// REQUIRES no more queries than keys.
AppendRow append_row(const SequenceRow& row, int last_page_len, int page_size,
                     std::vector<PageId>& written) {
  AppendRow append{.page_begin = static_cast<std::int64_t>(written.size())};
  if (row.q_len == 0) return append;
  append.num_new = row.q_len;
  append.kv_len = last_page_len;
  if (row.q_len <= last_page_len) {
    written.push_back(row.pages.back());
    return append;
  }
  const std::int64_t num_in_front = pages_for(row.q_len - last_page_len, page_size);
  append.kv_len += num_in_front * page_size;
  const auto pages = row.pages.last(static_cast<std::size_t>(num_in_front + 1));
  written.insert(written.end(), pages.begin(), pages.end());
  return append;
}

}  // namespace

bool make_sequence_plan(BatchPlan& plan, const AttentionShape& shape, const PlanCapacity& capacity,
                        const CacheDescriptor& sequences, SeqIds seq_ids,
                        std::span<const std::int32_t> qo_indptr) {
  if (sequences.pool().handled_by_callers()) return false;
  const std::size_t num_rows = seq_ids.size();
  const int page_size = shape.page_size;
  check_indptr("qo_indptr", qo_indptr, static_cast<std::int64_t>(num_rows) + 1, -1);
  plan.written_pages.clear();
  plan.sequences.rows.resize(num_rows);
  plan.append_rows.resize(num_rows);
  plan.written_pages.reserve(num_rows);
  SequenceTotals totals;
  for (std::size_t i = 0; i < num_rows; ++i) {
    const SequenceData& data = SequenceFinder::find(sequences, i, seq_ids[i]);
    if (data.window.window > 0 || !data.tree_parents.empty()) return false;
    const auto num_held = static_cast<std::int64_t>(data.kv_page_indices.size());
    const SequenceRow row{.pages = data.kv_page_indices,
                          .table_version = data.table_version,
                          .kv_len = tokens_of(num_held, data.last_page_len, page_size),
                          .q_len = qo_indptr[i + 1] - qo_indptr[i]};
    check_q_len(i, row.q_len, row.kv_len, shape, capacity);
    // Queries without keys see nothing, and there is nothing to append.
    if (row.q_len > row.kv_len) return false;
    totals.add(row, i == 0);
    plan.sequences.rows[i] = row;
    plan.append_rows[i] = append_row(row, data.last_page_len, page_size, plan.written_pages);
  }
  check_capacity(capacity, static_cast<std::int64_t>(num_rows), totals.num_q_tokens,
                 totals.num_pages);
  plan.sequences.totals = totals;
  plan.attention.num_q_tokens = totals.num_q_tokens;
#ifndef NDEBUG
  plan.packed = sequences.pack_for_flashinfer(seq_ids);
#endif
  return true;
}

}  // namespace seqattn
