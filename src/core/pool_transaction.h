#pragma once

#include <cstdint>
#include <span>
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

  // Fills `pages` from the front of the free list, each page now with a count of 1. REQUIRES as
  // many free pages.
  void take(std::span<PageId> pages) noexcept;

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
