#include <algorithm>
#include <array>
#include <cstring>

#include "attention_schedule.h"
#include "visible_keys.h"

namespace seqattn {
namespace {

// The arrays of one schedule in host memory.
class Writer {
 public:
  Writer(const ScheduleOptions& options, const AttentionPlan& plan, const Schedule& schedule,
         std::byte* memory)
      : options_(options),
        shape_(options.shape),
        plan_(plan),
        schedule_(schedule),
        layout_(schedule.layout),
        memory_(memory) {}

  void write() {
    write_tables();
    write_rows();
    pad_rows();
    std::copy(schedule_.fa3_tiles.begin(), schedule_.fa3_tiles.end(),
              at<Fa3Tile>(layout_.fa3_tiles));
    std::int32_t* const totals = ints(layout_.totals);
    totals[kTotalRows] = static_cast<std::int32_t>(schedule_.counts.rows);
    totals[kTotalTokens] = static_cast<std::int32_t>(plan_.num_q_tokens);
    totals[kTotalSmallTokens] = static_cast<std::int32_t>(num_small_tokens_);
    totals[kRunLimit] = schedule_.counts.run_limit;
  }

 private:
  template <class T>
  T* at(std::size_t offset) const {
    return reinterpret_cast<T*>(memory_ + offset);
  }
  std::int32_t* ints(std::size_t offset) const { return at<std::int32_t>(offset); }

  void write_tables();
  void write_rows();
  void write_decode(std::size_t i, const decode::Cut& cut);
  void write_small(std::size_t i);
  void write_large(std::size_t i, std::int64_t& next_block) const;
  void write_mask(const AttentionRow& row, std::uint8_t* bits) const;
  void write_wide_pages(const AttentionRow& row);
  void pad_rows();

  void put_block(const ScheduleLayout::Blocks& blocks, std::int64_t at, std::size_t row,
                 std::int64_t q_tile, std::int64_t chunk, std::int64_t chunk_size) const {
    ints(blocks.row)[at] = static_cast<std::int32_t>(row);
    ints(blocks.q_tile)[at] = static_cast<std::int32_t>(q_tile);
    ints(blocks.kv_chunk)[at] = static_cast<std::int32_t>(chunk);
    ints(blocks.chunk_size)[at] = static_cast<std::int32_t>(chunk_size);
  }

  const ScheduleOptions& options_;
  const AttentionShape& shape_;
  const AttentionPlan& plan_;
  const Schedule& schedule_;
  const ScheduleLayout& layout_;
  std::byte* memory_;
  std::array<std::array<std::int64_t, kNumTiles>, 2> num_small_blocks_ = {};
  std::int64_t num_small_tokens_ = 0;
  std::int64_t num_partials_ = 0;
  std::int64_t num_decode_items_ = 0;
  std::int64_t num_wide_pages_ = 0;
};

void Writer::write_tables() {
  std::copy(plan_.page_indices.begin(), plan_.page_indices.end(), ints(layout_.page_indices));
  for (std::size_t i = 0; i < plan_.rows.size(); ++i) {
    const AttentionRow& row = plan_.rows[i];
    ints(layout_.page_indptr)[i] = static_cast<std::int32_t>(row.page_begin);
    ints(layout_.last_page_len)[i] =
        static_cast<std::int32_t>(row.kv_len == 0 ? 0 : (row.kv_len - 1) % shape_.page_size + 1);
    ints(layout_.q_indptr)[i] = static_cast<std::int32_t>(row.q_begin);
    ints(layout_.q_position)[i] = static_cast<std::int32_t>(row.kv_len - row.q_len);
  }
}

void Writer::write_rows() {
  if (layout_.size.wide_pages > 0) {
    std::fill_n(ints(layout_.wide_indices), schedule_.counts.pages, 0);  // of rows of decode
  }
  std::array<std::int64_t, 2> next_large = {};
  auto next_cut = schedule_.decode_cuts.begin();
  std::int64_t next_fa3 = schedule_.counts.fa2_tiles[false], mask_begin = 0;
  for (std::size_t i = 0; i < plan_.rows.size(); ++i) {
    const AttentionRow& row = plan_.rows[i];
    ints(layout_.out_begin)[i] = static_cast<std::int32_t>(row.q_begin);
    if (mask_bytes_of(row) > 0) {
      ints(layout_.mask_indptr)[i] = static_cast<std::int32_t>(mask_begin);
      write_mask(row, at<std::uint8_t>(layout_.mask_bits) + mask_begin);
      mask_begin += mask_bytes_of(row);
    }
    const RowPath path = path_of(options_, row);
    if (layout_.size.decode_items > 0) {
      ints(layout_.item_indptr)[i] = static_cast<std::int32_t>(num_decode_items_);
    }
    memory_[layout_.is_large + i] = std::byte{path == RowPath::kLarge || path == RowPath::kFa3};
    if (layout_.size.wide_pages > 0 && reads_wide_pages(path)) write_wide_pages(row);
    switch (path) {
      case RowPath::kNone:
        break;
      case RowPath::kDecode:
        write_decode(i, *next_cut++);
        break;
      case RowPath::kSmall:
        write_small(i);
        break;
      case RowPath::kLarge:
        write_large(i, next_large[row.needs_mask()]);
        break;
      case RowPath::kFa3:
        write_large(i, next_fa3);
        break;
    }
  }
}

void Writer::write_decode(std::size_t i, const decode::Cut& cut) {
  const AttentionRow& row = plan_.rows[i];
  at<decode::PlannedRow>(layout_.planned_rows)[i] = {
      .page_begin = static_cast<std::int32_t>(row.page_begin),
      .kv_len = static_cast<std::int32_t>(row.kv_len),
      .q_begin = static_cast<std::int32_t>(row.q_begin),
      .q_len = static_cast<std::int32_t>(row.q_len)};
  auto& items = at<decode::PlannedItems>(layout_.planned_items)[i];
  items = decode::planned_items(cut, schedule_.counts.run_limit,
                                static_cast<std::int32_t>(num_decode_items_));
  num_decode_items_ += items.count;
}

void Writer::write_small(std::size_t i) {
  const AttentionRow& row = plan_.rows[i];
  const int tile = std::min(small_tile(shape_, row.q_len * shape_.group_size()), kNumTiles - 1);
  const Chunks chunks = chunks_of(shape_, row, tile);
  ints(layout_.out_begin)[i] = static_cast<std::int32_t>(num_partials_);
  for (std::int64_t chunk = 0; chunk < chunks.count; ++chunk) {
    put_block(layout_.small[row.needs_mask()][tile], num_small_blocks_[row.needs_mask()][tile]++, i,
              0, chunk, chunks.size);
  }
  for (std::int64_t j = 0; j < row.q_len; ++j, ++num_small_tokens_) {
    ints(layout_.merge_token)[num_small_tokens_] = static_cast<std::int32_t>(row.q_begin + j);
    ints(layout_.merge_begin)[num_small_tokens_] =
        static_cast<std::int32_t>(num_partials_ + j * chunks.count);
    ints(layout_.merge_chunks)[num_small_tokens_] = static_cast<std::int32_t>(chunks.count);
  }
  num_partials_ += row.q_len * chunks.count;
}

void Writer::write_large(std::size_t i, std::int64_t& next_block) const {
  const AttentionRow& row = plan_.rows[i];
  const std::int64_t tiles = ceil_div(row.q_len * shape_.group_size(), largest_tile_rows(shape_));
  // The longest first: under a causal mask the last tile sees the most keys.
  for (std::int64_t tile = tiles - 1; tile >= 0; --tile) {
    put_block(layout_.large[row.needs_mask()], next_block++, i, tile, 0, row.kv_len);
  }
}

void Writer::write_mask(const AttentionRow& row, std::uint8_t* bits) const {
  std::memset(bits, 0, static_cast<std::size_t>(mask_bytes_of(row)));
  const std::int64_t first_masked = row.kv_len - row.num_masked_keys;
  for (std::int64_t j = 0; j < row.q_len; ++j) {
    const std::uint8_t* mask = plan_.mask.data() + row.mask_begin + j * row.num_masked_keys;
    const KeySet keys = visible_keys(shape_, row, j);
    for (const KVRange& range : {keys.sinks, keys.window}) {
      for (std::int64_t t = range.begin; t < range.end; ++t) {
        if (t >= first_masked && mask[t - first_masked] == 0) continue;
        const std::int64_t at = j * row.kv_len + t;
        bits[at / 8] = static_cast<std::uint8_t>(bits[at / 8] | 1u << at % 8);
      }
    }
  }
}

void Writer::write_wide_pages(const AttentionRow& row) {
  for (std::int64_t i = 0; i < ceil_div(row.kv_len, shape_.page_size); ++i, ++num_wide_pages_) {
    const std::int64_t entry = row.page_begin + i;
    ints(layout_.wide_sources)[num_wide_pages_] =
        plan_.page_indices[static_cast<std::size_t>(entry)];
    ints(layout_.wide_indices)[entry] = static_cast<std::int32_t>(num_wide_pages_);
  }
}

// What lies behind the batch: the ends of the indptrs and, where launches have a fixed size, rows
// without pages and blocks that end at once.
void Writer::pad_rows() {
  for (std::int64_t i = schedule_.counts.rows; i <= layout_.size.rows; ++i) {
    ints(layout_.page_indptr)[i] = static_cast<std::int32_t>(schedule_.counts.pages);
    ints(layout_.q_indptr)[i] = static_cast<std::int32_t>(plan_.num_q_tokens);
    if (layout_.size.decode_items > 0) {
      ints(layout_.item_indptr)[i] = static_cast<std::int32_t>(num_decode_items_);
    }
  }
  if (!options_.fixed_size()) return;
  for (int tile = 0; tile < kNumTiles; ++tile) {  // a mask and a capacity exclude each other
    const std::int64_t used = num_small_blocks_[false][tile];
    auto* const valid = at<bool>(layout_.small[false][tile].is_valid);
    std::fill_n(valid, used, true);
    std::fill_n(valid + used, layout_.size.small_blocks[false][tile] - used, false);
  }
}

}  // namespace

void write_schedule(const ScheduleOptions& options, const AttentionPlan& plan,
                    const Schedule& schedule, std::byte* memory) {
  Writer(options, plan, schedule, memory).write();
}

}  // namespace seqattn
