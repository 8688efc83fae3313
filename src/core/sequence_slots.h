#pragma once

#include <cstdint>

#include "seqattn/cache_descriptor.h"

// Positions, slots and pages of one sequence: what its window leaves of it, and where it may end.
namespace seqattn {

constexpr std::int64_t pages_for(std::int64_t num_tokens, int page_size) noexcept {
  return num_tokens == 0 ? 0 : (num_tokens - 1) / page_size + 1;
}

constexpr int last_page_len_for(std::int64_t num_tokens, int page_size) noexcept {
  return num_tokens == 0 ? 0 : static_cast<int>((num_tokens - 1) % page_size) + 1;
}

// The tokens that so many pages hold, of which the last one holds last_page_len.
constexpr std::int64_t tokens_of(std::int64_t num_pages, int last_page_len,
                                 int page_size) noexcept {
  return num_pages == 0 ? 0 : (num_pages - 1) * page_size + last_page_len;
}

// The slots of a sequence.
struct SequenceSlots {
  std::int64_t held = 0;     // tokens of the sequence, in the first slots
  std::int64_t drafts = 0;   // of a pending tree, in the slots behind
  std::int64_t missing = 0;  // held == length - missing; position p lies in slot p - missing, where
                             // it is held at all and not in front of kept_from()
};
SequenceSlots slots_of(const SequenceData& data, int page_size) noexcept;

// A number that was never returned before, for SequenceData::table_version.
std::uint64_t next_table_version() noexcept;

// Throws InvalidArgumentError for a negative number, one above 2^62, or sinks without a window.
void check_window(const SlidingWindow& window);

// Throws InvalidArgumentError unless all that `window` lets the next token see is held.
void check_window_is_held(const SequenceData& data, const SlidingWindow& window);

// Throws InvalidArgumentError unless num_tokens is from 0 to the length, and the next token of a
// sequence that ends there sees nothing that was dropped. `seq_id` is for the message.
void check_can_end_at(const SequenceData& data, std::int64_t num_tokens, SeqId seq_id);

// The first num_tokens positions of a sequence that can end there, without its pages: those are the
// first pages_for(slots_of(...).held) ones.
struct CutSequence {
  std::int64_t num_slots = 0;
  std::int64_t dropped_to = 0;
  std::int64_t num_dropped = 0;
  std::int64_t num_in_front = 0;
};
CutSequence cut_at(const SequenceData& data, std::int64_t num_tokens, int page_size) noexcept;

// Entries [first, end) of the page table: full pages of which neither the next token nor a later
// one sees anything.
struct PageRange {
  std::int64_t first = 0;
  std::int64_t end = 0;
};
PageRange dead_pages(const SequenceData& data, int page_size) noexcept;

// Whether the next token or a later one sees this slot of the sequence.
bool is_alive(const SequenceData& data, std::int64_t slot, std::int64_t held) noexcept;

// The first slot that may still ask: the window of those in front of it has been dropped.
std::int64_t first_query_slot(const SequenceData& data, const SequenceSlots& slots) noexcept;

// Throws InvalidArgumentError unless the fields, but for pages and tree, are those of a sequence
// that can be, whose slots these are.
void check_positions(const SequenceData& data, const SequenceSlots& slots);

// The same for all of its fields.
void check_sequence(const SequenceData& data, int page_size);

}  // namespace seqattn
