#include <algorithm>
#include <iterator>
#include <set>

#include "prefix_requests.h"
#include "seqattn/error.h"

// Pages that the cache gives up, because it is asked to or because the pool falls short.
namespace seqattn::testing {
namespace {

// Every page is cached once.
std::set<PageId> pages_of(const PrefixCacheModel& cached) {
  std::set<PageId> pages;
  for (const auto& [prefix, entry] : cached.entries) pages.insert(entry.page);
  return pages;
}

std::set<PageId> without(const std::set<PageId>& pages, const std::set<PageId>& others) {
  std::set<PageId> left;
  std::set_difference(pages.begin(), pages.end(), others.begin(), others.end(),
                      std::inserter(left, left.end()));
  return left;
}

}  // namespace

bool WatchedCache::reclaim(std::int64_t num_pages) {
  const std::vector<std::int32_t> before(pool_.ref_counts().begin(), pool_.ref_counts().end());
  const std::int64_t num_free = pool_.available_pages_count();
  if (!cache_.reclaim(num_pages)) return false;
  const std::vector<PageId> free_pages = pool_.free_pages();
  dropped.assign(free_pages.begin() + num_free, free_pages.end());
  EXPECT_GE(std::ssize(dropped), num_pages);
  for (PageId page = 0; page < pool_.num_pages(); ++page) {
    const std::int32_t count = pool_.ref_count(page);
    if (count > 0 && count < before[static_cast<std::size_t>(page)]) dropped.push_back(page);
  }
  return true;
}

bool PrefixRequests::reclaim_by_model(PrefixCacheModel& cached, std::int64_t num_pages,
                                      std::span<const std::int32_t> left) {
  const std::set<PageId> before = pages_of(cached);
  if (cached.evict(num_pages, left, now_, false, /*all_or_nothing=*/true) < num_pages) return false;
  const std::set<PageId> dropped(watched_.dropped.begin(), watched_.dropped.end());
  EXPECT_EQ(dropped, without(before, pages_of(cached)));
  return true;
}

void PrefixRequests::follow_freed(std::int64_t num_free, const PrefixCacheModel& before) {
  const std::vector<PageId> pages = pool_.free_pages();
  const std::vector<PageId> freed(pages.begin() + num_free, pages.end());
  std::vector<PageId> dropped = freed;
  for (const PageId page : without(pages_of(before), pages_of(cached_))) {
    if (std::find(freed.begin(), freed.end(), page) == freed.end()) dropped.push_back(page);
  }
  model_.unref(dropped);
}

void PrefixRequests::evict() {
  const bool only_expired = one_in(2);
  const std::int64_t most = only_expired ? pool_.num_pages() : below(4);
  const std::int64_t num_free = pool_.available_pages_count();
  const PrefixCacheModel before = cached_;
  const auto n = cached_.evict(most, pool_.ref_counts(), now_, only_expired, false);
  EXPECT_EQ(only_expired ? cache_.evict_expired() : cache_.evict(most), n);
  follow_freed(num_free, before);
  counts_.evicted += n;
}

void PrefixRequests::clear() {
  if (!one_in(8)) return;
  if (!held_.empty()) {
    EXPECT_THROW(cache_.clear(), PinnedError);
    return;
  }
  const std::int64_t num_free = pool_.available_pages_count();
  const PrefixCacheModel before = cached_;
  cache_.clear();
  cached_.entries.clear();
  follow_freed(num_free, before);
}

}  // namespace seqattn::testing
