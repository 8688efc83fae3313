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

// What a descriptor keeps of one sequence. Slots are numbered through its pages, in order: the
// tokens it holds, and behind them those of a pending tree.
struct SequenceData {
  std::vector<PageId> kv_page_indices;  // ceil(num_kv_tokens / page_size) pages, in order
  int last_page_len = 0;                // tokens on the last page, 1 .. page_size; 0 without pages
  std::int64_t length = 0;              // the next absolute position
  SlidingWindow window = {};
  // The window has dropped tokens in front of this position, but for pages with sinks; 0: none.
  std::int64_t dropped_to = 0;
  std::int64_t num_dropped = 0;  // tokens that the window has dropped, since `keep` if ever
  // Slots in front of the first dropped one. Those between them and `dropped_to`, if any, nobody
  // sees. 0 where the window has dropped nothing.
  std::int64_t num_in_front = 0;
  // The length at which `keep` last picked tokens: what positions their slots had is forgotten.
  // 0: never.
  std::int64_t compacted_to = 0;
  // The pending tree: of each draft token its parent, -1 for the last token. Empty without one.
  std::vector<std::int32_t> tree_parents = {};
  // Another number whenever entries of kv_page_indices change or go, not when some come at its end;
  // no two sequences of a process have the same one. The descriptor's own: `attach` ignores it.
  std::uint64_t table_version = 0;

  // Every position from here up to `length` is held, one a slot, in front of a pending tree.
  std::int64_t kept_from() const noexcept {
    return dropped_to > compacted_to ? dropped_to : compacted_to;
  }
};

// The answer of try_allocate. When `ok` is false nothing has changed.
struct Admission {
  bool ok = false;
  std::int64_t needed = 0;     // pages that the call takes
  std::int64_t available = 0;  // pages that were free when that was decided, after any reclaim, and
                               // those that windows give back
  std::vector<PageCopy> copies;
  explicit operator bool() const noexcept { return ok; }
};

struct Stats {
  std::int64_t num_sequences = 0;
  std::int64_t num_tokens = 0;           // KV slots held, summed over sequences
  std::int64_t num_draft_tokens = 0;     // of those, the ones of pending trees
  std::int64_t num_dropped_tokens = 0;   // tokens of sequences whose slots windows or keep gave up
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
// num_kv_tokens is length, less what a window or `keep` dropped, plus the tokens of a pending tree.
//
// Batch calls handle ids in order, as if one call were made for each, but all or nothing: a call
// that throws has changed nothing, std::bad_alloc included. A page with a count above 1 is never
// written: when a sequence whose last, partly filled page is shared grows, the page is replaced by
// a copy. A descriptor over a manager has the copies made itself, on `stream`, before it commits;
// one over a bare pool leaves them to the caller, to make in the order returned and before anything
// else is written. Token moves (commit_tree, keep) likewise.
//
// Windows: a sequence with a window sees its sinks and its last `window` tokens, token by token.
// When it grows, full pages that hold nothing which the first new query or a later one sees go back
// to the pool first, in the order of the batch, and count as free for that very call: memory stays
// within the window, the pages of the sinks, and what one call adds.
//
// A sequence id costs one hash lookup, O(1) on average. Threads: const members may run at the same
// time; the others need the caller's lock, shared by all descriptors of a pool.
class SEQATTN_EXPORT CacheDescriptor {
 public:
  // `window` is that of sequences to come. Throws InvalidArgumentError as set_window does.
  explicit CacheDescriptor(PagedKVCacheManager& manager, SlidingWindow window = {});
  explicit CacheDescriptor(PagePool& pool, SlidingWindow window = {});
  ~CacheDescriptor();  // releases its sequences
  CacheDescriptor(const CacheDescriptor&) = delete;
  CacheDescriptor& operator=(const CacheDescriptor&) = delete;

  // Grows each sequence by that many tokens, starting those that are new; returns the page copies
  // that sharing called for. A repeated id grows once for each time. Growing by 0 copies nothing.
  // Throws InvalidArgumentError for lists of different sizes, a negative length or one past 2^62, a
  // pending tree, NoPageError when the pool and its reclaimer fall short. O(ids + pages taken).
  std::vector<PageCopy> allocate(SeqIds seq_ids, Lengths seq_new_lens, Stream stream = {});
  // The same, with a full pool as a value instead of an exception. Other errors throw.
  Admission try_allocate(SeqIds seq_ids, Lengths seq_new_lens, Stream stream = {});
  // Grows each sequence by one token. Throws UnknownSequenceError too.
  std::vector<PageCopy> allocate_decoding(SeqIds seq_ids, Stream stream = {});

  // Drops sequences and their references; unknown ids are ignored, repeated ones count once.
  // Returns how many existed.
  std::int64_t release(SeqIds seq_ids);

  // Sets the window of one sequence. What it no longer sees is dropped when it next grows. Throws
  // UnknownSequenceError; InvalidArgumentError for a negative number, sinks without a window, or a
  // window that would see what was dropped.
  void set_window(SeqId seq_id, SlidingWindow window);

  // Starts `child` as the first `num_tokens` tokens of `parent`, sharing its pages; nothing is
  // copied. It has the parent's window, and no part of a pending tree. Throws UnknownSequenceError
  // for the parent, InvalidArgumentError when the child exists, the parent is shorter, or the next
  // token of the child would see what the parent has dropped. O(pages).
  void fork(SeqId parent, SeqId child, std::int64_t num_tokens = kAll);

  // Starts a sequence over pages that live already (a cached prefix, another system's table),
  // taking a reference to each. Throws InvalidArgumentError when the sequence exists, a page is
  // free or unknown, or the number of pages is not ceil(num_tokens / page_size).
  void attach(SeqId seq_id, PageIds pages, std::int64_t num_tokens);

  // The same for a sequence whose window has dropped tokens, or that `keep` has picked from: as
  // another descriptor's `sequence` shows it. Throws InvalidArgumentError too for fields that
  // cannot be.
  void attach(SeqId seq_id, const SequenceData& data);

  // Like attach, but takes over references that the caller already holds and changes no count; a
  // sequence that exists gets the new table, and the references of pages no longer listed go back
  // to the caller; it keeps its window, and a pending tree is gone. Throws as attach does, and when
  // the descriptor would hold more references to a page than there are. O(page references of the
  // descriptor).
  void adopt(SeqId seq_id, PageIds pages, std::int64_t num_tokens);

  // Drops the tokens from position `num_tokens` on, a pending tree with them, and the pages that
  // held only them. Copies nothing. Throws UnknownSequenceError; InvalidArgumentError for a
  // negative length or one above the present one, and where the next token would see what was
  // dropped.
  void truncate(SeqId seq_id, std::int64_t num_tokens);

  // Grows the sequence by `num_tokens` tokens (the last accepted one, whose keys are still to come,
  // for instance), then appends draft tokens as a pending tree: token i is a child of token
  // parents[i] < i, or of the sequence's last token where that is -1. They take the last slots, in
  // order; `length` does not count them. Packed with the sequence, a draft token sees the sequence,
  // its ancestors and itself, at the position that its depth gives it. Until commit_tree or
  // truncate(seq_id, length) has ended it, the sequence neither grows nor takes another tree or
  // `keep`. Returns page copies and throws as allocate does; UnknownSequenceError,
  // InvalidArgumentError for no parents or wrong ones too.
  std::vector<PageCopy> allocate_tree(SeqId seq_id, ListView<std::int32_t> parents,
                                      std::int64_t num_tokens = 0, Stream stream = {});
  // Ends the pending tree: the tokens of `path`, from a child of the last token down, each a child
  // of the one before, become the sequence's next tokens; the rest is dropped. Throws
  // UnknownSequenceError, InvalidArgumentError for a sequence without a tree or no such path,
  // NoPageError. O(pages + tokens moved).
  std::vector<TokenMove> commit_tree(SeqId seq_id, ListView<std::int32_t> path, Stream stream = {});

  // Keeps of the slots held those listed, in order, and gives up the rest: an eviction policy's
  // choice of keys. `length` stays, the next token follows the kept ones, a window counts the
  // tokens that are held, and its sinks are those that were kept. What lies in a shared page and
  // has to move is copied to a new one; pages that become free do not count for the call. Returns
  // the moves, already made over a manager, the caller's to make, in order, over a bare pool.
  // Throws UnknownSequenceError; InvalidArgumentError for indices that do not ascend within [0,
  // num_kv_tokens), a pending tree, or a token that the window has left behind; NoPageError.
  // O(pages + slots kept).
  std::vector<TokenMove> keep(SeqId seq_id, ListView<std::int64_t> token_indices,
                              Stream stream = {});

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
  std::int64_t length(SeqId seq_id) const;         // the next absolute position
  std::int64_t num_kv_tokens(SeqId seq_id) const;  // the slots held, a pending tree's with them
  std::span<const PageId> pages(SeqId seq_id) const;

  SlidingWindow window(SeqId seq_id) const;
  SlidingWindow window() const noexcept { return window_; }  // of sequences to come
  PagePool& pool() const noexcept { return *pool_; }
  PagedKVCacheManager* manager() const noexcept { return manager_; }  // null over a bare pool

  Stats stats() const;  // O(pages)
  // Throws Error naming the first violated invariant, the pool's included. O(pages of the pool).
  void check_invariants() const;
  std::string to_string() const;

 private:
  friend class GrowTransaction;     // src/core/grow_transaction.h
  friend class CompactTransaction;  // src/core/compact_transaction.h
  friend class SequenceFinder;      // src/core/sequence_finder.h

  struct Found {
    SeqId seq_id = 0;
    SequenceData* data = nullptr;
  };

  SequenceData& find(SeqId seq_id);

  // Starts a sequence that takes a reference to each of its pages, on behalf of the named call.
  void share(SeqId seq_id, SequenceData&& data, const char* call);

  PagePool* pool_;
  PagedKVCacheManager* manager_ = nullptr;
  SlidingWindow window_;  // of sequences to come
  std::unordered_map<SeqId, SequenceData> sequences_;
  std::vector<Found> found_;  // by the last growths, by place; none of them has gone since
  std::shared_ptr<IndexBuffers> packed_buffers_;  // of pack_for_flashinfer
};

}  // namespace seqattn
