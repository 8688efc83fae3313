#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "backend.h"
#include "seqattn/page_pool.h"
#include "seqattn/types.h"

namespace seqattn {

// One row of an append: its last `num_new` tokens are written.
struct AppendRow {
  std::int64_t page_begin = 0;  // first entry in AppendBatch::page_indices
  std::int64_t kv_len = 0;      // with the new tokens
  std::int64_t num_new = 0;
};

// The rows of an append and the tables they lie in. Page ids are in range and every row's pages
// hold kv_len tokens (check_packed). New tokens lie in the input tensors row after row.
struct AppendBatch {
  std::span<const PageId> page_indices;
  std::span<const AppendRow> rows;
  bool foreign = false;  // tables of another system: pages to be written may be free in this pool
};

// The sum of num_new.
std::int64_t num_new_tokens(const AppendBatch& batch) noexcept;

// What is to be written, a range for each row with new tokens. Throws InvalidArgumentError for
// num_new outside [0, kv_len]; a page to be written that is shared, or free unless `foreign`; one
// that would be written twice. O(rows + pages written).
std::vector<TokenRange> plan_append(const PagePool& pool, const AppendBatch& batch);

// Throws what plan_append says of pages to be written, of sequences of this pool. O(pages).
void check_pages_to_write(const PagePool& pool, PageIds pages);

}  // namespace seqattn
