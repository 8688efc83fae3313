#pragma once

#include <cstdint>
#include <iosfwd>
#include <map>
#include <vector>

#include "seqattn/cache_descriptor.h"

namespace seqattn::testing {

// Everything that one can see of a pool: the free list in its order, and the counts.
struct PoolState {
  std::vector<PageId> free_pages;
  std::vector<std::int32_t> ref_counts;
  std::vector<std::uint32_t> generations;
  friend bool operator==(const PoolState&, const PoolState&) = default;
};

struct SequenceState {
  std::vector<PageId> pages;
  int last_page_len = 0;
  std::int64_t length = 0;
  SlidingWindow window = {};
  std::int64_t dropped_to = 0;
  std::int64_t num_dropped = 0;
  std::int64_t compacted_to = 0;
  std::vector<std::int32_t> tree_parents = {};
  friend bool operator==(const SequenceState&, const SequenceState&) = default;
};

// Everything that one can see of a descriptor and its pool.
struct DescriptorState {
  PoolState pool;
  std::map<SeqId, SequenceState> sequences;
  friend bool operator==(const DescriptorState&, const DescriptorState&) = default;
};

PoolState state_of(const PagePool& pool);
DescriptorState state_of(const CacheDescriptor& descriptor);

// For messages of failed comparisons.
std::ostream& operator<<(std::ostream& out, const PoolState& state);
std::ostream& operator<<(std::ostream& out, const DescriptorState& state);

}  // namespace seqattn::testing
