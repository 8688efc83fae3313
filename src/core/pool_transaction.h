#pragma once

#include <cstdint>
#include <vector>

#include "seqattn/page_pool.h"
#include "seqattn/types.h"

namespace seqattn {

// A change to a pool in two halves. `drop` and `take` prepare: they work on the pool at once, each
// all or nothing. Then either `commit` keeps all of it, or the destructor (or `rollback`) puts the
// pool back as it was. One transaction on a pool at a time; nothing else changes the pool
// meanwhile, and a page taken is not dropped again.
class PoolTransaction {
 public:
  explicit PoolTransaction(PagePool& pool) noexcept { begin(pool); }
  ~PoolTransaction() { rollback(); }
  PoolTransaction(const PoolTransaction&) = delete;
  PoolTransaction& operator=(const PoolTransaction&) = delete;

  // PagePool::unref. The list must stay where it is until commit or rollback.
  void drop(PageIds pages);

  // The page at the front of the free list, now with a count of 1. REQUIRES a free page.
  PageId take() noexcept {
    const PageId page = pool_->ring_[static_cast<std::size_t>(front_)];
    if (++front_ == pool_->num_pages_) front_ = 0;
    pool_->counts_[static_cast<std::size_t>(page)] = 1;
    ++pool_->head_;
    return page;
  }

  // Asks the pool's reclaimer for that many more pages, having rolled back first.
  bool reclaim(std::int64_t num_pages);

  void commit() noexcept;
  void rollback() noexcept;

 private:
  void begin(PagePool& pool) noexcept;

  PagePool* pool_;
  std::uint64_t old_head_;
  std::uint64_t old_tail_;
  std::int64_t front_;  // of the free list, in PagePool::ring_
  std::vector<PageIds> dropped_;
};

}  // namespace seqattn
