#include "compact_transaction.h"

#include <algorithm>
#include <cstddef>
#include <utility>

#include "message.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "sequence_slots.h"

namespace seqattn {

void CompactTransaction::prepare(const KeptSlots& kept, Stream stream) {
  std::int64_t first_moved = kept.num_unmoved;
  while (first_moved < kept.size() && kept[first_moved] == first_moved) ++first_moved;
  pool_.begin();
  list_pages(kept, first_moved);
  if (num_missing() > 0) {
    reclaim();
    // Shares that the reclaimer gave up make copies unnecessary: count again.
    list_pages(kept, first_moved);
    if (num_missing() > 0) throw_no_page();
  }
  take_pages();
  list_moves(kept, first_moved);
  pool_.drop(given_up_);
  pool_.retain();
  if (descriptor_.manager_ != nullptr) descriptor_.manager_->enqueue_moves(moves_, stream);
}

void CompactTransaction::list_pages(const KeptSlots& kept, std::int64_t first_moved) {
  const int page_size = descriptor_.pool().page_size();
  const std::int64_t num_kept = kept.size();
  const std::vector<PageId>& old_pages = sequence_.kv_page_indices;
  const auto num_pages = static_cast<std::size_t>(pages_for(num_kept, page_size));
  pages_.assign(old_pages.begin(), old_pages.begin() + static_cast<std::ptrdiff_t>(num_pages));
  last_page_len_ = last_page_len_for(num_kept, page_size);
  replaced_.clear();
  given_up_.clear();
  if (first_moved < num_kept) {
    for (auto i = static_cast<std::size_t>(first_moved / page_size); i < num_pages; ++i) {
      if (descriptor_.pool().ref_count(old_pages[i]) <= 1) continue;
      replaced_.push_back(static_cast<std::int64_t>(i));
      given_up_.push_back(old_pages[i]);
    }
  }
  given_up_.insert(given_up_.end(), old_pages.begin() + static_cast<std::ptrdiff_t>(num_pages),
                   old_pages.end());
}

std::int64_t CompactTransaction::num_missing() const noexcept {
  return std::ssize(replaced_) - pool_.available();
}

void CompactTransaction::throw_no_page() const {
  throw NoPageError(std::ssize(replaced_), pool_.available(),
                    descriptor_.pool().reclaimer() != nullptr);
}

void CompactTransaction::reclaim() {
  // More than the whole pool no reclaimer can provide.
  if (std::ssize(replaced_) > descriptor_.pool().num_pages()) throw_no_page();
  const std::int64_t num_missing_pages = num_missing();
  // A page that the sequence has twice is its own still when one share has gone.
  const auto shared = std::span(given_up_).first(replaced_.size());
  std::sort(shared.begin(), shared.end());
  pool_.drop(shared.first(
      static_cast<std::size_t>(std::unique(shared.begin(), shared.end()) - shared.begin())));
  if (!pool_.reclaim(num_missing_pages)) throw_no_page();
}

void CompactTransaction::take_pages() {
  for (const std::int64_t entry : replaced_) {
    pool_.take({&pages_[static_cast<std::size_t>(entry)], 1});
  }
}

void CompactTransaction::list_moves(const KeptSlots& kept, std::int64_t first_moved) {
  const int page_size = descriptor_.pool().page_size();
  const std::int64_t num_kept = kept.size();
  if (first_moved == num_kept) return;
  // Slots in front that stay where they are move too where their page is a new one.
  const std::int64_t page = first_moved / page_size;
  const bool is_new = !replaced_.empty() && replaced_.front() == page;
  for (std::int64_t slot = is_new ? page * page_size : first_moved; slot < num_kept; ++slot) {
    const std::int64_t source = kept[slot];
    moves_.push_back(
        {.source_page = sequence_.kv_page_indices[static_cast<std::size_t>(source / page_size)],
         .source_slot = static_cast<int>(source % page_size),
         .target_page = pages_[static_cast<std::size_t>(slot / page_size)],
         .target_slot = static_cast<int>(slot % page_size)});
  }
}

void CompactTransaction::commit() noexcept {
  // The pages given up are listed in order of the old table.
  pool_.commit();
  sequence_.kv_page_indices.swap(pages_);
  sequence_.table_version = next_table_version();
  sequence_.last_page_len = last_page_len_;
}

}  // namespace seqattn
