#pragma once

#include <chrono>
#include <cstdint>
#include <map>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "seqattn/prefix_cache.h"

namespace seqattn::testing {

// What a prefix cache has to do, too simple to be wrong: a map from every cached prefix of whole
// pages to its last page, searched from end to end.
class PrefixCacheModel {
 public:
  using Time = std::chrono::steady_clock::time_point;
  // A salt and all tokens up to a page's end.
  using Prefix = std::pair<std::string, std::vector<TokenId>>;
  struct Entry {
    PageId page = 0;
    std::int64_t last_use = 0;
    Time expires = Time::max();
    std::chrono::nanoseconds ttl{};
    int priority = 0;
  };

  explicit PrefixCacheModel(int page_size) : page_size_(static_cast<std::size_t>(page_size)) {}

  // How many of the first `most` tokens are cached, and the pages that can hold the last of them:
  // more than one where prefixes part later in that page.
  struct Found {
    std::size_t num_tokens = 0;
    std::vector<Prefix> ends;
  };
  Found find(const std::string& salt, std::span<const TokenId> tokens, bool whole_pages) const;

  // Whether one of the pages is cached that hold whole pages of these tokens.
  bool holds_any(std::span<const TokenId> tokens, std::span<const PageId> pages) const;
  // The page of every prefix of this one.
  std::vector<PageId> pages(const Prefix& prefix) const;
  void use(const Prefix& prefix, Time now);
  // The numbers of the pages that are new.
  std::vector<std::size_t> insert(const std::string& salt, std::span<const TokenId> tokens,
                                  std::span<const PageId> pages, const InsertOptions& options,
                                  Time now);

  void pin(const Prefix& prefix) { pins_.insert(prefix); }
  void unpin(const Prefix& prefix) { pins_.erase(pins_.find(prefix)); }
  std::int64_t num_pins() const { return static_cast<std::int64_t>(pins_.size()); }
  std::int64_t num_pinned_pages() const;

  // Frees up to that many pages, or with `all_or_nothing` that many or none; returns how many. The
  // latter gives up shares of pages that sequences hold, from ends that have pages in front which
  // that can free.
  std::int64_t evict(std::int64_t num_pages, std::span<const std::int32_t> ref_counts, Time now,
                     bool only_expired, bool all_or_nothing);

  std::map<Prefix, Entry> entries;

 private:
  bool is_pinned(const Prefix& prefix) const;
  bool is_leaf(const Prefix& prefix) const;
  Prefix without_last_page(const Prefix& prefix) const;
  std::vector<TokenId> first_pages(const Prefix& prefix, std::size_t num_pages) const;

  std::size_t page_size_;
  std::multiset<Prefix> pins_;
  std::int64_t num_uses_ = 0;
};

}  // namespace seqattn::testing
