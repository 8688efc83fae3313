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
    const std::int64_t count = num_unshared_at_end(*node, num_pages - num_planned);
    num_planned += count;
    if (count > 0) victims_.push_back({node, count});
    if (count < node->num_pages() && num_planned < num_pages) {
      in_use_.push_back({.node = node, .victim = count > 0 ? victims_.size() - 1 : kNoVictim});
    }
    state_.order.remove(*node);
    if (count == node->num_pages()) doom(*node);
  }
  return num_planned;
}

std::int64_t PrefixCache::Eviction::prepare_behind_shares(std::int64_t num_pages) {
  std::int64_t num_planned = 0;
  for (EndInUse& met : in_use_) {
    EndInUse in_front;
    for (EndInUse* end = &met; num_planned < num_pages; end = &in_front) {
      num_planned += give_up_shares(*end, num_pages - num_planned);
      if (end->victim == kNoVictim || !victims_[end->victim].goes_whole()) break;
      doom(*end->node);
      in_front = {.node = end->node->parent};
      if (!in_front.node->is_evictable()) break;
    }
  }
  if (num_planned >= num_pages) take_back_vain_shares();
  return num_planned;
}

// Another end may have led to enough: shares that then free nothing stay.
void PrefixCache::Eviction::take_back_vain_shares() {
  std::unordered_set<const PrefixNode*> going;
  for (auto victim = victims_.rbegin(); victim != victims_.rend(); ++victim) {  // parents first
    PrefixNode& node = *victim->node;
    const bool was_whole = victim->goes_whole();
    if (was_whole && !going.contains(node.parent)) {
      const auto is_shared = [this](PageId page) { return !is_unshared(page); };
      victim->num_pages -=
          std::find_if_not(node.pages.begin(), node.pages.end(), is_shared) - node.pages.begin();
      if (!victim->goes_whole()) undoom(node);
    }
    if (victim->num_pages > 0) going.insert(&node);
  }
}

// Has the node's pages go from its end on as far as that frees up to `most`, and whole where only
// that leads on to more. Returns how many it frees.
std::int64_t PrefixCache::Eviction::give_up_shares(EndInUse& end, std::int64_t most) {
  const auto& pages = end.node->pages;
  const std::int64_t num_going = end.victim == kNoVictim ? 0 : victims_[end.victim].num_pages;
  std::int64_t num_pages = num_going, num_freed = 0;
  for (std::int64_t n = num_going; n < end.node->num_pages() && num_freed < most; ++n) {
    if (!is_unshared(pages[pages.size() - 1 - static_cast<std::size_t>(n)])) continue;
    ++num_freed;
    num_pages = n + 1;
  }
  if (num_freed < most && any_unshared_in_front(*end.node)) num_pages = end.node->num_pages();
  if (num_pages == num_going) return 0;
  if (end.victim == kNoVictim) {
    victims_.push_back({end.node, 0});
    end.victim = victims_.size() - 1;
    state_.order.remove(*end.node);
  }
  victims_[end.victim].num_pages = num_pages;
  end.stays = false;
  return num_freed;
}

bool PrefixCache::Eviction::any_unshared_in_front(const PrefixNode& node) {
  bool found = false;
  std::vector<const PrefixNode*> seen;
  for (const PrefixNode* n = node.parent; !found && !n->is_root() && n->num_pins == 0;
       n = n->parent) {
    const auto known = leads_to_unshared_.find(n);
    if (known != leads_to_unshared_.end()) {
      found = known->second;
      break;
    }
    seen.push_back(n);
    found = std::any_of(n->pages.begin(), n->pages.end(),
                        [&](PageId page) { return is_unshared(page); });
  }
  for (const PrefixNode* n : seen) leads_to_unshared_[n] = found;
  return found;
}

bool PrefixCache::Eviction::is_unshared(PageId page) const {
  return state_.pool.ref_counts()[static_cast<std::size_t>(page)] == 1;
}

// How many pages at the node's end, up to `most`.
std::int64_t PrefixCache::Eviction::num_unshared_at_end(const PrefixNode& node,
                                                        std::int64_t most) const {
  const auto end = node.pages.rbegin() + std::min(most, node.num_pages());
  return std::find_if(node.pages.rbegin(), end, [&](PageId page) { return !is_unshared(page); }) -
         node.pages.rbegin();
}

void PrefixCache::Eviction::doom(PrefixNode& node) noexcept {
  if (node.parent->is_root()) return;
  ++node.parent->num_doomed;
  state_.order.update(*node.parent);
}

void PrefixCache::Eviction::undoom(PrefixNode& node) noexcept {
  if (node.parent->is_root()) return;
  --node.parent->num_doomed;
  state_.order.update(*node.parent);
}

void PrefixCache::Eviction::commit() noexcept {
  for (const Victim& victim : victims_) {
    PrefixNode& node = *victim.node;
    const auto pages = std::span(node.pages).last(static_cast<std::size_t>(victim.num_pages));
    state_.events.note_evicted(node, victim.num_pages);
    state_.stats.num_pages_evicted += victim.num_pages;
    state_.disclaim(pages);
    state_.pool.drop(pages);  // cannot fail: each has the reference that prepare saw
    const bool goes_whole = victim.goes_whole();
    if (goes_whole && !node.parent->is_root()) --node.parent->num_doomed;
    state_.tree.trim(node, victim.num_pages);
    if (!goes_whole) state_.order.update(node);
  }
  for (const EndInUse& end : in_use_) {
    if (end.stays) state_.use(*end.node, now_);
  }
  victims_.clear();
  in_use_.clear();
}

void PrefixCache::Eviction::rollback() noexcept {
  for (; !victims_.empty(); victims_.pop_back()) {
    const Victim& victim = victims_.back();
    if (victim.goes_whole()) undoom(*victim.node);
    state_.order.update(*victim.node);
  }
  for (const EndInUse& end : in_use_) {
    if (end.stays) state_.order.update(*end.node);
  }
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
  const std::int64_t num_planned = eviction.prepare(num_pages, /*only_expired=*/false);
  const std::int64_t num_short = num_pages - num_planned;
  if (num_short > 0 && eviction.prepare_behind_shares(num_short) < num_short) return false;
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
