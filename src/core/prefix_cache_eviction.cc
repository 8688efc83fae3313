#include <algorithm>

#include "message.h"
#include "prefix_cache_state.h"
#include "seqattn/prefix_cache.h"

// How a prefix cache gives pages back.
namespace seqattn {

std::int64_t PrefixCache::Eviction::prepare(std::int64_t num_pages, bool only_expired) {
  std::int64_t num_planned = 0;
  while (num_planned < num_pages) {
    PrefixNode* const node =
        only_expired ? state_.order.first_expired(now_) : state_.order.first(now_);
    if (node == nullptr) break;
    const std::int64_t count = num_free_after(*node, num_pages - num_planned);
    num_planned += count;
    if (count > 0) victims_.push_back({node, count});
    if (count < node->num_pages() && num_planned < num_pages) in_use_.push_back(node);
    state_.order.remove(*node);
    if (count < node->num_pages() || node->parent->is_root()) continue;
    ++node->parent->num_doomed;
    state_.order.update(*node->parent);
  }
  return num_planned;
}

// How many pages at the node's end, up to `most`, nothing but the cache holds.
std::int64_t PrefixCache::Eviction::num_free_after(const PrefixNode& node,
                                                   std::int64_t most) const {
  const auto counts = state_.pool.ref_counts();
  const auto end = node.pages.rbegin() + std::min(most, node.num_pages());
  return std::find_if(node.pages.rbegin(), end,
                      [&](PageId page) { return counts[static_cast<std::size_t>(page)] != 1; }) -
         node.pages.rbegin();
}

void PrefixCache::Eviction::commit() noexcept {
  for (const Victim& victim : victims_) {
    PrefixNode& node = *victim.node;
    const auto pages = std::span(node.pages).last(static_cast<std::size_t>(victim.num_pages));
    state_.events.note_evicted(node, victim.num_pages);
    state_.stats.num_pages_evicted += victim.num_pages;
    state_.disclaim(pages);
    state_.pool.drop(pages);  // cannot fail: each has the one reference that prepare saw
    const bool goes_whole = victim.goes_whole();
    if (goes_whole && !node.parent->is_root()) --node.parent->num_doomed;
    state_.tree.trim(node, victim.num_pages);
    if (!goes_whole) state_.order.update(node);
  }
  for (PrefixNode* const node : in_use_) state_.use(*node, now_);
  victims_.clear();
  in_use_.clear();
}

void PrefixCache::Eviction::rollback() noexcept {
  for (; !victims_.empty(); victims_.pop_back()) {
    const Victim& victim = victims_.back();
    PrefixNode* const parent = victim.node->parent;
    if (victim.goes_whole() && !parent->is_root()) {
      --parent->num_doomed;
      state_.order.update(*parent);
    }
    state_.order.update(*victim.node);
  }
  for (PrefixNode* const node : in_use_) state_.order.update(*node);
}

std::int64_t PrefixCache::evict_up_to(std::int64_t num_pages, bool only_expired) {
  Eviction eviction(*state_);
  const std::int64_t num_evicted = eviction.prepare(num_pages, only_expired);
  eviction.commit();
  return num_evicted;
}

std::int64_t PrefixCache::evict(std::int64_t num_pages) {
  require(num_pages >= 0, "num_pages: got ", num_pages, "; expected at least 0");
  return evict_up_to(num_pages, /*only_expired=*/false);
}

std::int64_t PrefixCache::evict_expired() {
  return evict_up_to(state_->tree.num_pages(), /*only_expired=*/true);
}

bool PrefixCache::reclaim(std::int64_t num_pages) {
  if (num_pages > state_->tree.num_pages() - state_->stats.num_pinned_pages) return false;
  Eviction eviction(*state_);
  if (eviction.prepare(num_pages, /*only_expired=*/false) < num_pages) return false;
  eviction.commit();
  return true;
}

void PrefixCache::clear() {
  State& state = *state_;
  if (state.stats.num_handles > 0) throw PinnedError(state.stats.num_handles);
  std::vector<PageId> pages;
  pages.reserve(static_cast<std::size_t>(state.tree.num_pages()));
  for (const PrefixNode* node : state.tree.nodes()) {
    pages.insert(pages.end(), node->pages.begin(), node->pages.end());
  }
  state.pool.drop(pages);
  state.disclaim(pages);
  state.order.clear();
  state.tree.clear();
  state.stats.num_pages_evicted += static_cast<std::int64_t>(pages.size());
  state.events.note_cleared();
}

}  // namespace seqattn
