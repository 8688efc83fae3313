#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "seqattn/export.h"
#include "seqattn/types.h"

namespace seqattn {

class FlashInferPackedData;

// Asked for pages when a pool falls short: a prefix cache, for instance, that holds pages it can
// give up.
class SEQATTN_EXPORT Reclaimer {
 public:
  virtual ~Reclaimer();
  // Either makes at least `num_pages` more pages free, by `unref` on the pool, and returns true; or
  // changes nothing and returns false. Called while a call prepares, when everything else about it
  // has been validated, and before it takes pages: counts are then without the references to pages
  // that the call will copy, or that windows have left behind, so that one with the reclaimer's
  // reference alone can be freed (and invariant 1 of the pool does not hold). Pages that `keep` and
  // `commit_tree` give up count still: they are read from. It must neither call a descriptor of the
  // same pool nor take pages.
  virtual bool reclaim(std::int64_t num_pages) = 0;
};

// The free list and the reference counts of a fixed set of pages; it holds no storage.
//
// Invariants (check_invariants):
//   1. a page is in the free list exactly when its count is 0, and it is there once;
//   2. no count is negative.
// Order is FIFO from page 0: the first `allocate(3)` of a fresh pool is {0, 1, 2}, and pages that
// become free go to the back. Memory: 8 bytes a page, and a bit where there is a prefix cache.
//
// Threads: const members may run at the same time; the others need the caller's lock.
class SEQATTN_EXPORT PagePool {
 public:
  // Throws InvalidArgumentError unless 0 <= num_pages < 2^31 and page_size >= 1. O(num_pages).
  explicit PagePool(std::int64_t num_pages, int page_size = 16);
  ~PagePool();
  PagePool(const PagePool&) = delete;  // descriptors point at it
  PagePool& operator=(const PagePool&) = delete;

  std::int64_t num_pages() const noexcept { return num_pages_; }
  int page_size() const noexcept { return page_size_; }  // token slots of a page
  std::int64_t available_pages_count() const noexcept {
    return static_cast<std::int64_t>(tail_ - head_);
  }

  // Takes pages from the front of the free list, each with a count of 1. O(num_pages).
  // Throws InvalidArgumentError for a negative count, NoPageError when fewer are free.
  std::vector<PageId> allocate(std::int64_t num_pages);

  // Adds (`ref`) or drops (`unref`) one reference for every listed page; a page listed twice counts
  // twice. A page whose count falls to 0 becomes free, in the order of the list. O(pages).
  // Throws InvalidArgumentError, having changed nothing, for an id outside [0, num_pages), a page
  // that is free, or a count that would leave [0, 2^31).
  void ref(PageIds pages);
  void unref(PageIds pages);
  void release_pages(PageIds pages) { unref(pages); }  // the original package's second name

  // The number of references to a page; 0 means free. Throws InvalidArgumentError for an unknown
  // id.
  std::int32_t ref_count(PageId page) const;
  std::span<const std::int32_t> ref_counts() const noexcept { return counts_; }  // indexed by page
  std::vector<PageId> free_pages() const;                                        // front first
  // Whether a PrefixCache holds the page: others may find what it says, so that no call writes it,
  // however few references it has.
  bool is_cached(PageId page) const noexcept {
    return !is_cached_.empty() && contains(page) && is_cached_[static_cast<std::size_t>(page)];
  }

  // The reclaimer is borrowed; null removes it.
  void set_reclaimer(Reclaimer* reclaimer) noexcept { reclaimer_ = reclaimer; }
  Reclaimer* reclaimer() const noexcept { return reclaimer_; }

  // Throws Error naming the first violated invariant. O(num_pages).
  void check_invariants() const;
  std::string to_string() const;  // "PagePool(num_pages=8, page_size=4, available=7)"

  // How often the page has been freed, modulo 2^32; debug builds count it, to notice plans that
  // went stale.
  std::uint32_t generation(PageId page) const noexcept {
    return generations_.empty() ? 0 : generations_[static_cast<std::size_t>(page)];
  }

  // Whether callers have dropped references or handed them over (CacheDescriptor::adopt), so that a
  // page that a sequence holds may be free.
  bool handled_by_callers() const noexcept { return handled_by_callers_; }

  // A number that no other pool of this process has; packed data carries it to tell pools apart.
  std::uint64_t id() const noexcept { return id_; }

 private:
  friend class PoolTransaction;  // src/core/pool_transaction.h: prepare and commit of batch calls
  friend class CacheDescriptor;  // drops the references of its sequences
  friend class PrefixCache;      // likewise of its pages
  friend void check_packed(const PagePool& pool, const FlashInferPackedData& packed);

  // Where the free list's entry number `n`, counted from the pool's beginning, lies in ring_.
  std::int64_t ring_index(std::uint64_t n) const noexcept {
    return num_pages_ == 0 ? 0
                           : static_cast<std::int64_t>(n % static_cast<std::uint64_t>(num_pages_));
  }
  bool contains(PageId page) const noexcept { return page >= 0 && page < num_pages_; }
  // `ref` on behalf of the named call.
  void ref(PageIds pages, const char* call);
  // `unref`, for references that sequences hold.
  void drop(PageIds pages);
  // While this stays what it was, pages that sequences held then have not become free. 0 once
  // references have been dropped or handed over by callers: such a call may have freed the page of
  // a sequence, and nothing tells.
  std::uint64_t epoch() const noexcept {
    return handled_by_callers_ ? 0 : tail_ + num_recycled_ + 1;
  }
  // Throws the InvalidArgumentError that `ref` and `unref` owe for this entry of their list.
  [[noreturn]] void refuse(const char* call, PageId page, std::size_t entry) const;
  // True when a reclaimer says that it has made that many more pages free.
  bool reclaim(std::int64_t num_pages) { return reclaimer_ && reclaimer_->reclaim(num_pages); }
  // A page was freed and taken at once, without a way through the free list.
  void note_recycled(PageId page) noexcept {
    ++num_recycled_;
    if (!generations_.empty()) ++generations_[static_cast<std::size_t>(page)];
  }
  // Takes back `drop(pages)`, the pages being in the free list still; `take_off_free_list` follows.
  void hold_again(PageIds pages) noexcept;
  // Takes pages that are held again out of what was freed since the tail was `old_tail`.
  void take_off_free_list(std::uint64_t old_tail) noexcept;

  std::int64_t num_pages_;
  int page_size_;
  std::uint64_t id_;
  // The free list is ring_[head_ .. tail_), positions taken modulo num_pages_.
  std::unique_ptr<PageId[]> ring_;
  std::uint64_t head_ = 0;
  std::uint64_t tail_ = 0;
  std::vector<std::int32_t> counts_;
  std::vector<std::uint32_t> generations_;  // empty in release builds
  std::vector<bool> is_cached_;             // empty without a prefix cache
  Reclaimer* reclaimer_ = nullptr;
  std::uint64_t num_recycled_ = 0;  // pages freed and taken in one step
  bool handled_by_callers_ = false;
};

}  // namespace seqattn
