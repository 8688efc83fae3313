#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "seqattn/export.h"
#include "seqattn/page_pool.h"
#include "seqattn/types.h"

namespace seqattn {

class PrefixCache;
struct PrefixNode;  // src/core/prefix_node.h

struct PrefixCacheOptions {
  // The time that `ttl` is measured in; null for std::chrono::steady_clock. It must never go back,
  // and not call the cache, its pool or a descriptor of that pool.
  std::function<std::chrono::steady_clock::time_point()> clock;
  // How many events are kept until drain_events takes them; each costs 48 + 4 * page_size bytes
  // from the start. 0 for none.
  std::int64_t event_capacity = 0;
};

struct InsertOptions {
  // Pages of a lower priority are evicted first.
  int priority = 0;
  // Pages that have not been used for so long are evicted before all others, whatever their
  // priority. Until then they are found, which counts as a use. Above 0.
  std::chrono::nanoseconds ttl = std::chrono::nanoseconds::max();
};

// What the cache tells a router or a log. A block is one cached page; its id is never used again in
// this cache, so that a stream of events says at any time which tokens are there.
struct CacheEvent {
  enum class Kind : std::uint8_t {
    kStored,   // `block` holds `tokens`, behind block `parent`
    kHit,      // a match found `num_tokens` tokens, the last of them on `block`
    kEvicted,  // `block` is gone; the blocks behind it went before
    kCleared,  // every block of every salt is gone
  };
  Kind kind = Kind::kStored;
  std::int64_t number = 0;      // of the event, from 0; a gap says that events were lost
  std::string salt;             // empty for kCleared
  std::int64_t block = 0;       // from 1
  std::int64_t parent = 0;      // kStored: the block in front, 0 for the first
  std::int64_t num_tokens = 0;  // kHit
  std::vector<TokenId> tokens;  // kStored: page_size of them
  friend bool operator==(const CacheEvent&, const CacheEvent&) = default;
};

struct PrefixCacheStats {
  std::int64_t num_pages = 0;         // cached
  std::int64_t num_pinned_pages = 0;  // of those, the ones that live handles keep
  std::int64_t num_nodes = 0;         // runs of pages that the tree keeps as one
  std::int64_t num_salts = 0;         // salts that have pages
  std::int64_t num_handles = 0;       // live, and of something
  std::int64_t num_matches = 0;       // calls of match since the cache began
  std::int64_t num_hits = 0;          // of those, the ones that found something
  std::int64_t num_tokens_asked = 0;  // tokens that were looked for
  std::int64_t num_tokens_found = 0;
  std::int64_t num_pages_stored = 0;
  std::int64_t num_pages_evicted = 0;  // by evict, evict_expired, the pool's need and clear
  std::int64_t num_events_lost = 0;    // for want of event_capacity
};

// What a match found: the pages of a prefix, pinned for as long as the handle lives, so that the
// cache neither evicts nor gives them to anybody else. Keep one to pin a prefix; release it when
// the sequence is attached. A handle must go before its cache does.
class SEQATTN_EXPORT PrefixHandle {
 public:
  PrefixHandle() = default;  // of nothing
  PrefixHandle(PrefixHandle&& other) noexcept;
  PrefixHandle& operator=(PrefixHandle&& other) noexcept;
  ~PrefixHandle() { release(); }

  std::int64_t num_tokens() const noexcept { return num_tokens_; }
  // ceil(num_tokens / page_size) pages; of the last one the match may use a part.
  std::span<const PageId> pages() const noexcept { return pages_; }
  explicit operator bool() const noexcept { return num_tokens_ > 0; }

  // Unpins the pages; the handle is then one of nothing. O(pages).
  void release() noexcept;

 private:
  friend class PrefixCache;
  PrefixCache* cache_ = nullptr;  // null once released
  PrefixNode* node_ = nullptr;    // the deepest one; null where nothing was found
  std::vector<PageId> pages_;
  std::int64_t num_tokens_ = 0;
};

// The KV pages of token prefixes, so that a sequence whose first tokens were computed before starts
// over their pages: a radix tree over token ids, its edges whole pages.
//
//   PrefixHandle handle = cache.match(prompt);              // pins what is there
//   cache.attach(sequences, id, handle);                    // the sequence shares it
//   sequences.allocate({id}, {std::ssize(prompt) - handle.num_tokens()});   // and computes the
//   rest handle.release();
//   ...
//   cache.insert(sequences, id, tokens);                    // at the end, or after the prefill
//   sequences.release({id});
//
// What is found is found by comparing every token. Prefixes under different salts (of a tenant, an
// adapter, an image) never meet. Equal pages behind different prefixes are different pages, since
// their keys and values are. The cache holds one reference to each of its pages, and never two.
//
// The cache is its pool's reclaimer: a call that needs pages takes them from it, in the same
// transaction. It gives up, from the ends of prefixes only, pages that nothing but the cache holds:
// first those past their ttl, then by lower priority, then the least recently used. Used means
// inserted, matched, or found in a sequence's hands when eviction looks for pages. A page that a
// sequence shares, or a handle pins, stays, and so does all that leads to it: to drop it would free
// nothing. Such pages become evictable when their sequences go. But where the pool still falls
// short, the cache gives up its share of ends that sequences hold, if pages that nobody holds lie
// in front of them: a window can have left those behind. What the call itself is about to give up
// (a page that it copies, pages behind a window) counts as given up.
//
// Memory: 4 * page_size + 4 bytes a page, about 280 bytes a node, and 1 bit a page of the pool. A
// node begins where prefixes part and where a match or an insert ended.
//
// A call that throws has changed nothing, std::bad_alloc included. Threads: as for the pool, whose
// lock covers the cache, its handles and the descriptors.
class SEQATTN_EXPORT PrefixCache : public Reclaimer {
 public:
  // Throws InvalidArgumentError when the pool has a reclaimer already, or for a negative capacity;
  // OutOfMemoryError for one whose events find no memory.
  explicit PrefixCache(PagePool& pool, PrefixCacheOptions options = {});
  // Drops the cache's references. Live handles must have gone.
  ~PrefixCache() override;
  PrefixCache(const PrefixCache&) = delete;  // the pool and handles point at it
  PrefixCache& operator=(const PrefixCache&) = delete;

  // Finds the longest cached prefix of `tokens`, pins it and counts as its use. At most
  // tokens.size() - 1 tokens are found, so that one is left to compute. A match may end inside a
  // page: the last page is then shared, and copied when the sequence grows.
  // O(found tokens + nodes * (page_size * log(siblings) + log(nodes))).
  PrefixHandle match(TokenIds tokens, std::string_view salt = {});

  // Pins the longest cached prefix that `tokens` begin with, in whole pages and to the last of
  // them, without being a use or counting in the statistics: for prefixes that have to stay.
  PrefixHandle pin(TokenIds tokens, std::string_view salt = {});

  // Starts the sequence over what the handle found, taking a reference to each page: then the
  // handle may go. Throws InvalidArgumentError for a handle of another cache or one that was
  // released, a descriptor of another pool, or a sequence that exists. O(pages).
  void attach(CacheDescriptor& descriptor, SeqId seq_id, const PrefixHandle& handle) const;

  // Gives the cache the whole pages of the sequence's first tokens, which are these, and whose keys
  // and values have been written or enqueued, in every layer; the rest, less than a page, is left.
  // What the cache holds already stays as it is and counts as used; it keeps the higher priority
  // and the longer ttl. Returns how many pages are new to the cache. Throws UnknownSequenceError;
  // InvalidArgumentError for a descriptor of another pool, more tokens than the sequence's length,
  // a sequence of which a window or `keep` has dropped tokens, a page that is cached already under
  // other tokens or another salt, and a ttl that is not above 0. As match, and O(new tokens +
  // pages).
  std::int64_t insert(const CacheDescriptor& descriptor, SeqId seq_id, TokenIds tokens,
                      std::string_view salt = {}, const InsertOptions& options = {});

  // Frees up to that many pages, in the order above and no shares; returns how many. Throws
  // InvalidArgumentError for a negative number. O(pages * log(nodes) + leaves that sequences hold).
  std::int64_t evict(std::int64_t num_pages);
  // Frees the pages past their ttl.
  std::int64_t evict_expired();
  // Called by the pool: frees that many pages, or changes nothing. O as evict, and the pages in
  // front of ends that sequences hold where the others do not do. A call of the pool or a
  // descriptor that runs out of memory after that leaves the pages free.
  bool reclaim(std::int64_t num_pages) override;

  // Drops every page; sequences keep theirs. Throws PinnedError while handles live. O(pages).
  void clear();

  // Takes the events since the last call, oldest first; past event_capacity the oldest are lost.
  std::vector<CacheEvent> drain_events();

  PrefixCacheStats stats() const;  // O(1)
  PagePool& pool() const noexcept;
  // Throws Error naming the first violated invariant: of the tree, its order of eviction, the pins,
  // the pool. O(pages of the pool).
  void check_invariants() const;
  std::string to_string() const;  // "PrefixCache(num_pages=12, num_nodes=3, num_pinned_pages=0)"

 private:
  friend class PrefixHandle;
  struct State;  // src/core/prefix_cache_state.h
  class Eviction;

  PrefixHandle find(TokenIds tokens, std::string_view salt, bool is_use);
  std::int64_t evict_up_to(std::int64_t num_pages, bool only_expired);

  std::unique_ptr<State> state_;
};

}  // namespace seqattn
