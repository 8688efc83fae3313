#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "seqattn/export.h"
#include "seqattn/packed_data.h"
#include "seqattn/page_pool.h"
#include "seqattn/types.h"

namespace seqattn {

class PagedKVCacheManager;

// What a descriptor keeps of one sequence.
struct SequenceData {
  std::vector<PageId> kv_page_indices;  // ceil(num_kv_tokens / page_size) pages, in order
  int last_page_len = 0;                // tokens on the last page, 1 .. page_size; 0 without pages
  std::int64_t length = 0;              // the next absolute position
};

// The answer of try_allocate. When `ok` is false nothing has changed.
struct Admission {
  bool ok = false;
  std::int64_t needed = 0;     // pages that the call takes
  std::int64_t available = 0;  // pages that were free when that was decided, after any reclaim
  std::vector<PageCopy> copies;
  explicit operator bool() const noexcept { return ok; }
};

struct Stats {
  std::int64_t num_sequences = 0;
  std::int64_t num_tokens = 0;           // KV slots held, summed over sequences
  std::int64_t num_page_references = 0;  // pages, summed over sequences
  std::int64_t num_pages = 0;            // distinct pages that the sequences hold
  std::int64_t num_shared_pages = 0;     // of those, the ones with a reference count above 1
  std::int64_t num_free_pages = 0;       // free in the pool
};

// Sequences and the pages that hold them.
//
// Invariants (check_invariants), with P = page_size: a sequence has ceil(num_kv_tokens / P) pages,
// all live; (pages - 1) * P + last_page_len == num_kv_tokens where there are any, else
// last_page_len is 0; and no page has fewer references than the descriptor's sequences hold.
//
// Batch calls handle ids in order, as if one call were made for each, but all or nothing: a call
// that throws has changed nothing, std::bad_alloc included. A page with a count above 1 is never
// written: when a sequence whose last, partly filled page is shared grows, the page is replaced by
// a copy. A descriptor over a manager has the copies made itself, on `stream`, before it commits;
// one over a bare pool leaves them to the caller, to make in the order returned and before anything
// else is written.
//
// A sequence id costs one hash lookup, O(1) on average. Threads: const members may run at the same
// time; the others need the caller's lock, shared by all descriptors of a pool.
class SEQATTN_EXPORT CacheDescriptor {
 public:
  explicit CacheDescriptor(PagedKVCacheManager& manager);
  explicit CacheDescriptor(PagePool& pool);
  ~CacheDescriptor();  // releases its sequences
  CacheDescriptor(const CacheDescriptor&) = delete;
  CacheDescriptor& operator=(const CacheDescriptor&) = delete;

  // Grows each sequence by that many tokens, starting those that are new; returns the page copies
  // that sharing called for. A repeated id grows once for each time. Growing by 0 copies nothing.
  // Throws InvalidArgumentError for lists of different sizes, a negative length or one past 2^62,
  // NoPageError when the pool and its reclaimer fall short. O(ids + pages taken).
  std::vector<PageCopy> allocate(SeqIds seq_ids, Lengths seq_new_lens, Stream stream = {});
  // The same, with a full pool as a value instead of an exception. Other errors throw.
  Admission try_allocate(SeqIds seq_ids, Lengths seq_new_lens, Stream stream = {});
  // Grows each sequence by one token. Throws UnknownSequenceError too.
  std::vector<PageCopy> allocate_decoding(SeqIds seq_ids, Stream stream = {});

  // Drops sequences and their references; unknown ids are ignored, repeated ones count once.
  // Returns how many existed.
  std::int64_t release(SeqIds seq_ids);

  // Starts `child` as the first `num_tokens` tokens of `parent`, sharing its pages; nothing is
  // copied. Throws UnknownSequenceError for the parent, InvalidArgumentError when the child exists
  // or the parent is shorter. O(pages).
  void fork(SeqId parent, SeqId child, std::int64_t num_tokens = kAll);

  // Starts a sequence over pages that live already (a cached prefix, another system's table),
  // taking a reference to each. Throws InvalidArgumentError when the sequence exists, a page is
  // free or unknown, or the number of pages is not ceil(num_tokens / page_size).
  void attach(SeqId seq_id, PageIds pages, std::int64_t num_tokens);

  // Like attach, but takes over references that the caller already holds and changes no count; a
  // sequence that exists gets the new table, and the references of pages no longer listed go back
  // to the caller. Throws as attach does, and when the descriptor would hold more references to a
  // page than there are. O(page references of the descriptor).
  void adopt(SeqId seq_id, PageIds pages, std::int64_t num_tokens);

  // Drops the tokens from `num_tokens` on, and the pages that held only them. Copies nothing.
  // Throws UnknownSequenceError; InvalidArgumentError for a negative length or one above the
  // present one.
  void truncate(SeqId seq_id, std::int64_t num_tokens);

  void clear();  // releases every sequence

  // The batch as CSR arrays, rows in the order of the ids; an id may occur more than once.
  // Throws UnknownSequenceError, or InvalidArgumentError when the pages do not fit int32. O(pages).
  FlashInferPackedData pack_for_flashinfer(SeqIds seq_ids) const;

  bool contains(SeqId seq_id) const noexcept;
  std::int64_t num_sequences() const noexcept {
    return static_cast<std::int64_t>(sequences_.size());
  }
  std::vector<SeqId> seq_ids() const;  // in no particular order

  // These throw UnknownSequenceError. Spans and references stay good until the sequence changes.
  const SequenceData& sequence(SeqId seq_id) const;
  std::int64_t length(SeqId seq_id) const;  // the next absolute position
  std::int64_t num_kv_tokens(
      SeqId seq_id) const;  // the slots held; equal to length unless tokens were dropped in front
  std::span<const PageId> pages(SeqId seq_id) const;

  PagePool& pool() const noexcept { return *pool_; }
  PagedKVCacheManager* manager() const noexcept { return manager_; }  // null over a bare pool

  Stats stats() const;  // O(pages)
  // Throws Error naming the first violated invariant, the pool's included. O(pages of the pool).
  void check_invariants() const;
  std::string to_string() const;

 private:
  friend class GrowTransaction;  // src/core/grow_transaction.h

  // Starts a sequence that takes a reference to each of its pages, on behalf of the named call.
  void share(SeqId seq_id, SequenceData&& data, const char* call);

  PagePool* pool_;
  PagedKVCacheManager* manager_ = nullptr;
  std::unordered_map<SeqId, SequenceData> sequences_;
  std::shared_ptr<IndexBuffers> packed_buffers_;  // of pack_for_flashinfer
};

}  // namespace seqattn
