#include "visible_keys.h"

#include <cstddef>

namespace seqattn {
namespace {

KeySet normal(KeySet set) noexcept {
  if (set.sinks.end <= set.sinks.begin) {
    set.sinks = {};
  } else if (set.sinks.end >= set.window.begin) {
    set.window.begin = std::min(set.window.begin, set.sinks.begin);
    set.window.end = std::max(set.window.end, set.sinks.end);
    set.sinks = {};
  }
  set.window.end = std::max(set.window.begin, set.window.end);
  return set;
}

KVRange part_of(KVRange range, std::int64_t begin, std::int64_t end) noexcept {
  return {std::clamp(range.begin + begin, range.begin, range.end),
          std::clamp(range.begin + end, range.begin, range.end)};
}

}  // namespace

KeySet KeySet::part(std::int64_t begin, std::int64_t end) const noexcept {
  const std::int64_t num_sinks = sinks.size();
  return {part_of(sinks, begin, end), part_of(window, begin - num_sinks, end - num_sinks)};
}

KeySet hull(const KeySet& a, const KeySet& b) noexcept {
  const auto join = [](KVRange x, KVRange y) -> KVRange {
    if (x.size() <= 0) return y;
    if (y.size() <= 0) return x;
    return {std::min(x.begin, y.begin), std::max(x.end, y.end)};
  };
  return normal({join(a.sinks, b.sinks), join(a.window, b.window)});
}

KeySet visible_keys(const AttentionShape& shape, const AttentionRow& row,
                    std::int64_t query) noexcept {
  // A draft token's position is that of its depth, and which drafts it sees is its mask's.
  const std::int64_t num_held = row.kv_len - static_cast<std::int64_t>(row.tree_depths.size());
  std::int64_t position = row.kv_len - row.q_len + query;
  const bool is_draft = position >= num_held && !row.tree_depths.empty();
  if (is_draft) {
    position = num_held + row.tree_depths[static_cast<std::size_t>(position - num_held)];
  }
  const auto least = [&](std::int64_t at) {
    return shape.window_left < 0 ? 0 : std::max<std::int64_t>(0, at - shape.window_left);
  };
  std::int64_t begin = least(position);
  if (row.window > 0) begin = std::max(begin, position - row.window + 1);
  std::int64_t end = row.kv_len;
  if (shape.causal && !is_draft) end = std::clamp<std::int64_t>(position + 1, 0, row.kv_len);
  if (is_draft) begin = std::min(begin, num_held);
  KeySet set{.sinks = {}, .window = {std::min(begin, row.kv_len), end}};
  if (row.window > 0)
    set.sinks = {least(position + row.num_dropped), std::min({row.num_sink_tokens, end, num_held})};
  return normal(set);
}

bool all_see(const AttentionShape& shape, const AttentionRow& row, std::int64_t first,
             std::int64_t end, KVRange keys) noexcept {
  if (row.tree_depths.empty()) {  // both ranges move on with the queries
    return visible_keys(shape, row, first).contains(keys) &&
           visible_keys(shape, row, end - 1).contains(keys);
  }
  for (std::int64_t query = first; query < end; ++query) {
    if (!visible_keys(shape, row, query).contains(keys)) return false;
  }
  return true;
}

}  // namespace seqattn
