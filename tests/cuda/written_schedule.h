#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "attention_schedule.h"

// The schedule of the CUDA backend as its kernels find it: written into memory, and read back.
// Nothing in here needs CUDA.
namespace seqattn::testing {

struct Lengths {
  std::int64_t q_len = 0;
  std::int64_t kv_len = 0;
  bool has_mask = false;  // one that lets everything through
};

// A causal attention.
ScheduleOptions options_of(int num_qo_heads, int num_kv_heads, int head_dim, int page_size = 16);

// A batch of such rows over pages 0, 1, ...
AttentionPlan plan_of(const std::vector<Lengths>& lengths, int page_size);

// As blocks of FA2 see them: `row`, and which of its query tiles and chunks of keys.
struct Block {
  std::int32_t row = 0, q_tile = 0, chunk = 0, chunk_size = 0;
  friend bool operator==(const Block&, const Block&) = default;
};

struct Fa3Item {
  Fa3Tile tile;
  std::int32_t head = 0;
};

class WrittenSchedule {
 public:
  // Memory is filled with a pattern first, and has a margin of the same behind it.
  WrittenSchedule(const ScheduleOptions& options, const AttentionPlan& plan);

  const Schedule& schedule() const { return schedule_; }
  const ScheduleLayout& layout() const { return schedule_.layout; }
  bool margin_is_untouched() const;

  template <class T>
  std::span<const T> at(std::size_t offset, std::int64_t count) const {
    const auto* const begin = reinterpret_cast<const std::byte*>(memory_.data()) + offset;
    return {reinterpret_cast<const T*>(begin), static_cast<std::size_t>(count)};
  }
  std::span<const std::int32_t> ints(std::size_t offset, std::int64_t count) const {
    return at<std::int32_t>(offset, count);
  }
  std::span<const std::uint8_t> bytes(std::size_t offset, std::int64_t count) const {
    return at<std::uint8_t>(offset, count);
  }
  // The first `count` blocks of a list.
  std::vector<Block> blocks(const ScheduleLayout::Blocks& offsets, std::int64_t count) const;
  std::vector<Block> small(bool has_mask, int tile) const;
  std::vector<Block> large(bool has_mask) const;  // those of large rows
  std::vector<Block> fa3_as_fa2() const;          // those that stand in for FA3
  // Items by thread block, of so many.
  std::vector<std::vector<Fa3Item>> fa3(int num_blocks, int num_heads) const;

 private:
  Schedule schedule_;
  std::vector<std::int64_t> memory_;
};

}  // namespace seqattn::testing
