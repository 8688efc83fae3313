#include "pool_transaction.h"

namespace seqattn {

void PoolTransaction::begin(PagePool& pool) noexcept {
  pool_ = &pool;
  old_head_ = pool.head_;
  old_tail_ = pool.tail_;
  front_ = pool.ring_index(pool.head_);
  dropped_.clear();
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
}

bool PoolTransaction::reclaim(std::int64_t num_pages) {
  rollback();
  const bool reclaimed = pool_->reclaim(num_pages);
  begin(*pool_);
  return reclaimed;
}

void PoolTransaction::commit() noexcept { begin(*pool_); }

void PoolTransaction::rollback() noexcept {
  // Taken pages still lie in the ring in front of its head: freed ones go behind its tail, and
  // there are never more entries than pages.
  for (; pool_->head_ != old_head_; --pool_->head_) {
    const std::int64_t last = pool_->ring_index(pool_->head_ - 1);
    pool_->counts_[static_cast<std::size_t>(pool_->ring_[static_cast<std::size_t>(last)])] = 0;
  }
  for (const PageIds& pages : dropped_) pool_->undo_unref(pages, old_tail_);
  begin(*pool_);
}

}  // namespace seqattn
