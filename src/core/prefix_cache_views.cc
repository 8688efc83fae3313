#include "message.h"
#include "prefix_cache_state.h"
#include "seqattn/prefix_cache.h"

// What a prefix cache shows of itself.
namespace seqattn {
namespace {

const auto check = [](bool condition, const auto&... parts) {
  if (!condition) throw Error(concat("PrefixCache: ", parts...));
};

// What a node says of its uses, its pins and its place in the order of eviction.
void check_node(const PrefixNode& node) {
  check(node.num_doomed == 0, "a node waits for an eviction");
  check((node.place != PrefixNode::kNowhere) == node.is_evictable(),
        "a node is in the order of eviction and not evictable, or the other way round");
  check((node.expiry_place != PrefixNode::kNowhere) ==
            (node.is_evictable() && node.expires != TimePoint::max()),
        "a node is in the order of expiry and not expiring, or the other way round");
  std::int64_t num_pins = 0;
  for (const PrefixNode* child : node.children) {
    num_pins += child->num_pins;
    check(child->last_use <= node.last_use && child->expires <= node.expires &&
              child->priority <= node.priority && child->ttl <= node.ttl,
          "a node was used, and its parent was not");
  }
  check(num_pins <= node.num_pins, "a node has ", node.num_pins, " pins for ", num_pins,
        " of its children");
}

}  // namespace

PrefixCacheStats PrefixCache::stats() const {
  PrefixCacheStats stats = state_->stats;
  stats.num_pages = state_->tree.num_pages();
  stats.num_nodes = state_->tree.num_nodes();
  stats.num_salts = state_->tree.num_salts();
  stats.num_events_lost = state_->events.num_lost();
  return stats;
}

void PrefixCache::check_invariants() const {
  state_->pool.check_invariants();
  state_->tree.check_invariants();
  state_->order.check_invariants();
  const auto counts = state_->pool.ref_counts();
  std::vector<bool> seen(state_->is_cached.size());
  std::int64_t num_pinned_pages = 0;
  for (const PrefixNode* node : state_->tree.nodes()) {
    check_node(*node);
    if (node->num_pins > 0) num_pinned_pages += node->num_pages();
    for (const PageId id : node->pages) {
      const auto page = static_cast<std::size_t>(id);
      check(!seen[page], "page ", id, " is cached twice");
      check(counts[page] > 0, "page ", id, " is cached and free");
      check(state_->pool.is_cached(id), "the pool does not know that page ", id, " is cached");
      seen[page] = true;
    }
  }
  check(seen == state_->is_cached, "the set of cached pages is not that of the tree");
  check(num_pinned_pages == state_->stats.num_pinned_pages, "got ", num_pinned_pages,
        " pinned pages; expected ", state_->stats.num_pinned_pages);
  check(
      state_->stats.num_pages_stored - state_->stats.num_pages_evicted == state_->tree.num_pages(),
      "stored ", state_->stats.num_pages_stored, " pages and evicted ",
      state_->stats.num_pages_evicted, "; expected a difference of ", state_->tree.num_pages());
}

std::string PrefixCache::to_string() const {
  return concat("PrefixCache(num_pages=", state_->tree.num_pages(),
                ", num_nodes=", state_->tree.num_nodes(),
                ", num_pinned_pages=", state_->stats.num_pinned_pages, ")");
}

}  // namespace seqattn
