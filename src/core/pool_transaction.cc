#include "pool_transaction.h"

namespace seqattn {

void PoolTransaction::begin() noexcept {
  old_tail_ = pool_->tail_;
  front_ = pool_->ring_index(pool_->head_);
  num_taken_ = 0;
  dropped_.clear();
  retains_ = false;
}

void PoolTransaction::drop(PageIds pages) {
  dropped_.emplace_back();  // first, since it can fail; an empty entry does no harm
  pool_->drop(pages);
  dropped_.back() = pages;
}

void PoolTransaction::take(std::span<PageId> pages) noexcept {
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
  rollback();
  const bool reclaimed = pool_->reclaim(num_pages);
  begin();
  return reclaimed;
}

void PoolTransaction::retain() noexcept {
  for (const PageIds& pages : dropped_) pool_->undo_unref(pages, old_tail_);
  retains_ = true;
}

void PoolTransaction::commit() noexcept {
  if (!retains_) dropped_.clear();
  for (const PageIds& pages : dropped_) {
    for (const PageId& page : pages) {
      // A reclaimer may have dropped what was not its own.
      if (pool_->counts_[static_cast<std::size_t>(page)] > 0) pool_->drop(std::span(&page, 1));
    }
  }
  begin();
}

void PoolTransaction::rollback() noexcept {
  // Taken pages still lie in the ring in front of its head: freed ones go behind its tail, and
  // there are never more entries than pages.
  for (; num_taken_ != 0; --num_taken_, --pool_->head_) {
    const std::int64_t last = pool_->ring_index(pool_->head_ - 1);
    pool_->counts_[static_cast<std::size_t>(pool_->ring_[static_cast<std::size_t>(last)])] = 0;
  }
  if (!retains_) {
    for (const PageIds& pages : dropped_) pool_->undo_unref(pages, old_tail_);
  }
  begin();
}

}  // namespace seqattn
