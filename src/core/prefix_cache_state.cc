#include "prefix_cache_state.h"

#include <chrono>
#include <limits>
#include <span>
#include <utility>

#include "message.h"

namespace seqattn {
namespace {

// Never, where the ttl says so or where that is beyond what clocks count.
TimePoint expiry(TimePoint now, std::chrono::nanoseconds ttl) {
  const bool is_beyond = now > TimePoint() && ttl >= TimePoint::max() - now;
  return is_beyond || ttl == std::chrono::nanoseconds::max() ? TimePoint::max() : now + ttl;
}

}  // namespace

PrefixCache::State::State(PagePool& page_pool, PrefixCacheOptions&& given)
    : pool(page_pool),
      options(std::move(given)),
      tree(pool.page_size()),
      events(options.event_capacity, pool.page_size()),
      is_cached(static_cast<std::size_t>(pool.num_pages())) {}

PrefixNode* PrefixCache::State::end_of(const PrefixTree::Place& place) {
  if (place.num_common == 0) {
    return place.node == nullptr || place.node->is_root() ? nullptr : place.node;
  }
  const std::int64_t num_pages = (place.num_common + page_size() - 1) / page_size();
  if (num_pages == place.child->num_pages()) return place.child;
  order.reserve(static_cast<std::size_t>(tree.num_nodes()) + 1);
  return &tree.split(*place.child, num_pages);
}

PrefixNode& PrefixCache::State::add(const PrefixTree::Place& place, std::string_view salt,
                                    TokenSpan tokens, PageIds pages, std::int64_t first) {
  auto sprout = PrefixTree::sprout(tokens, pages);
  // A split of the place may take one more.
  order.reserve(static_cast<std::size_t>(tree.num_nodes()) + 2);
  claim(pages, first);
  PrefixNode* parent = nullptr;
  bool has_references = false;
  try {
    pool.ref(pages, "insert");
    has_references = true;
    parent = end_of(place);
    if (parent == nullptr) parent = &tree.root(salt);
  } catch (...) {
    if (has_references) pool.drop(pages);
    disclaim(pages);
    throw;
  }
  PrefixNode& node = tree.plant(std::move(sprout), *parent);
  node.first_block = stats.num_pages_stored + 1;
  node.priority = std::numeric_limits<int>::min();
  stats.num_pages_stored += node.num_pages();
  events.note_stored(node);
  order.update(*parent);
  return node;
}

void PrefixCache::State::use(PrefixNode& end, TimePoint now) noexcept {
  ++num_uses;
  for (PrefixNode* node = &end; !node->is_root(); node = node->parent) {
    node->last_use = num_uses;
    node->expires = expiry(now, node->ttl);
  }
  order.update(end);
}

void PrefixCache::State::pin(PrefixNode& end) noexcept {
  ++stats.num_handles;
  for (PrefixNode* node = &end; !node->is_root(); node = node->parent) {
    if (node->num_pins++ == 0) stats.num_pinned_pages += node->num_pages();
  }
  order.update(end);
}

void PrefixCache::State::unpin(PrefixNode& end) noexcept {
  --stats.num_handles;
  for (PrefixNode* node = &end; !node->is_root(); node = node->parent) {
    if (--node->num_pins == 0) stats.num_pinned_pages -= node->num_pages();
  }
  order.update(end);
}

void PrefixCache::State::claim(PageIds pages, std::int64_t first) {
  for (std::size_t i = 0; i < pages.size(); ++i) {
    if (!is_cached[static_cast<std::size_t>(pages[i])]) {
      is_cached[static_cast<std::size_t>(pages[i])] = true;
      continue;
    }
    disclaim(std::span(pages.data(), i));
    throw InvalidArgumentError(
        concat("insert: page ", pages[i], " at entry ", first + static_cast<std::int64_t>(i),
               " of the sequence is cached already under other tokens or another salt; expected "
               "the tokens and the salt that it was computed for"));
  }
}

void PrefixCache::State::disclaim(PageIds pages) noexcept {
  for (const PageId page : pages) is_cached[static_cast<std::size_t>(page)] = false;
}

}  // namespace seqattn
