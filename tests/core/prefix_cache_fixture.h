#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <numeric>
#include <string_view>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "seqattn/prefix_cache.h"

namespace seqattn::testing {

using Tokens = std::vector<TokenId>;

// `count` tokens from `first` on.
inline Tokens tokens(TokenId first, std::int64_t count) {
  Tokens list(static_cast<std::size_t>(count));
  std::iota(list.begin(), list.end(), first);
  return list;
}

inline Tokens operator+(Tokens a, const Tokens& b) {
  a.insert(a.end(), b.begin(), b.end());
  return a;
}

// A pool of 8 pages of 4 tokens, a cache with a clock of the test's, and sequences.
class PrefixCacheTest : public ::testing::Test {
 protected:
  ~PrefixCacheTest() override {
    cache_.check_invariants();
    sequences_.check_invariants();
  }

  // Starts a sequence of these tokens on pages of its own, without a look at the cache.
  void start(SeqId id, const Tokens& list) {
    sequences_.allocate({id}, {static_cast<std::int64_t>(list.size())});
  }
  // Has the cache alone hold these tokens' pages, as far as they are new.
  std::vector<PageId> store(const Tokens& list, std::string_view salt = {},
                            const InsertOptions& options = {}) {
    constexpr SeqId kId = 1000;
    start(kId, list);
    const auto pages = sequences_.pages(kId);
    const std::vector<PageId> result(pages.begin(), pages.end());
    cache_.insert(sequences_, kId, list, salt, options);
    sequences_.release({kId});
    return result;
  }
  // How many tokens a match finds now; itself no use that would change the order of eviction.
  std::int64_t cached(const Tokens& list, std::string_view salt = {}) {
    return cache_.pin(list, salt).num_tokens();
  }

  PagePool pool_{8, 4};
  CacheDescriptor sequences_{pool_};
  std::chrono::steady_clock::time_point now_{};
  PrefixCache cache_{pool_, {.clock = [this] { return now_; }, .event_capacity = 64}};
};

}  // namespace seqattn::testing
