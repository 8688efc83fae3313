#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "event_ring.h"
#include "eviction_order.h"
#include "prefix_tree.h"
#include "seqattn/prefix_cache.h"

namespace seqattn {

// What a prefix cache is made of, and the steps that its calls share.
struct PrefixCache::State {
  State(PagePool& page_pool, PrefixCacheOptions&& given);

  TimePoint now() const {
    return options.clock ? options.clock() : std::chrono::steady_clock::now();
  }
  std::int64_t page_size() const noexcept { return pool.page_size(); }

  // The node that ends where the place does, cut at the end of its page where need be; null for a
  // place without tokens. All or nothing.
  PrefixNode* end_of(const PrefixTree::Place& place);

  // Adds the pages of a sequence from the one of that number on behind the place, as a node that
  // no use has been counted for. All or nothing.
  PrefixNode& add(const PrefixTree::Place& place, std::string_view salt, TokenSpan tokens,
                  std::span<const PageId> sequence, std::int64_t first);

  // For the node and all in front of it: they were used now; one more handle ends here, or one
  // less.
  void use(PrefixNode& end, TimePoint now) noexcept;
  void pin(PrefixNode& end) noexcept;
  void unpin(PrefixNode& end) noexcept;

  // Throws InvalidArgumentError where a page of the sequence, in front of where the place ends, is
  // the cache's but not the one that the tree has there. O(pages).
  void check_old(const PrefixTree::Place& place, std::span<const PageId> sequence) const;
  // Marks a sequence's pages from that number on as the cache's, all or nothing. Throws
  // InvalidArgumentError for one that is so already.
  void claim(std::span<const PageId> sequence, std::int64_t first);
  void disclaim(PageIds pages) noexcept;

  PagePool& pool;
  PrefixCacheOptions options;
  PrefixTree tree;
  EvictionOrder order;
  EventRing events;
  std::vector<bool> is_cached;  // by page
  PrefixCacheStats stats;       // all but what the tree and the ring count
  std::uint64_t num_uses = 0;
};

// Finds pages to evict and evicts them, in two halves: `prepare` plans and touches no page, then
// `commit` cannot fail. Without it the destructor leaves all as it was.
class PrefixCache::Eviction {
 public:
  explicit Eviction(State& state) : state_(state), now_(state.now()) {}
  ~Eviction() { rollback(); }
  Eviction(const Eviction&) = delete;
  Eviction& operator=(const Eviction&) = delete;

  // Plans up to that many pages; returns how many.
  std::int64_t prepare(std::int64_t num_pages, bool only_expired);
  // Goes on where `prepare` found no more: the cache's share goes too of ends that sequences hold,
  // which frees nothing, where pages that nobody holds lie in front. Plans up to that many of
  // these; returns how many. O(pages in front of such ends).
  std::int64_t prepare_behind_shares(std::int64_t num_pages);
  void commit() noexcept;

 private:
  struct Victim {
    PrefixNode* node;
    std::int64_t num_pages;  // its last ones
    bool goes_whole() const { return num_pages == node->num_pages(); }
  };
  static constexpr std::size_t kNoVictim = static_cast<std::size_t>(-1);
  // A node of which a sequence holds the last page, or that in front of the victim.
  struct EndInUse {
    PrefixNode* node = nullptr;
    std::size_t victim = kNoVictim;  // of victims_, pages of this node
    bool stays = true;               // that page
  };

  // Whether nothing but the cache holds the page.
  bool is_unshared(PageId page) const;
  std::int64_t num_unshared_at_end(const PrefixNode& node, std::int64_t most) const;
  bool any_unshared_in_front(const PrefixNode& node);
  std::int64_t give_up_shares(EndInUse& end, std::int64_t most);
  void take_back_vain_shares();
  void doom(PrefixNode& node) noexcept;  // it goes whole
  void undoom(PrefixNode& node) noexcept;
  void rollback() noexcept;

  State& state_;
  TimePoint now_;
  std::vector<Victim> victims_;  // children before parents
  std::vector<EndInUse> in_use_;
  // By node, of those asked for: whether it or what is in front of it has an unshared page.
  std::unordered_map<const PrefixNode*, bool> leads_to_unshared_;
};

}  // namespace seqattn
