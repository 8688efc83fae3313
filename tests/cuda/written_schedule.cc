#include "written_schedule.h"

#include <algorithm>

namespace seqattn::testing {
namespace {

constexpr std::int64_t kPattern = 0x5a5a5a5a5a5a5a5a;
constexpr std::size_t kMargin = 64;  // of memory_'s elements

}  // namespace

ScheduleOptions options_of(int num_qo_heads, int num_kv_heads, int head_dim, int page_size) {
  ScheduleOptions options;
  options.shape.num_qo_heads = num_qo_heads;
  options.shape.num_kv_heads = num_kv_heads;
  options.shape.head_dim = options.shape.head_dim_v = head_dim;
  options.shape.page_size = page_size;
  options.num_sms = 132;
  return options;
}

AttentionPlan plan_of(const std::vector<Lengths>& lengths, int page_size) {
  AttentionPlan plan;
  for (const Lengths& row : lengths) {
    plan.rows.push_back({.page_begin = static_cast<std::int64_t>(plan.page_indices.size()),
                         .kv_len = row.kv_len,
                         .q_begin = plan.num_q_tokens,
                         .q_len = row.q_len});
    plan.num_q_tokens += row.q_len;
    for (std::int64_t token = 0; token < row.kv_len; token += page_size) {
      plan.page_indices.push_back(static_cast<PageId>(plan.page_indices.size()));
    }
  }
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

std::span<const std::int32_t> WrittenSchedule::ints(std::size_t offset, std::int64_t count) const {
  const auto* const begin = reinterpret_cast<const std::byte*>(memory_.data()) + offset;
  return {reinterpret_cast<const std::int32_t*>(begin), static_cast<std::size_t>(count)};
}

std::span<const std::uint8_t> WrittenSchedule::bytes(std::size_t offset, std::int64_t count) const {
  return {reinterpret_cast<const std::uint8_t*>(memory_.data()) + offset,
          static_cast<std::size_t>(count)};
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

std::vector<Block> WrittenSchedule::small(int tile) const {
  const auto i = static_cast<std::size_t>(tile);
  return blocks(layout().small[i], schedule_.counts.small_blocks[i]);
}

std::vector<Block> WrittenSchedule::large() const {
  return blocks(layout().large, schedule_.counts.fa2_tiles);
}

std::vector<Block> WrittenSchedule::fa3_as_fa2() const {
  auto list = blocks(layout().large, schedule_.counts.fa2_tiles + schedule_.counts.fa3_as_fa2);
  list.erase(list.begin(), list.begin() + schedule_.counts.fa2_tiles);
  return list;
}

std::vector<std::vector<Fa3Item>> WrittenSchedule::fa3(int num_sms) const {
  const auto work = ints(layout().fa3_work, num_sms + 1);
  std::vector<std::vector<Fa3Item>> lists;
  for (std::size_t block = 0; block + 1 < work.size(); ++block) {
    auto& list = lists.emplace_back();
    for (std::int32_t i = work[block]; i < work[block + 1]; ++i) {
      const auto at = [&](std::size_t offset) { return ints(offset, i + 1).back(); };
      list.push_back({.q_tile = at(layout().fa3_q_tile),
                      .q_begin = at(layout().fa3_q_begin),
                      .page_begin = at(layout().fa3_page_begin),
                      .q_len = at(layout().fa3_q_len),
                      .kv_len = at(layout().fa3_kv_len),
                      .head = at(layout().fa3_head),
                      .row = at(layout().fa3_row)});
    }
  }
  return lists;
}

}  // namespace seqattn::testing
