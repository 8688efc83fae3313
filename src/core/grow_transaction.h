#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "pool_transaction.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/types.h"

namespace seqattn {

// Growth of a batch of sequences, by lengths or by one token each, in two halves. `prepare` does
// everything that can fail; then either `commit` keeps it, or the destructor puts descriptor and
// pool back as they were. Ids are handled in order, as if each had a call of its own: the batch is
// applied turn by turn, each turn logged, so that a later turn of the same sequence, or of one that
// shares its last page, meets the state that the earlier ones leave.
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
  ~GrowTransaction() { rollback(); }
  GrowTransaction(const GrowTransaction&) = delete;
  GrowTransaction& operator=(const GrowTransaction&) = delete;

  // False, with nothing changed, when the pool and its reclaimer fall short. Throws what
  // CacheDescriptor::allocate and allocate_decoding say, but for NoPageError.
  bool prepare(Stream stream);
  void commit() noexcept;

  std::int64_t needed() const noexcept { return needed_; }  // pages, once prepared
  // Free pages when that was decided, the reclaimer having been asked.
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
  };
  // Stands in page tables for a page that a turn is going to take.
  static constexpr PageId kNoPage = -1;

  GrowTransaction(CacheDescriptor& descriptor, SeqIds seq_ids, Lengths new_lens, bool decoding);
  void apply_turns();
  Turn& begin_turn(SeqId seq_id);
  void grow(Turn& turn, std::int64_t num_new_tokens);
  void give_up_shared_page(Turn& turn);
  void add_needed(std::int64_t num_pages) noexcept;
  void take_pages();
  void rollback() noexcept;

  CacheDescriptor& descriptor_;
  SeqIds seq_ids_;
  Lengths new_lens_;
  bool decoding_;  // one token each, and unknown ids are refused
  PoolTransaction pool_;
  std::int64_t needed_ = 0;
  std::int64_t available_ = 0;
  std::vector<Turn> turns_;  // reserved: pool_ points at their shared pages
  std::vector<PageCopy> copies_;
};

}  // namespace seqattn
