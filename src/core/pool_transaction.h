#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "seqattn/page_pool.h"
#include "seqattn/types.h"

namespace seqattn {

// A change to a pool in two halves. `drop` and `take` prepare: they work on the pool at once, each
// all or nothing. Then either `commit` keeps all of it, or the destructor (or `rollback`) puts the
// pool back as it was. Nothing else changes the pool meanwhile, and a page taken is not dropped
// again.
//
// Several transactions of one pool may be open once each has called `retain`: they are rolled back
// in the reverse of the order in which they began, which destructors of locals do by themselves.
// Between `retain` and the end references may come and go, of a reclaimer for example, and pages
// become free.
class PoolTransaction {
 public:
  explicit PoolTransaction(PagePool& pool) noexcept : pool_(&pool) { begin(); }
  ~PoolTransaction() { rollback(); }
  PoolTransaction(const PoolTransaction&) = delete;
  PoolTransaction& operator=(const PoolTransaction&) = delete;

  // Starts from the pool as it is now. REQUIRES nothing to commit or to roll back.
  void begin() noexcept;

  // PagePool::unref. The list must stay where it is until commit or rollback.
  void drop(PageIds pages);

  // Like drop, but a page that nobody else holds is spared for `take`, which comes to such pages
  // when it has emptied the free list, as it would had they been put at its end. Those not taken
  // become free at commit.
  void give_back(PageIds pages);

  // Free pages, and those that were given back.
  std::int64_t available() const noexcept {
    return pool_->available_pages_count() +
           static_cast<std::int64_t>(given_back_.size() - num_recycled_);
  }

  // Fills `pages` from the front of the free list, each page now with a count of 1. REQUIRES as
  // many to be available.
  void take(std::span<PageId> pages) noexcept;

  // Asks the pool's reclaimer for that many more pages, which meets a pool without what was
  // dropped, and rolls back. REQUIRES nothing to be taken.
  bool reclaim(std::int64_t num_pages);

  // The end of preparation: takes dropped references back until `commit`. Without them somebody
  // else's last reference could free a page that a rollback needs, or that is yet to be copied.
  void retain() noexcept;

  void commit() noexcept;
  void rollback() noexcept;

 private:
  void take_from_list(std::span<PageId> pages) noexcept;
  void hold_given_back() noexcept;  // takes back the references of those that were not taken
  void hold_dropped() noexcept;
  void drop_again() noexcept;

  PagePool* pool_;
  std::uint64_t old_tail_ = 0;
  std::int64_t front_ = 0;  // of the free list, in PagePool::ring_
  std::uint64_t num_taken_ = 0;
  std::vector<PageIds> dropped_;
  std::vector<PageId> given_back_;  // with a count of 0 until they are taken or retained
  std::size_t num_recycled_ = 0;    // of given_back_, those taken
  bool retains_ = false;            // the references of dropped_
};

}  // namespace seqattn
