#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "pool_transaction.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/types.h"

namespace seqattn {

// Ascending slots: the first `num_unmoved` ones, and those listed behind them.
struct KeptSlots {
  std::int64_t num_unmoved = 0;
  std::span<const std::int64_t> rest;

  std::int64_t size() const noexcept {
    return num_unmoved + static_cast<std::int64_t>(rest.size());
  }
  std::int64_t operator[](std::int64_t i) const noexcept {
    return i < num_unmoved ? i : rest[static_cast<std::size_t>(i - num_unmoved)];
  }
};

// Picks slots of one sequence, in two halves: slot i becomes what slot kept[i] was, for ascending
// `kept`, and the slots behind are given up. A shared page that would be written is replaced by a
// new one, of which the moves fill every slot that is kept.
//
// `prepare` does everything that can fail, the moves themselves last: they change slots that the
// sequence holds, so that there is no way back but `commit`.
class CompactTransaction {
 public:
  // REQUIRES a sequence of the descriptor, and ascending slots of it.
  CompactTransaction(CacheDescriptor& descriptor, SequenceData& sequence) noexcept
      : descriptor_(descriptor), sequence_(sequence), pool_(*descriptor.pool_) {}

  ~CompactTransaction() { pool_.rollback(); }  // which reads the lists below
  CompactTransaction(const CompactTransaction&) = delete;
  CompactTransaction& operator=(const CompactTransaction&) = delete;

  // Throws NoPageError, or what the backend or a reclaimer throws, with nothing changed.
  void prepare(const KeptSlots& kept, Stream stream);
  // Puts the new page table in place; the other fields are the caller's.
  void commit() noexcept;

  // In order: later moves may read what earlier ones wrote.
  std::vector<TokenMove> take_moves() noexcept { return std::move(moves_); }

 private:
  void list_pages(const KeptSlots& kept, std::int64_t first_moved);
  std::int64_t num_missing() const noexcept;
  [[noreturn]] void throw_no_page() const;
  void reclaim();
  void take_pages();
  void list_moves(const KeptSlots& kept, std::int64_t first_moved);

  CacheDescriptor& descriptor_;
  SequenceData& sequence_;
  PoolTransaction pool_;
  std::vector<PageId> pages_;           // the new page table
  std::vector<std::int64_t> replaced_;  // its entries that are new pages
  std::vector<PageId> given_up_;        // first those that new pages replace
  int last_page_len_ = 0;
  std::vector<TokenMove> moves_;
};

}  // namespace seqattn
