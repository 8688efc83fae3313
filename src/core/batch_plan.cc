#include "batch_plan.h"

#include <algorithm>
#include <cstddef>

#include "draft_tree.h"
#include "message.h"
#include "packed_check.h"
#include "tensor_check.h"

namespace seqattn {

void check_capacity(const PlanCapacity& capacity, std::int64_t num_sequences,
                    std::int64_t num_q_tokens, std::int64_t num_pages) {
  const auto check = [](const char* name, std::int64_t value, std::int64_t most) {
    require(most == 0 || value <= most, "plan: got a batch of ", value, " ", name,
            "; expected at most ", most, ", the capacity");
  };
  check("sequences", num_sequences, capacity.max_sequences);
  check("query tokens", num_q_tokens, capacity.max_q_tokens);
  check("pages", num_pages, capacity.max_pages);
}

void check_unusual_q_len(std::size_t row, std::int64_t q_len, std::int64_t kv_len,
                         const AttentionShape& shape, const PlanCapacity& capacity) {
  if (capacity.max_q_len > 0 && q_len > capacity.max_q_len) {
    throw UnsupportedError(concat("plan: row ", row, " has ", q_len, " queries; expected at most ",
                                  capacity.max_q_len,
                                  ", the capacity's max_q_len: plan longer ones with an object "
                                  "without a capacity"));
  }
  require(!shape.causal || kv_len == 0 || q_len <= kv_len, "plan: row ", row, " has ", q_len,
          " queries and ", kv_len,
          " keys; expected no more queries than keys under a causal mask: the keys count the new "
          "tokens, so allocate, then pack, first");
}

namespace {

void check_row(std::size_t i, const AttentionRow& row, const AttentionShape& shape,
               const PlanCapacity& capacity, const FlashInferPackedData& packed) {
  check_q_len(i, row.q_len, row.kv_len, shape, capacity);
  const auto& [windows, trees] = packed.columns();
  require(trees.empty() || static_cast<std::int64_t>(trees[i].size()) <= row.kv_len, "plan: row ",
          i, " has ", row.kv_len, " keys; expected at least the ",
          trees.empty() ? 0 : trees[i].size(), " draft tokens of its tree");
  if (windows.empty() || row.q_len == 0) return;
  const std::int64_t first = windows[i].first_query;
  require(row.kv_len - row.q_len >= first, "plan: row ", i, " has ", row.q_len, " queries and ",
          row.kv_len,
          " keys, and its window has dropped what the first of them would see; "
          "expected at most ",
          row.kv_len - first, " queries: those of the newest tokens");
}

// Adds the rows of the batch.
void add_rows(BatchPlan& plan, const AttentionShape& shape, const PlanCapacity& capacity,
              const FlashInferPackedData& packed, std::span<const std::int32_t> qo_indptr) {
  const auto num_rows = static_cast<std::size_t>(packed.batch_size());
  plan.attention.rows.reserve(num_rows);
  plan.append_rows.reserve(num_rows);
  for (std::size_t i = 0; i < num_rows; ++i) {
    AttentionRow& row = plan.attention.rows.emplace_back(
        AttentionRow{.page_begin = packed.kv_page_indptr()[i],
                     .kv_len = packed.kv_len(static_cast<std::int64_t>(i), shape.page_size),
                     .q_begin = qo_indptr[i],
                     .q_len = qo_indptr[i + 1] - qo_indptr[i],
                     .kv_head_begin = 0,
                     .kv_head_end = shape.num_kv_heads});
    if (const auto& windows = packed.columns().windows; !windows.empty()) {
      row.window = windows[i].window;
      row.num_sink_tokens = windows[i].num_sink_tokens;
      row.num_dropped = windows[i].num_dropped;
    }
    check_row(i, row, shape, capacity, packed);
    plan.append_rows.push_back(
        {.page_begin = row.page_begin, .kv_len = row.kv_len, .num_new = row.q_len});
  }
}

// Gives every row its part of the caller's mask.
void add_mask(AttentionPlan& plan, std::span<const std::uint8_t> mask) {
  std::int64_t size = 0;
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    AttentionRow& row = plan.rows[i];
    row.mask_begin = size;
    row.num_masked_keys = row.kv_len;
    std::int64_t row_mask = 0;
    require(!__builtin_mul_overflow(row.q_len, row.kv_len, &row_mask) &&
                !__builtin_add_overflow(size, row_mask, &size),
            "plan: the queries times the keys of row ", i, " do not fit 64 bits");
  }
  require(static_cast<std::int64_t>(mask.size()) == size, "mask: got ", mask.size(),
          " entries; expected ", size, ", the sum of q_len x kv_len over the rows, or no mask");
  plan.mask.assign(mask.begin(), mask.end());
}

// Of one draft token, `visible[i]` for each token of the tree: itself and its ancestors, as far as
// the windows reach.
void mark_ancestors(const AttentionShape& shape, const AttentionRow& row,
                    std::span<const std::int32_t> parents, std::int32_t token,
                    std::vector<std::uint8_t>& visible) {
  const auto depth = [&](std::int32_t i) { return row.tree_depths[static_cast<std::size_t>(i)]; };
  const auto num_held = row.kv_len - static_cast<std::int64_t>(parents.size());
  std::fill(visible.begin(), visible.end(), 0);
  for (std::int32_t i = token; i >= 0; i = parents[static_cast<std::size_t>(i)]) {
    const std::int64_t distance = depth(token) - depth(i);
    const bool in_window =
        row.window == 0 || distance < row.window || num_held + depth(i) < row.num_sink_tokens;
    const bool in_reach = shape.window_left < 0 || distance <= shape.window_left;
    visible[static_cast<std::size_t>(i)] = in_window && in_reach ? 1 : 0;
  }
}

// Hides from the queries of one row what a tree does not let them see. Without the caller's mask
// the row gets one of the tree's tokens.
void add_tree(AttentionPlan& plan, AttentionRow& row, const AttentionShape& shape,
              std::span<const std::int32_t> parents) {
  const auto num_drafts = static_cast<std::int64_t>(parents.size());
  if (row.num_masked_keys == 0) {
    row.mask_begin = static_cast<std::int64_t>(plan.mask.size());
    row.num_masked_keys = num_drafts;
    plan.mask.resize(plan.mask.size() + static_cast<std::size_t>(row.q_len * num_drafts), 1);
  }
  std::vector<std::uint8_t> visible(parents.size());
  for (std::int64_t query = 0; query < row.q_len; ++query) {
    const std::int64_t token = num_drafts - row.q_len + query;  // < 0: one of the sequence
    mark_ancestors(shape, row, parents, static_cast<std::int32_t>(token), visible);
    std::uint8_t* const mask =
        plan.mask.data() + row.mask_begin + (query + 1) * row.num_masked_keys - num_drafts;
    for (std::size_t i = 0; i < visible.size(); ++i) {
      if (visible[i] == 0) mask[i] = 0;
    }
  }
}

void add_trees(BatchPlan& plan, const AttentionShape& shape) {
  const auto num_rows = plan.attention.rows.size();
  plan.tree_depths.resize(num_rows);
  for (std::size_t i = 0; i < num_rows; ++i) {
    const std::vector<std::int32_t>& parents = plan.packed.columns().trees[i];
    if (parents.empty()) continue;
    AttentionRow& row = plan.attention.rows[i];
    plan.tree_depths[i] = depths_of(parents);
    row.tree_depths = plan.tree_depths[i];
    add_tree(plan.attention, row, shape, parents);
  }
}

}  // namespace

std::unique_ptr<BatchPlan> make_batch_plan(const PagePool& pool, const AttentionShape& shape,
                                           const PlanCapacity& capacity,
                                           const FlashInferPackedData& packed,
                                           std::span<const std::int32_t> qo_indptr,
                                           const PlanInputs& inputs) {
  check_packed(pool, packed);
  check_indptr("qo_indptr", qo_indptr, packed.batch_size() + 1, -1);
  check_capacity(capacity, packed.batch_size(), qo_indptr.back(),
                 static_cast<std::int64_t>(packed.kv_page_indices().size()));
  auto plan = std::make_unique<BatchPlan>();
  add_rows(*plan, shape, capacity, packed, qo_indptr);
  plan->packed = packed;
  plan->is_foreign = packed.pool_id() == 0;
  plan->attention.page_indices = plan->packed.kv_page_indices();
  plan->attention.num_q_tokens = qo_indptr.back();
  if (inputs.mask) add_mask(plan->attention, *inputs.mask);
  if (!packed.columns().trees.empty()) add_trees(*plan, shape);
  return plan;
}

}  // namespace seqattn
