#include "prefix_cache_state.h"

#include <algorithm>
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

[[noreturn]] void refuse(PageId page, std::size_t entry) {
  throw InvalidArgumentError(
      concat("insert: page ", page, " at entry ", entry,
             " of the sequence is cached already under other tokens or another salt; expected the "
             "tokens and the salt that it was computed for"));
}

}  // namespace

PrefixCache::State::State(PagePool& page_pool, PrefixCacheOptions&& given)
    : pool(page_pool),
      options(std::move(given)),
      tree(pool.page_size()),
      events(options.event_capacity, pool.page_size()),
      is_cached(static_cast<std::size_t>(pool.num_pages())) {
  pool.is_cached_.resize(is_cached.size());
}

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
                                    TokenSpan tokens, std::span<const PageId> sequence,
                                    std::int64_t first) {
  const auto pages = sequence.subspan(static_cast<std::size_t>(first));
  auto sprout = PrefixTree::sprout(tokens, pages);
  // A split of the place may take one more.
  order.reserve(static_cast<std::size_t>(tree.num_nodes()) + 2);
  claim(sequence, first);
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

void PrefixCache::State::check_old(const PrefixTree::Place& place,
                                   std::span<const PageId> sequence) const {
  std::int64_t end = (place.num_tokens + place.num_common) / page_size();
  const auto check = [&](std::span<const PageId> pages) {
    end -= static_cast<std::int64_t>(pages.size());
    for (std::size_t i = 0; i < pages.size(); ++i) {
      const std::size_t entry = static_cast<std::size_t>(end) + i;
      const PageId page = sequence[entry];
      if (page != pages[i] && is_cached[static_cast<std::size_t>(page)]) refuse(page, entry);
    }
  };
  if (place.num_common > 0) {
    check(std::span(place.child->pages).first(place.num_common / page_size()));
  }
  for (const PrefixNode* node = place.node; node != nullptr; node = node->parent) {
    check(node->pages);
  }
}

void PrefixCache::State::claim(std::span<const PageId> sequence, std::int64_t first) {
  for (auto entry = sequence.begin() + first; entry != sequence.end(); ++entry) {
    const PageId page = *entry;
    if (!pool.is_cached(page)) {
      is_cached[static_cast<std::size_t>(page)] = true;
      pool.is_cached_[static_cast<std::size_t>(page)] = true;
      continue;
    }
    disclaim(std::span(sequence.begin() + first, entry));
    const auto earlier = std::find(sequence.begin(), entry, page);
    require(earlier == entry, "insert: page ", page, " is listed twice by the sequence, at entry ",
            earlier - sequence.begin(), " and at entry ", entry - sequence.begin(),
            "; expected each page once, since no page holds the tokens of two places");
    refuse(page, static_cast<std::size_t>(entry - sequence.begin()));
  }
}

void PrefixCache::State::disclaim(PageIds pages) noexcept {
  for (const PageId page : pages) {
    is_cached[static_cast<std::size_t>(page)] = false;
    pool.is_cached_[static_cast<std::size_t>(page)] = false;
  }
}

}  // namespace seqattn
