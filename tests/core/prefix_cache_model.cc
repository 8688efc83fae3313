#include "prefix_cache_model.h"

#include <algorithm>
#include <tuple>

namespace seqattn::testing {
namespace {

using Prefix = PrefixCacheModel::Prefix;

bool begins_with(const Prefix& longer, const Prefix& shorter) {
  return longer.first == shorter.first && longer.second.size() >= shorter.second.size() &&
         std::equal(shorter.second.begin(), shorter.second.end(), longer.second.begin());
}

}  // namespace

PrefixCacheModel::Found PrefixCacheModel::find(const std::string& salt,
                                               std::span<const TokenId> tokens,
                                               bool whole_pages) const {
  Found found;
  for (const auto& [prefix, entry] : entries) {
    if (prefix.first != salt) continue;
    const auto& list = prefix.second;
    const std::size_t most = std::min(tokens.size(), list.size());
    std::size_t n = 0;
    while (n < most && tokens[n] == list[n]) ++n;
    if (whole_pages) n -= n % page_size_;
    // Only the page that holds the last of the tokens counts, not those behind it.
    if (n == 0 || n + page_size_ <= list.size()) continue;
    if (n > found.num_tokens) found.ends.clear();
    if (n < found.num_tokens) continue;
    found.num_tokens = n;
    found.ends.push_back(prefix);
  }
  return found;
}

std::vector<PageId> PrefixCacheModel::pages(const Prefix& prefix) const {
  std::vector<PageId> pages;
  for (std::size_t n = 1; n <= prefix.second.size() / page_size_; ++n) {
    pages.push_back(entries.at({prefix.first, first_pages(prefix, n)}).page);
  }
  return pages;
}

void PrefixCacheModel::use(const Prefix& prefix, Time now) {
  ++num_uses_;
  for (std::size_t n = 1; n <= prefix.second.size() / page_size_; ++n) {
    Entry& entry = entries.at({prefix.first, first_pages(prefix, n)});
    entry.last_use = num_uses_;
    entry.expires =
        entry.ttl == std::chrono::nanoseconds::max() ? Time::max() : Time(now + entry.ttl);
  }
}

bool PrefixCacheModel::holds_any(std::span<const TokenId> tokens,
                                 std::span<const PageId> pages) const {
  const auto whole = pages.first(std::min(pages.size(), tokens.size() / page_size_));
  return std::any_of(entries.begin(), entries.end(), [&](const auto& entry) {
    return std::find(whole.begin(), whole.end(), entry.second.page) != whole.end();
  });
}

std::vector<std::size_t> PrefixCacheModel::insert(const std::string& salt,
                                                  std::span<const TokenId> tokens,
                                                  std::span<const PageId> pages,
                                                  const InsertOptions& options, Time now) {
  std::vector<std::size_t> added;
  const std::size_t num_pages = tokens.size() / page_size_;
  const Prefix whole{
      salt, {tokens.begin(), tokens.begin() + static_cast<std::ptrdiff_t>(num_pages * page_size_)}};
  for (std::size_t n = 1; n <= num_pages; ++n) {
    const auto [entry, is_new] = entries.try_emplace({salt, first_pages(whole, n)});
    if (is_new) {
      entry->second.page = pages[n - 1];
      entry->second.priority = options.priority;
      added.push_back(n - 1);
    }
    entry->second.priority = std::max(entry->second.priority, options.priority);
    entry->second.ttl = std::max(entry->second.ttl, options.ttl);
  }
  if (num_pages > 0) use(whole, now);
  return added;
}

std::int64_t PrefixCacheModel::num_pinned_pages() const {
  return std::count_if(entries.begin(), entries.end(),
                       [&](const auto& entry) { return is_pinned(entry.first); });
}

std::int64_t PrefixCacheModel::evict(std::int64_t num_pages,
                                     std::span<const std::int32_t> ref_counts, Time now,
                                     bool only_expired, bool all_or_nothing) {
  const auto before = entries;
  std::int64_t num_evicted = 0;
  std::vector<Prefix> in_use;
  while (num_evicted < num_pages) {
    const Prefix* first = nullptr;
    for (const auto& [prefix, entry] : entries) {
      if (!is_leaf(prefix) || is_pinned(prefix)) continue;
      if (only_expired && entry.expires > now) continue;
      if (std::find(in_use.begin(), in_use.end(), prefix) != in_use.end()) continue;
      const auto key = [&](const Entry& e) {
        const bool has_expired = e.expires <= now;
        return has_expired ? std::tuple(0, e.expires, 0, e.last_use)
                           : std::tuple(1, Time(), e.priority, e.last_use);
      };
      if (first == nullptr || key(entry) < key(entries.at(*first))) first = &prefix;
    }
    if (first == nullptr) break;
    if (ref_counts[static_cast<std::size_t>(entries.at(*first).page)] != 1) {
      in_use.push_back(*first);
      continue;
    }
    entries.erase(entries.find(*first));
    ++num_evicted;
  }
  if (all_or_nothing) {
    std::map<Prefix, Entry> shared;
    std::vector<Prefix> unshared;
    for (const Prefix& end : in_use) {
      const auto is_unshared = [&](const Prefix& prefix) {
        return ref_counts[static_cast<std::size_t>(entries.at(prefix).page)] == 1;
      };
      for (Prefix prefix = end; num_evicted < num_pages; prefix = without_last_page(prefix)) {
        if (prefix.second.empty() || !is_leaf(prefix) || is_pinned(prefix)) break;
        bool leads_to_unshared = false;
        for (Prefix front = prefix; !front.second.empty(); front = without_last_page(front)) {
          leads_to_unshared |= !is_pinned(front) && is_unshared(front);
        }
        if (!leads_to_unshared) break;
        if (is_unshared(prefix)) {
          ++num_evicted;
          unshared.push_back(prefix);
        } else {
          shared.insert(*entries.find(prefix));
        }
        entries.erase(entries.find(prefix));
      }
    }
    std::erase_if(in_use, [&](const Prefix& end) { return !entries.contains(end); });
    // Those that led to nothing that went stay.
    std::erase_if(shared, [&](const auto& entry) {
      return std::any_of(unshared.begin(), unshared.end(),
                         [&](const Prefix& front) { return begins_with(entry.first, front); });
    });
    entries.merge(shared);
  }
  if (all_or_nothing && num_evicted < num_pages) {
    entries = before;
    return 0;
  }
  for (const Prefix& prefix : in_use) use(prefix, now);
  return num_evicted;
}

bool PrefixCacheModel::is_pinned(const Prefix& prefix) const {
  return std::any_of(pins_.begin(), pins_.end(),
                     [&](const Prefix& pin) { return begins_with(pin, prefix); });
}

bool PrefixCacheModel::is_leaf(const Prefix& prefix) const {
  return std::none_of(entries.begin(), entries.end(), [&](const auto& entry) {
    return entry.first != prefix && begins_with(entry.first, prefix);
  });
}

Prefix PrefixCacheModel::without_last_page(const Prefix& prefix) const {
  return {prefix.first, first_pages(prefix, prefix.second.size() / page_size_ - 1)};
}

std::vector<TokenId> PrefixCacheModel::first_pages(const Prefix& prefix,
                                                   std::size_t num_pages) const {
  const auto end = prefix.second.begin() + static_cast<std::ptrdiff_t>(num_pages * page_size_);
  return {prefix.second.begin(), end};
}

}  // namespace seqattn::testing
