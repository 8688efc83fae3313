#include "sequence_model.h"

#include <algorithm>
#include <numeric>

namespace seqattn::testing {

bool SequenceModel::holds(std::int64_t token) const {
  return std::binary_search(tokens.begin(), tokens.end(), token);
}

bool SequenceModel::finds_all(std::int64_t query, const SlidingWindow& with) const {
  for (std::int64_t token = 0; token < query; ++token) {
    const bool is_seen =
        with.window == 0 || token < with.num_sink_tokens || token > query - with.window;
    if (is_seen && !holds(token)) return false;
  }
  return true;
}

bool SequenceModel::sees(std::int64_t query, std::int64_t token) const {
  return window.window == 0 || token < window.num_sink_tokens || token > query - window.window;
}

std::int64_t SequenceModel::first_missing() const {
  std::int64_t token = 0;
  while (token < next() && holds(token)) ++token;
  return token;
}

std::int64_t SequenceModel::dropped_to() const {
  for (std::int64_t token = next() - 1; token >= 0; --token) {
    if (!holds(token)) return token + 1 + offset;
  }
  return 0;
}

std::int64_t SequenceModel::first_query() const {
  if (dropped_to() == 0) return 0;
  std::int64_t behind = next();
  for (std::size_t slot = tokens.size(); slot > 0; --slot) {
    const std::int64_t token = tokens[slot - 1];
    if (token + 1 != behind || !finds_all(token, window)) return static_cast<std::int64_t>(slot);
    behind = token;
  }
  return 0;
}

void SequenceModel::grow(std::int64_t num_tokens) {
  for (std::int64_t i = 0; i < num_tokens; ++i) tokens.push_back(next() + i);
  length += num_tokens;
}

void SequenceModel::set_window(SlidingWindow new_window) {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  const auto [size, num_sinks] = new_window;
  require(size >= 0 && size <= kMost && num_sinks >= 0 && num_sinks <= kMost);
  require(size > 0 || num_sinks == 0);
  require(finds_all(next(), new_window));
  window = new_window;
}

void SequenceModel::check_path(std::span<const std::int32_t> path) const {
  const auto num_drafts = static_cast<std::int32_t>(parents.size());
  require(num_drafts > 0);
  std::int32_t above = -1;
  for (const std::int32_t token : path) {
    require(token >= 0 && token < num_drafts && parents[token] == above);
    above = token;
  }
}

void SequenceModel::commit(std::span<const std::int32_t> path) {
  check_path(path);
  grow(static_cast<std::int64_t>(path.size()));
  parents.clear();
}

void SequenceModel::check_slots(std::span<const std::int64_t> slots) const {
  require(parents.empty());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    require(slots[i] >= 0 && slots[i] < num_slots() && (i == 0 || slots[i] > slots[i - 1]));
    require(sees(next(), tokens[static_cast<std::size_t>(slots[i])]));
  }
}

void SequenceModel::keep(std::span<const std::int64_t> slots) {
  check_slots(slots);
  if (static_cast<std::int64_t>(slots.size()) == num_slots()) return;
  window.num_sink_tokens = std::count_if(slots.begin(), slots.end(), [this](std::int64_t slot) {
    return slot < window.num_sink_tokens;
  });
  tokens.resize(slots.size());
  std::iota(tokens.begin(), tokens.end(), 0);
  offset = length - static_cast<std::int64_t>(slots.size());
  floor = length;
}

// A pending tree goes in any case.
void SequenceModel::cut(std::int64_t num_tokens) {
  require(num_tokens >= 0 && num_tokens <= length);
  if (num_tokens < length) {
    const std::int64_t end = num_tokens - offset;
    // What lies between gaps is seen by nobody any more, and after `keep` what lies in front of one
    // has lost its positions.
    const bool is_in_front = floor == 0 && end <= first_missing();
    require(num_tokens >= floor && (is_in_front || num_tokens >= dropped_to()));
    require(finds_all(end, window));
    while (!tokens.empty() && tokens.back() >= end) tokens.pop_back();
  }
  length = num_tokens;
  parents.clear();
}

std::vector<std::size_t> SequenceModel::drop_dead_pages(int page_size) {
  const auto size = static_cast<std::size_t>(page_size);
  std::vector<std::size_t> dead;
  std::vector<std::int64_t> left;
  for (std::size_t first = 0; first < tokens.size(); first += size) {
    const auto page = std::span(tokens).subspan(first, std::min(size, tokens.size() - first));
    const auto is_seen = [this](std::int64_t token) { return sees(next(), token); };
    if (page.size() == size && std::none_of(page.begin(), page.end(), is_seen)) {
      dead.push_back(first / size);
    } else {
      left.insert(left.end(), page.begin(), page.end());
    }
  }
  tokens = left;
  return dead;
}

}  // namespace seqattn::testing
