#include "sequence_slots.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <string>

#include "draft_tree.h"
#include "message.h"

namespace seqattn {
namespace {

constexpr std::int64_t kMost = std::int64_t{1} << 62;

}  // namespace

SequenceSlots slots_of(const SequenceData& data, int page_size) noexcept {
  const auto num_pages = static_cast<std::int64_t>(data.kv_page_indices.size());
  const std::int64_t all = tokens_of(num_pages, data.last_page_len, page_size);
  const auto drafts = static_cast<std::int64_t>(data.tree_parents.size());
  return {.held = all - drafts, .drafts = drafts, .missing = data.length - (all - drafts)};
}

std::uint64_t next_table_version() noexcept {
  static std::atomic<std::uint64_t> last = 0;
  return last.fetch_add(1, std::memory_order_relaxed) + 1;
}

void check_window(const SlidingWindow& window) {
  require(window.window >= 0 && window.window <= kMost, "window: got ", window.window,
          "; expected at least 1 token and at most 2^62, or 0 for all");
  require(window.num_sink_tokens >= 0 && window.num_sink_tokens <= kMost, "num_sink_tokens: got ",
          window.num_sink_tokens, "; expected 0 to 2^62");
  require(window.num_sink_tokens == 0 || window.window > 0, "num_sink_tokens: got ",
          window.num_sink_tokens, " without a window; expected a window of at least 1 token too");
}

void check_window_is_held(const SequenceData& data, const SlidingWindow& window) {
  if (data.dropped_to == 0) return;
  const std::int64_t in_front = data.num_in_front;
  require(window.window > 0 && data.length - window.window + 1 >= data.dropped_to &&
              window.num_sink_tokens <= in_front,
          "window: got ", window.window, " and ", window.num_sink_tokens,
          " sinks for a sequence of length ", data.length,
          " that has dropped tokens up to position ", data.dropped_to,
          "; expected a window of at most ", data.length - data.dropped_to + 1, " and at most ",
          in_front, " sinks");
}

void check_can_end_at(const SequenceData& data, std::int64_t num_tokens, SeqId seq_id) {
  require(num_tokens >= 0 && num_tokens <= data.length, "num_tokens: got ", num_tokens,
          "; expected 0 to ", data.length, ", the length of sequence ", seq_id);
  if (num_tokens == data.length) return;
  const std::int64_t least =
      data.dropped_to == 0 ? data.compacted_to
                           : std::max(data.compacted_to, data.dropped_to + data.window.window - 1);
  // The tokens in front of what the window has dropped are good too, where they have positions.
  const std::int64_t most_in_front = data.compacted_to == 0 ? data.num_in_front : -1;
  if (num_tokens >= least || num_tokens <= most_in_front) return;
  const auto range = [](std::int64_t first, std::int64_t last) {
    return first == last ? concat(last) : concat(first, " to ", last);
  };
  throw InvalidArgumentError(
      concat("num_tokens: got ", num_tokens, " for sequence ", seq_id, " of length ", data.length,
             "; its window or keep has dropped what the next token would see; expected ",
             most_in_front < 0 ? "" : concat(range(0, most_in_front), ", or "),
             range(least, data.length)));
}

CutSequence cut_at(const SequenceData& data, std::int64_t num_tokens, int page_size) noexcept {
  const SequenceSlots slots = slots_of(data, page_size);
  // In front of the gap a slot's number is its position.
  if (num_tokens < data.kept_from()) return {.num_slots = num_tokens};
  return {.num_slots = num_tokens - slots.missing,
          .dropped_to = data.dropped_to,
          .num_dropped = data.num_dropped,
          .num_in_front = data.num_in_front};
}

PageRange dead_pages(const SequenceData& data, int page_size) noexcept {
  if (data.window.window == 0) return {};
  const std::int64_t held = slots_of(data, page_size).held;
  const std::int64_t num_unseen = held - data.window.window + 1;
  const PageRange range{.first = pages_for(data.window.num_sink_tokens, page_size),
                        .end = std::max<std::int64_t>(num_unseen, 0) / page_size};
  return range.first < range.end ? range : PageRange{};
}

bool is_alive(const SequenceData& data, std::int64_t slot, std::int64_t held) noexcept {
  const auto [window, num_sinks] = data.window;
  return window == 0 || slot < num_sinks || slot > held - window;
}

std::int64_t first_query_slot(const SequenceData& data, const SequenceSlots& slots) noexcept {
  if (data.dropped_to == 0) return 0;
  return data.dropped_to - slots.missing + data.window.window - 1;
}

void check_positions(const SequenceData& data, const SequenceSlots& slots) {
  require(slots.held >= 0 && data.length >= slots.held && data.length <= kMost, "length: got ",
          data.length, " for ", slots.held, " tokens held and ", slots.drafts,
          " draft tokens; expected at least the tokens held, and at most 2^62");
  require(data.compacted_to >= 0 && data.compacted_to <= data.length, "compacted_to: got ",
          data.compacted_to, "; expected 0 to ", data.length, ", the length");
  check_window(data.window);
  // By subtraction: each number is now known to lie within 0 and 2^62.
  const bool is_left_behind =
      data.window.window > 0 && slots.missing > 0 && data.dropped_to > 0 &&
      data.dropped_to <= data.length && data.window.window - 1 <= data.length - data.dropped_to &&
      data.num_in_front >= data.window.num_sink_tokens && data.num_in_front <= slots.held &&
      data.num_in_front <= data.dropped_to - slots.missing;
  require(data.dropped_to == 0 ? data.num_in_front == 0 : is_left_behind, "dropped_to: got ",
          data.dropped_to, " and num_in_front ", data.num_in_front, " for length ", data.length,
          ", ", slots.held, " tokens held, ", data.window.num_sink_tokens,
          " sinks and a window of ", data.window.window,
          "; expected 0, or a position that the window has left behind");
  const bool all_dropped = data.compacted_to == 0;
  require(
      data.num_dropped >= 0 && (data.num_dropped > 0) == (data.dropped_to > 0) &&
          data.num_dropped <= slots.missing &&
          slots.missing - data.num_dropped <= data.compacted_to,
      "length: got ", data.length, " for ", slots.held, " tokens held and ", data.num_dropped,
      " dropped by the window; expected the sum of them",
      all_dropped ? "" : concat(", or at most ", data.compacted_to, " more, which keep left out"));
}

void check_sequence(const SequenceData& data, int page_size) {
  const bool has_pages = !data.kv_page_indices.empty();
  require(has_pages ? data.last_page_len >= 1 && data.last_page_len <= page_size
                    : data.last_page_len == 0,
          "last_page_len: got ", data.last_page_len, " for ", data.kv_page_indices.size(),
          " pages of ", page_size, "; expected ", has_pages ? "1 to page_size" : "0");
  if (!data.tree_parents.empty()) check_tree(data.tree_parents);
  require(data.length >= 0, "length: got ", data.length, "; expected at least 0");
  check_positions(data, slots_of(data, page_size));
}

}  // namespace seqattn
