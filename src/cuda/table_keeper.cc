#include "table_keeper.h"

#include <algorithm>
#include <cstddef>

namespace seqattn {

void TableKeeper::forget(std::int64_t room) {
  room_ = room;
  end_ = 0;
  regions_.clear();
  index_of_version_.clear();
  recent_.clear();
}

const TableUpdate& TableKeeper::update(const SequenceBatch& batch) {
  if (!try_update(batch)) {
    forget(room_);
    try_update(batch);
  }
  return update_;
}

TableKeeper::Region* TableKeeper::region_of(const SequenceRow& row, Recent& recent) {
  const auto num_pages = static_cast<std::int64_t>(row.pages.size());
  if (recent.version != row.table_version) {
    const auto [entry, is_new] = index_of_version_.try_emplace(row.table_version, regions_.size());
    if (is_new) regions_.emplace_back();
    recent = {row.table_version, entry->second};
  }
  Region& region = regions_[recent.region];
  if (region.capacity >= num_pages && region.capacity > 0) return &region;
  const std::int64_t capacity = num_pages + num_pages / kShareToGrow + kLeastToGrow;
  if (end_ + capacity > room_) return nullptr;
  region = {.begin = static_cast<std::int32_t>(end_),
            .capacity = static_cast<std::int32_t>(capacity),
            .num_pages = 0};
  end_ += capacity;
  return &region;
}

bool TableKeeper::try_update(const SequenceBatch& batch) {
  const std::size_t num_rows = batch.rows.size();
  recent_.resize(num_rows);
  runs_.clear();
  pages_.clear();
  std::vector<std::int32_t>& words = update_.words;
  const bool same_q_len = batch.same_q_len();
  words.resize((same_q_len ? 2 : 3) * num_rows);
  for (std::size_t i = 0; i < num_rows; ++i) {
    const SequenceRow& row = batch.rows[i];
    Region* const region = region_of(row, recent_[i]);
    if (region == nullptr) return false;
    const auto num_pages = static_cast<std::int32_t>(row.pages.size());
    if (region->num_pages < num_pages) {
      runs_.insert(runs_.end(), {region->begin + region->num_pages, num_pages - region->num_pages,
                                 static_cast<std::int32_t>(pages_.size())});
      pages_.insert(pages_.end(), row.pages.begin() + region->num_pages, row.pages.end());
      region->num_pages = num_pages;
    }
    words[i] = region->begin;
    words[num_rows + i] = static_cast<std::int32_t>(row.kv_len);
    if (!same_q_len) words[2 * num_rows + i] = static_cast<std::int32_t>(row.q_len);
  }
  words.insert(words.end(), runs_.begin(), runs_.end());
  words.insert(words.end(), pages_.begin(), pages_.end());
  update_.num_rows = static_cast<std::int32_t>(num_rows);
  update_.num_runs = static_cast<std::int32_t>(runs_.size() / 3);
  update_.q_len = same_q_len ? static_cast<std::int32_t>(batch.totals.max_q_len) : -1;
  return true;
}

}  // namespace seqattn
