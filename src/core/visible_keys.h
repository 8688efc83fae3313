#pragma once

#include <algorithm>
#include <cstdint>

#include "attention_plan.h"

// Which keys a query may see by its place in the row: `causal`, `window_left`, and the row's own
// window. Masks, a tree's among them, narrow that further.
namespace seqattn {

// Tokens [begin, end) of a row.
struct KVRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const noexcept { return end - begin; }
};

// Two ranges of a row's tokens, the first in front of the second and apart from it: one of sinks,
// empty where they meet or where there are none, and one of the window.
struct KeySet {
  KVRange sinks;
  KVRange window;

  std::int64_t size() const noexcept { return sinks.size() + window.size(); }
  bool contains(KVRange range) const noexcept {
    return (sinks.begin <= range.begin && range.end <= sinks.end) ||
           (window.begin <= range.begin && range.end <= window.end);
  }
  // The tokens numbered [begin, end) of the set.
  KeySet part(std::int64_t begin, std::int64_t end) const noexcept;
};

// The least set that holds both.
KeySet hull(const KeySet& a, const KeySet& b) noexcept;

KeySet visible_keys(const AttentionShape& shape, const AttentionRow& row,
                    std::int64_t query) noexcept;

// Whether all of the queries [first, end) see every key of the range, masks apart. O(1), or for a
// row with a tree O(queries).
bool all_see(const AttentionShape& shape, const AttentionRow& row, std::int64_t first,
             std::int64_t end, KVRange keys) noexcept;

}  // namespace seqattn
