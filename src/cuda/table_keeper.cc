#include "table_keeper.h"

#include <algorithm>
#include <cstddef>

namespace seqattn {

void TableKeeper::forget(std::int64_t room) {
  room_ = room;
  end_ = 0;
  regions_.clear();
  recent_.clear();
}

const TableUpdate& TableKeeper::update(std::span<const SequenceRow> rows) {
  if (!try_update(rows)) {
    forget(room_);
    try_update(rows);
  }
  return update_;
}

TableKeeper::Region* TableKeeper::region_of(const SequenceRow& row, Recent& recent) {
  const auto num_pages = static_cast<std::int64_t>(row.pages.size());
  if (recent.version != row.table_version) {
    const auto found = regions_.find(row.table_version);
    recent = {row.table_version, found == regions_.end() ? nullptr : &found->second};
  }
  if (recent.region != nullptr && recent.region->capacity >= num_pages) return recent.region;
  const std::int64_t capacity = num_pages + num_pages / kShareToGrow + kLeastToGrow;
  if (end_ + capacity > room_) return nullptr;
  Region& region = regions_[row.table_version];
  region = {.begin = static_cast<std::int32_t>(end_),
            .capacity = static_cast<std::int32_t>(capacity),
            .num_pages = 0};
  end_ += capacity;
  recent.region = &region;
  return &region;
}

bool TableKeeper::try_update(std::span<const SequenceRow> rows) {
  const std::size_t num_rows = rows.size();
  recent_.resize(num_rows);
  runs_.clear();
  pages_.clear();
  std::vector<std::int32_t>& words = update_.words;
  words.resize(2 * num_rows);
  bool differ = false;
  for (std::size_t i = 0; i < num_rows; ++i) {
    const SequenceRow& row = rows[i];
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
    differ |= row.q_len != rows[0].q_len;
  }
  if (differ) {
    for (const SequenceRow& row : rows) words.push_back(static_cast<std::int32_t>(row.q_len));
  }
  words.insert(words.end(), runs_.begin(), runs_.end());
  words.insert(words.end(), pages_.begin(), pages_.end());
  update_.num_rows = static_cast<std::int32_t>(num_rows);
  update_.num_runs = static_cast<std::int32_t>(runs_.size() / 3);
  update_.q_len = differ ? -1 : num_rows == 0 ? 0 : static_cast<std::int32_t>(rows[0].q_len);
  return true;
}

}  // namespace seqattn
