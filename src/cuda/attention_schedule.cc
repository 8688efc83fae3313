#include "attention_schedule.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>
#include <span>

#include "decode/decode_runs.h"
#include "message.h"
#include "seqattn/error.h"
#include "table_keeper.h"

namespace seqattn {
namespace {

constexpr std::int64_t kMaxUint32 = std::numeric_limits<std::uint32_t>::max();

// Costliest first; of equal ones, in the order of the batch.
std::vector<Fa3Tile> sorted_fa3_tiles(const ScheduleOptions& options, const AttentionPlan& plan,
                                      std::int64_t count) {
  const AttentionShape& shape = options.shape;
  const std::int64_t tile_rows = fa3_tile_rows(shape);
  std::vector<Fa3Tile> tiles;
  std::vector<std::uint64_t> keys;  // by cost, falling, then by place
  tiles.reserve(static_cast<std::size_t>(count));
  keys.reserve(static_cast<std::size_t>(count));
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const AttentionRow& row = plan.rows[i];
    if (path_of(options, row) != RowPath::kFa3) continue;
    for (std::int64_t first = 0; first < row.q_len; first += tile_rows) {
      const std::int64_t position = row.kv_len - row.q_len + first;
      std::int64_t end = row.kv_len, begin = 0;
      if (shape.causal) end = std::min(end, position + tile_rows);
      if (shape.window_left >= 0) begin = std::max<std::int64_t>(0, position - shape.window_left);
      // Start and end of a tile take about as long as two tiles of keys.
      const auto cost = static_cast<std::uint64_t>(end - begin + 2 * tile_rows);
      keys.push_back(~cost << 32 | tiles.size());
      tiles.push_back({static_cast<std::int32_t>(i), static_cast<std::int32_t>(first / tile_rows)});
    }
  }
  std::sort(keys.begin(), keys.end());
  std::vector<Fa3Tile> sorted;
  sorted.reserve(tiles.size());
  for (const std::uint64_t key : keys) sorted.push_back(tiles[key & kMaxUint32]);
  return sorted;
}

// Chooses the limit of runs, by which items are counted.
void count_items(const ScheduleOptions& options, const std::vector<decode::Cut>& cuts,
                 ScheduleCounts& counts) {
  counts.run_limit =
      decode::run_limit_of(cuts, chunk_rule_of(options.shape), options.decode_blocks);
  for (const decode::Cut& cut : cuts) {
    counts.decode_items += decode::num_items(cut, counts.run_limit);
  }
}

// `cuts`: of decode's rows.
ScheduleCounts count(const ScheduleOptions& options, const AttentionPlan& plan,
                     std::vector<decode::Cut>& cuts) {
  const AttentionShape& shape = options.shape;
  ScheduleCounts counts;
  counts.rows = static_cast<std::int64_t>(plan.rows.size());
  counts.pages = static_cast<std::int64_t>(plan.page_indices.size());
  if (options.has_decode()) cuts.reserve(plan.rows.size());
  for (const AttentionRow& row : plan.rows) {
    const std::int64_t query_rows = row.q_len * shape.group_size();
    const std::int64_t fa2_tiles = ceil_div(query_rows, largest_tile_rows(shape));
    const RowPath path = path_of(options, row);
    if (has_scales(shape.kv_dtype) && reads_wide_pages(path)) {
      counts.wide_pages += ceil_div(row.kv_len, shape.page_size);
    }
    switch (path) {
      case RowPath::kNone:
        break;
      case RowPath::kDecode:
        cuts.push_back(decode_cut(shape, row.q_len, row.kv_len));
        counts.decode_rows = std::max(counts.decode_rows, query_rows);
        break;
      case RowPath::kSmall: {
        const int tile = std::min(small_tile(shape, query_rows), kNumTiles - 1);
        const std::int64_t chunks = chunks_of(shape, row, tile).count;
        counts.small_tokens += row.q_len;
        counts.small_blocks[row.needs_mask()][tile] += chunks;
        counts.partials += row.q_len * chunks;
        break;
      }
      case RowPath::kLarge:
        counts.fa2_tiles[row.needs_mask()] += fa2_tiles;
        break;
      case RowPath::kFa3:
        counts.fa3_as_fa2 += fa2_tiles;
        counts.fa3_tiles += ceil_div(row.q_len, fa3_tile_rows(shape));
        break;
    }
    counts.mask_bytes += mask_bytes_of(row);
  }
  if (options.has_decode()) count_items(options, cuts, counts);
  return counts;
}

bool one_chunk_each(const ScheduleOptions& options, const AttentionPlan& plan) {
  if (plan.needs_mask()) return false;  // a query may see nothing, which the merge knows
  return std::all_of(plan.rows.begin(), plan.rows.end(), [&](const AttentionRow& row) {
    const RowPath path = path_of(options, row);
    if (path != RowPath::kSmall) return path == RowPath::kNone;
    const int tile = small_tile(options.shape, row.q_len * options.shape.group_size());
    return tile < kNumTiles && chunks_of(options.shape, row, tile).count == 1;
  });
}

// The largest counts of any batch within the capacity; all its rows are small, or of decode.
ScheduleCounts largest_counts(const ScheduleOptions& options) {
  const PlanCapacity& capacity = options.capacity;
  const AttentionShape& shape = options.shape;
  const std::int64_t group = shape.group_size();
  const std::int64_t longest =
      capacity.max_q_len > 0 ? capacity.max_q_len : most_captured_queries(options);
  const std::int64_t most_keys = capacity.max_pages * shape.page_size;
  const std::int64_t chunks = most_chunks(shape, capacity.max_sequences, most_keys);
  ScheduleCounts counts;
  counts.rows = capacity.max_sequences;
  counts.pages = capacity.max_pages;
  if (options.has_decode()) {
    counts.decode_rows = std::min<std::int64_t>(longest * group, options.decode_rows);
    counts.decode_items = decode::most_items(
        capacity.max_sequences, ceil_div(most_keys, decode::kTileTokens), chunk_rule_of(shape));
    if (longest * group <= options.decode_rows) {  // no row is small
      counts.pages = TableKeeper::room_for(capacity.max_sequences, capacity.max_pages);
      return counts;
    }
  }
  counts.small_tokens = capacity.max_q_tokens;
  for (int tile = 0; tile < kNumTiles; ++tile) {
    const bool in_use = tile == 0 || kTileRows[tile - 1] < longest * group;
    if (in_use) counts.small_blocks[false][tile] = chunks;
  }
  counts.partials =
      std::min(longest * chunks, capacity.max_q_tokens * most_chunks_of_row(shape, most_keys));
  return counts;
}

std::size_t take(ScheduleLayout& layout, std::int64_t count, std::size_t element_bytes = 4) {
  const std::size_t offset = layout.bytes;
  const std::size_t bytes = static_cast<std::size_t>(count) * element_bytes;
  layout.bytes += (bytes + 15) / 16 * 16;
  return offset;
}

ScheduleLayout::Blocks take_blocks(ScheduleLayout& layout, std::int64_t count) {
  ScheduleLayout::Blocks blocks;
  blocks.row = take(layout, count);
  blocks.q_tile = take(layout, count);
  blocks.kv_chunk = take(layout, count);
  blocks.chunk_size = take(layout, count);
  blocks.is_valid = take(layout, count, 1);
  return blocks;
}

ScheduleLayout lay_out(const ScheduleCounts& size) {
  ScheduleLayout layout{};
  layout.size = size;
  layout.totals = take(layout, kNumTotals);
  layout.page_indptr = take(layout, size.rows + 1);
  layout.last_page_len = take(layout, size.rows);
  const std::int64_t num_planned = size.decode_items > 0 ? size.rows : 0;
  layout.planned_rows = take(layout, num_planned, sizeof(decode::PlannedRow));
  layout.planned_items = take(layout, num_planned, sizeof(decode::PlannedItems));
  layout.q_indptr = take(layout, size.rows + 1);
  layout.q_position = take(layout, size.rows);
  layout.out_begin = take(layout, size.rows);
  layout.item_indptr = take(layout, size.decode_items > 0 ? size.rows + 1 : 0);
  layout.is_large = take(layout, size.rows, 1);
  layout.mask_indptr = take(layout, size.mask_bytes > 0 ? size.rows : 0);
  layout.merge_token = take(layout, size.small_tokens);
  layout.merge_begin = take(layout, size.small_tokens);
  layout.merge_chunks = take(layout, size.small_tokens);
  for (const bool has_mask : {false, true}) {
    for (int tile = 0; tile < kNumTiles; ++tile) {
      layout.small[has_mask][tile] = take_blocks(layout, size.small_blocks[has_mask][tile]);
    }
    const std::int64_t fa3_as_fa2 = has_mask ? 0 : size.fa3_as_fa2;
    layout.large[has_mask] = take_blocks(layout, size.fa2_tiles[has_mask] + fa3_as_fa2);
  }
  layout.fa3_tiles = take(layout, size.fa3_tiles, sizeof(Fa3Tile));
  layout.mask_bits = take(layout, size.mask_bytes, 1);
  layout.wide_sources = take(layout, size.wide_pages);
  layout.wide_indices = take(layout, size.wide_pages > 0 ? size.pages : 0);
  layout.page_indices = take(layout, size.pages);
  return layout;
}

void check_limit(const char* what, std::int64_t value, std::int64_t most) {
  if (value <= most) return;
  throw UnsupportedError(concat("plan: ", what, " is ", value, "; kernels on a device take up to ",
                                most, ": plan the batch in parts"));
}

// Tokens that the pages of a batch, of its capacity if there is one, have room for.
std::int64_t page_slots(const ScheduleOptions& options, std::int64_t num_pages) {
  const std::int64_t pages = options.fixed_size() ? options.capacity.max_pages : num_pages;
  return pages * options.shape.page_size;
}

// Before anything is counted: tiles of keys then fit 32 bits.
void check_pages(const ScheduleOptions& options, const AttentionPlan& plan) {
  const auto num_pages = static_cast<std::int64_t>(plan.page_indices.size());
  check_limit("pages x page_size", page_slots(options, num_pages), kMaxUint32);
}

void check_limits(const ScheduleOptions& options, const AttentionPlan& plan,
                  const ScheduleCounts& counts) {
  const AttentionShape& shape = options.shape;
  const std::int64_t token_elements = std::int64_t{shape.num_qo_heads} * shape.head_dim;
  check_limit("query tokens x num_qo_heads x head_dim", plan.num_q_tokens * token_elements,
              kMaxUint32);
  check_limit("partial results x num_qo_heads x head_dim", counts.partials * token_elements,
              kMaxUint32);
  check_limit("the entries of page tables, with room to grow,", counts.pages,
              std::numeric_limits<std::int32_t>::max());
  check_limit("the size of the masks in bytes", counts.mask_bytes,
              std::numeric_limits<std::int32_t>::max());
}

void check_capacity(const ScheduleOptions& options, const AttentionPlan& plan) {
  if (plan.needs_mask()) {
    throw UnsupportedError(
        "plan: a mask, a sequence with a window or one with a tree, with a capacity; on a device "
        "masks, which windows and trees become, are not part of a captured graph: plan them with "
        "an object without a capacity");
  }
  const auto check_row = [](std::size_t row, const char* what, std::int64_t count,
                            std::int64_t most) {
    if (count <= most) return;
    throw UnsupportedError(concat("plan: row ", row, " has ", count, what, "; with a capacity a ",
                                  "device takes up to ", most,
                                  ": plan longer ones with an object without a capacity"));
  };
  const std::int64_t most_queries = most_captured_queries(options);
  const bool is_decode_alone = keeps_sequences(options);  // no room for what other kernels take
  for (std::size_t i = 0; i < plan.rows.size(); ++i) {
    const AttentionRow& row = plan.rows[i];
    check_row(i, " queries", row.q_len, most_queries);
    if (is_decode_alone && row.q_len > 0) check_row(i, " keys", row.kv_len, decode::kMaxKeys);
  }
}

}  // namespace

std::int64_t most_captured_queries(const ScheduleOptions& options) {
  const AttentionShape& shape = options.shape;
  // Pages of 8 bits are not widened in a captured graph.
  const int most_rows = has_scales(shape.kv_dtype) ? options.decode_rows : largest_tile_rows(shape);
  return most_rows / shape.group_size();
}

decode::ChunkRule chunk_rule_of(const AttentionShape& shape) {
  return {shape.num_kv_heads, shape.group_size(), has_scales(shape.kv_dtype)};
}

bool keeps_sequences(const ScheduleOptions& options) {
  return options.has_decode() &&
         (!options.fixed_size() || largest_counts(options).small_tokens == 0);
}

bool kept_tables_fit(const ScheduleOptions& options, std::int64_t num_rows,
                     std::int64_t num_pages) {
  return page_slots(options, num_pages) <= kMaxUint32 &&
         TableKeeper::room_for(num_rows, num_pages) <= std::numeric_limits<std::int32_t>::max();
}

Schedule kept_schedule(const ScheduleOptions& options, const SequenceBatch& batch,
                       std::int64_t table_room) {
  Schedule schedule;
  schedule.counts.rows = static_cast<std::int64_t>(batch.rows.size());
  schedule.num_q_tokens = batch.totals.num_q_tokens;
  ScheduleCounts size;
  if (options.fixed_size()) {
    size = largest_counts(options);
  } else {
    const auto with_room = [](std::int64_t count) {
      constexpr std::int64_t kLeast = 64;
      return static_cast<std::int64_t>(
          std::bit_ceil(static_cast<std::uint64_t>(std::max(count, kLeast))));
    };
    std::int64_t num_items = 0;
    for (const SequenceRow& row : batch.rows) {
      if (row.q_len == 0) continue;
      num_items += decode_cut(options.shape, row.q_len, row.kv_len).num_chunks;
    }
    size.rows = with_room(schedule.counts.rows);
    size.pages = table_room;
    size.decode_rows = batch.totals.max_q_len * options.shape.group_size();
    size.decode_items = with_room(num_items);
  }
  schedule.counts.decode_items = size.decode_items;
  schedule.layout = lay_out(size);
  return schedule;
}

decode::Cut decode_cut(const AttentionShape& shape, std::int64_t q_len, std::int64_t kv_len) {
  const decode::Tiles tiles =
      decode::visible_tiles(static_cast<int>(kv_len), static_cast<int>(q_len),
                            std::min(shape.window_left, decode::kMaxKeys));
  return decode::cut_of(tiles.count, static_cast<int>(q_len), chunk_rule_of(shape));
}

Schedule measure_schedule(const ScheduleOptions& options, const AttentionPlan& plan) {
  check_pages(options, plan);
  Schedule schedule;
  schedule.counts = count(options, plan, schedule.decode_cuts);
  schedule.num_q_tokens = plan.num_q_tokens;
  schedule.one_chunk_each = one_chunk_each(options, plan);
  if (options.fixed_size()) check_capacity(options, plan);
  const ScheduleCounts size = options.fixed_size() ? largest_counts(options) : schedule.counts;
  check_limits(options, plan, size);
  schedule.layout = lay_out(size);
  schedule.fa3_tiles = sorted_fa3_tiles(options, plan, schedule.counts.fa3_tiles);
  return schedule;
}

}  // namespace seqattn
