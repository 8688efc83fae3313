#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "pool_transaction.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/types.h"

namespace seqattn {

// Growth of a batch of sequences, by lengths or by one token each, or of one by a tree of draft
// tokens, in two halves. `prepare` does
// everything that can fail; then either `commit` keeps it, or the destructor puts descriptor and
// pool back as they were. Ids are handled in order, as if each had a call of its own: the batch is
// applied turn by turn, each turn logged, so that a later turn of the same sequence, or of one that
// shares its last page, meets the state that the earlier ones leave. Pages that windows have left
// behind go before the first turn grows: a later turn of the same sequence brings queries that ask
// together with those of the first.
//
// Several growths, of descriptors over one pool or over several, commit together: prepare each in
// turn, then commit them all. When one cannot be prepared, destroy them in the reverse of that
// order (locals are). Each meets the pages that the ones before have taken, but not the shares that
// they give up, which go at `commit`: a page that two of them share is copied for both.
class GrowTransaction {
 public:
  // Both lists must outlive the transaction.
  static GrowTransaction by_lengths(CacheDescriptor& descriptor, SeqIds seq_ids, Lengths new_lens);
  static GrowTransaction by_one_token(CacheDescriptor& descriptor, SeqIds seq_ids);
  // By tokens, and as many draft tokens as there are parents. `seq_id` holds one id, `num_slots`
  // one number: that of both together.
  static GrowTransaction by_tree(CacheDescriptor& descriptor, SeqIds seq_id, Lengths num_slots,
                                 std::span<const std::int32_t> parents);
  ~GrowTransaction() { rollback(); }
  GrowTransaction(const GrowTransaction&) = delete;
  GrowTransaction& operator=(const GrowTransaction&) = delete;

  // False, with nothing changed, when the pool and its reclaimer fall short. Throws what
  // CacheDescriptor::allocate and allocate_decoding say, but for NoPageError.
  bool prepare(Stream stream);
  void commit() noexcept;

  std::int64_t needed() const noexcept { return needed_; }  // pages, once prepared
  // Free pages when that was decided, the reclaimer having been asked, and those that windows give
  // back.
  std::int64_t available() const noexcept { return available_; }
  std::vector<PageCopy> take_copies() noexcept { return std::move(copies_); }

 private:
  // One entry of the batch: what it did, and what is needed to take it back.
  struct Turn {
    SequenceData* sequence = nullptr;
    std::int64_t num_new_tokens = 0;
    std::int32_t old_last_page_len = 0;
    std::int32_t old_num_pages = 0;
    std::int32_t num_new_pages = 0;  // behind the old ones
    PageId shared_page = kNoPage;    // the last page, where it is given up for a copy
    bool is_new = false;
    bool has_dropped = false;  // of drops_, the last that no later turn has
  };
  // What a window has left behind: page table entries from `first` on, cut out.
  struct Drop {
    std::vector<PageId> pages;
    std::int64_t first = 0;
    std::int64_t old_dropped_to = 0;
    std::int64_t old_num_in_front = 0;
    bool is_cut_out = false;
  };
  enum class Mode : std::uint8_t { kLengths, kOneToken, kTree };
  // Stands in page tables for a page that a turn is going to take.
  static constexpr PageId kNoPage = -1;

  GrowTransaction(CacheDescriptor& descriptor, SeqIds seq_ids, Lengths new_lens, Mode mode);
  GrowTransaction(CacheDescriptor& descriptor, SeqIds seq_id, Lengths num_slots,
                  std::span<const std::int32_t> parents);
  std::int64_t num_new_slots(std::size_t turn) const noexcept {
    return mode_ == Mode::kOneToken ? 1 : new_lens_[turn];
  }
  void apply_turns();
  Turn& begin_turn(std::size_t place);
  void give_back_dead_pages(Turn& turn);
  void put_back(SequenceData& sequence, const Drop& drop) const noexcept;
  // `may_share`: whether the last page may be shared.
  void grow(Turn& turn, std::int64_t num_new_slots, bool may_share);
  // Apart from what growing does, since last pages and their counts lie far apart: in a short loop
  // the processor waits for many of them at once.
  bool any_last_page_is_shared() const noexcept;
  void give_up_shared_page(Turn& turn);
  void add_needed(std::int64_t num_pages) noexcept;
  void take_pages();
  void rollback() noexcept;

  CacheDescriptor& descriptor_;
  SeqIds seq_ids_;
  Lengths new_lens_;
  Mode mode_;  // other than by lengths, unknown ids are refused
  std::vector<std::int32_t> tree_parents_;
  PoolTransaction pool_;
  std::int64_t needed_ = 0;
  std::int64_t available_ = 0;
  std::vector<Turn> turns_;  // reserved: pool_ points at their shared pages
  std::vector<Drop> drops_;  // pool_ points into them; apart from the turns, since few have any
  std::vector<PageCopy> copies_;
};

}  // namespace seqattn
