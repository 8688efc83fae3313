#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

namespace seqattn::testing {

inline void require(bool condition) {
  if (!condition) throw InvalidArgumentError("the model refuses");
}

// What a sequence is meant to hold, slot by slot.
struct SequenceModel {
  std::vector<PageId> pages;
  std::int64_t length = 0;
  SlidingWindow window = {};
  // What each slot holds: tokens are numbered as they come. `keep` numbers anew.
  std::vector<std::int64_t> tokens = {};
  std::int64_t offset = 0;  // of positions to numbers
  std::int64_t floor = 0;   // the length when tokens were last numbered anew
  std::vector<std::int32_t> parents = {};

  std::int64_t next() const { return length - offset; }  // the number of the next token
  std::int64_t num_slots() const {
    return static_cast<std::int64_t>(tokens.size() + parents.size());
  }
  bool holds(std::int64_t token) const;
  // Whether a query numbered so finds all that the window lets it see.
  bool finds_all(std::int64_t query, const SlidingWindow& window) const;
  bool sees(std::int64_t query, std::int64_t token) const;
  std::int64_t first_missing() const;  // of the tokens; the number of the next one where none is
  std::int64_t dropped_to() const;     // these as SequenceData has them
  std::int64_t num_in_front() const { return dropped_to() == 0 ? 0 : first_missing(); }
  std::int64_t first_query() const;  // as RowWindow has it
  std::int64_t num_missing() const { return next() - static_cast<std::int64_t>(tokens.size()); }
  std::int64_t num_dropped() const { return length - static_cast<std::int64_t>(tokens.size()); }

  // These leave `pages` to the caller, and throw where the calls that they are part of ought to.
  void grow(std::int64_t num_tokens);
  void set_window(SlidingWindow new_window);
  void commit(std::span<const std::int32_t> path);
  void check_path(std::span<const std::int32_t> path) const;
  void keep(std::span<const std::int64_t> slots);
  void check_slots(std::span<const std::int64_t> slots) const;
  void cut(std::int64_t num_tokens);
  // Drops the full pages of which the next token sees nothing; returns which.
  std::vector<std::size_t> drop_dead_pages(int page_size);
};

}  // namespace seqattn::testing
