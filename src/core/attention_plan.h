#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "seqattn/types.h"

// What a kernel reads. Nothing in here knows of sequences, so that another producer can fill it.
namespace seqattn {

// The part of attention that never changes between plans.
struct AttentionShape {
  int num_qo_heads = 0;
  int num_kv_heads = 0;
  int head_dim = 0;    // of queries and keys
  int head_dim_v = 0;  // of values and outputs
  int page_size = 0;
  DType kv_dtype = DType::kFloat16;
  Device device = {};
  bool causal = true;
  int window_left = -1;
  float sm_scale = 1;
  float logits_soft_cap = 0;
  int num_threads = 0;
  bool bfloat16_products = false;  // where the device has them

  int group_size() const noexcept { return num_qo_heads / num_kv_heads; }
};

// One row: a page table, its lengths, and the KV heads that it covers.
struct AttentionRow {
  std::int64_t page_begin = 0;  // first entry in AttentionPlan::page_indices
  std::int64_t kv_len = 0;
  std::int64_t q_begin = 0;  // first query token in q and out
  std::int64_t q_len = 0;
  // The row's last num_masked_keys keys have a mask, [q_len, num_masked_keys] bytes from mask_begin
  // in AttentionPlan::mask: 0 hides the key from the query.
  std::int64_t mask_begin = 0;
  std::int64_t num_masked_keys = 0;
  int kv_head_begin = 0;
  int kv_head_end = 0;
  // > 0: a query sees no more than the last `window` keys, its own included, and the first
  // num_sink_tokens.
  std::int64_t window = 0;
  std::int64_t num_sink_tokens = 0;
  std::int64_t num_dropped = 0;  // keys without slots, between the sinks and the window
  // The last keys are a tree of draft tokens, of these depths below the key in front of them; the
  // mask covers them. A window counts from the position that the depth gives.
  std::span<const std::int64_t> tree_depths = {};  // of whoever made the plan

  // Whether `causal` and AttentionShape::window_left do not say all about it.
  bool needs_mask() const noexcept { return num_masked_keys > 0 || window > 0; }
};

// A row straight from its sequence, for kernels that keep page tables from plan to plan. A device
// that has the entries of a table of this version needs none but those behind them.
struct SequenceRow {
  std::span<const PageId> pages;
  std::uint64_t table_version = 0;  // SequenceData
  std::int64_t kv_len = 0;
  std::int64_t q_len = 0;
};

struct SequenceTotals {
  std::int64_t num_pages = 0, num_q_tokens = 0;  // of all rows
  std::int64_t min_q_len = 0, max_q_len = 0;     // of a row
  std::int64_t max_kv_len = 0;

  void add(const SequenceRow& row, bool is_first) noexcept {
    num_pages += static_cast<std::int64_t>(row.pages.size());
    num_q_tokens += row.q_len;
    min_q_len = is_first ? row.q_len : std::min(min_q_len, row.q_len);
    max_q_len = std::max(max_q_len, row.q_len);
    max_kv_len = std::max(max_kv_len, row.kv_len);
  }
};

// A batch of such rows, whose queries lie one after the other.
struct SequenceBatch {
  std::vector<SequenceRow> rows;
  SequenceTotals totals;
  bool same_q_len() const noexcept { return totals.min_q_len == totals.max_q_len; }
};

struct AttentionPlan {
  std::span<const PageId> page_indices;  // of whoever made the plan
  std::vector<AttentionRow> rows;
  std::vector<std::uint8_t> mask;  // of the rows that have one
  std::int64_t num_q_tokens = 0;

  bool needs_mask() const noexcept {
    return std::any_of(rows.begin(), rows.end(),
                       [](const AttentionRow& row) { return row.needs_mask(); });
  }
};

}  // namespace seqattn
