#include "pool_transaction.h"

#include <algorithm>

namespace seqattn {

void PoolTransaction::begin() noexcept {
  old_tail_ = pool_->tail_;
  front_ = pool_->ring_index(pool_->head_);
  num_taken_ = 0;
  dropped_.clear();
  given_back_.clear();
  num_recycled_ = 0;
  retains_ = false;
}

void PoolTransaction::drop(PageIds pages) {
  dropped_.emplace_back();  // first, since it can fail; an empty entry does no harm
  pool_->drop(pages);
  dropped_.back() = pages;
}

void PoolTransaction::give_back(PageIds pages) {
  for (const PageId& page : pages) {
    if (pool_->ref_count(page) != 1) {
      drop(std::span(&page, 1));
    } else {
      given_back_.push_back(page);  // first, since it can fail
      pool_->counts_[static_cast<std::size_t>(page)] = 0;
    }
  }
}

void PoolTransaction::take(std::span<PageId> pages) noexcept {
  const auto num_free = static_cast<std::size_t>(pool_->available_pages_count());
  const std::size_t num_from_list = std::min(num_free, pages.size());
  take_from_list(pages.first(num_from_list));
  for (PageId& page : pages.subspan(num_from_list)) {
    page = given_back_[num_recycled_++];
    pool_->counts_[static_cast<std::size_t>(page)] = 1;
  }
}

void PoolTransaction::take_from_list(std::span<PageId> pages) noexcept {
  const PageId* const ring = pool_->ring_.get();
  std::int32_t* const counts = pool_->counts_.data();
  const std::int64_t num_pages = pool_->num_pages_;
  std::int64_t front = front_;
  for (PageId& page : pages) {
    page = ring[front];
    if (++front == num_pages) front = 0;
    counts[page] = 1;
  }
  front_ = front;
  pool_->head_ += pages.size();
  num_taken_ += pages.size();
}

bool PoolTransaction::reclaim(std::int64_t num_pages) {
  const bool reclaimed = pool_->reclaim(num_pages);
  rollback();
  return reclaimed;
}

void PoolTransaction::retain() noexcept {
  hold_dropped();
  hold_given_back();
  retains_ = true;
}

void PoolTransaction::hold_dropped() noexcept {
  if (dropped_.empty()) return;
  for (const PageIds& pages : dropped_) pool_->hold_again(pages);
  // Among what has become free meanwhile there may be pages of a reclaimer.
  pool_->take_off_free_list(old_tail_);
}

void PoolTransaction::hold_given_back() noexcept {
  for (std::size_t i = num_recycled_; i < given_back_.size(); ++i) {
    ++pool_->counts_[static_cast<std::size_t>(given_back_[i])];
  }
}

void PoolTransaction::commit() noexcept {
  if (retains_) {
    drop_again();
  } else {
    hold_given_back();
  }
  for (std::size_t i = 0; i < given_back_.size(); ++i) {
    const PageId& page = given_back_[i];
    if (i < num_recycled_) {
      pool_->note_recycled(page);
    } else if (pool_->counts_[static_cast<std::size_t>(page)] > 0) {
      pool_->drop(std::span(&page, 1));
    }
  }
  begin();
}

void PoolTransaction::drop_again() noexcept {
  for (const PageIds& pages : dropped_) {
    for (const PageId& page : pages) {
      // A reclaimer may have dropped what was not its own.
      if (pool_->counts_[static_cast<std::size_t>(page)] > 0) pool_->drop(std::span(&page, 1));
    }
  }
}

void PoolTransaction::rollback() noexcept {
  // Taken pages still lie in the ring in front of its head: freed ones go behind its tail, and
  // there are never more entries than pages.
  for (; num_taken_ != 0; --num_taken_, --pool_->head_) {
    const std::int64_t last = pool_->ring_index(pool_->head_ - 1);
    pool_->counts_[static_cast<std::size_t>(pool_->ring_[static_cast<std::size_t>(last)])] = 0;
  }
  if (!retains_) {
    // What was recycled has its count of 1 already.
    hold_given_back();
    hold_dropped();
  }
  begin();
}

}  // namespace seqattn
