#include "written_schedule.h"

#include <algorithm>
#include <numeric>

namespace seqattn::testing {
namespace {

constexpr std::int64_t kPattern = 0x5a5a5a5a5a5a5a5a;
constexpr std::size_t kMargin = 64;  // of memory_'s elements

// Pages 0, 1, ...; the memory stays.
std::span<const PageId> first_pages(std::size_t count) {
  static const auto all = [] {
    std::vector<PageId> pages(std::size_t{1} << 22);
    std::iota(pages.begin(), pages.end(), 0);
    return pages;
  }();
  return std::span(all).first(count);
}

}  // namespace

ScheduleOptions options_of(int num_qo_heads, int num_kv_heads, int head_dim, int page_size) {
  ScheduleOptions options;
  options.shape.num_qo_heads = num_qo_heads;
  options.shape.num_kv_heads = num_kv_heads;
  options.shape.head_dim = options.shape.head_dim_v = head_dim;
  options.shape.page_size = page_size;
  return options;
}

AttentionPlan plan_of(const std::vector<Lengths>& lengths, int page_size) {
  AttentionPlan plan;
  std::size_t num_pages = 0;
  for (const Lengths& row : lengths) {
    plan.rows.push_back({.page_begin = static_cast<std::int64_t>(num_pages),
                         .kv_len = row.kv_len,
                         .q_begin = plan.num_q_tokens,
                         .q_len = row.q_len});
    if (row.has_mask) {
      plan.rows.back().mask_begin = static_cast<std::int64_t>(plan.mask.size());
      plan.rows.back().num_masked_keys = row.kv_len;
      plan.mask.insert(plan.mask.end(), static_cast<std::size_t>(row.q_len * row.kv_len), 1);
    }
    plan.num_q_tokens += row.q_len;
    for (std::int64_t token = 0; token < row.kv_len; token += page_size) {
      ++num_pages;
    }
  }
  plan.page_indices = first_pages(num_pages);
  return plan;
}

WrittenSchedule::WrittenSchedule(const ScheduleOptions& options, const AttentionPlan& plan)
    : schedule_(measure_schedule(options, plan)) {
  memory_.assign(schedule_.layout.bytes / sizeof(std::int64_t) + kMargin, kPattern);
  write_schedule(options, plan, schedule_, reinterpret_cast<std::byte*>(memory_.data()));
}

bool WrittenSchedule::margin_is_untouched() const {
  return std::all_of(memory_.end() - kMargin, memory_.end(),
                     [](std::int64_t x) { return x == kPattern; });
}

std::vector<Block> WrittenSchedule::blocks(const ScheduleLayout::Blocks& offsets,
                                           std::int64_t count) const {
  const auto row = ints(offsets.row, count), q_tile = ints(offsets.q_tile, count);
  const auto chunk = ints(offsets.kv_chunk, count), size = ints(offsets.chunk_size, count);
  std::vector<Block> list;
  for (std::size_t i = 0; i < row.size(); ++i) {
    list.push_back({row[i], q_tile[i], chunk[i], size[i]});
  }
  return list;
}

std::vector<Block> WrittenSchedule::small(bool has_mask, int tile) const {
  const auto i = static_cast<std::size_t>(tile);
  return blocks(layout().small[has_mask][i], schedule_.counts.small_blocks[has_mask][i]);
}

std::vector<Block> WrittenSchedule::large(bool has_mask) const {
  return blocks(layout().large[has_mask], schedule_.counts.fa2_tiles[has_mask]);
}

std::vector<Block> WrittenSchedule::fa3_as_fa2() const {
  const std::int64_t in_front = schedule_.counts.fa2_tiles[false];
  auto list = blocks(layout().large[false], in_front + schedule_.counts.fa3_as_fa2);
  list.erase(list.begin(), list.begin() + in_front);
  return list;
}

std::vector<std::vector<Fa3Item>> WrittenSchedule::fa3(int num_blocks, int num_heads) const {
  const auto tiles = at<Fa3Tile>(layout().fa3_tiles, schedule_.counts.fa3_tiles);
  const std::int64_t num_items = schedule_.counts.fa3_tiles * num_heads;
  std::vector<std::vector<Fa3Item>> lists(static_cast<std::size_t>(num_blocks));
  for (int block = 0; block < num_blocks; ++block) {
    for (int round = 0;; ++round) {
      const std::int32_t item = fa3_item(round, block, num_blocks);
      if (item >= num_items) break;
      lists[static_cast<std::size_t>(block)].push_back(
          {tiles[static_cast<std::size_t>(item / num_heads)], item % num_heads});
    }
  }
  return lists;
}

}  // namespace seqattn::testing
