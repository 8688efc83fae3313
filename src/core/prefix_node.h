#pragma once

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <vector>

#include "seqattn/types.h"

// One node of a prefix cache's tree: a run of pages behind those of its parent.
namespace seqattn {

struct PrefixNode;

using TimePoint = std::chrono::steady_clock::time_point;
using TokenSpan = std::span<const TokenId>;

// How many tokens the two have in common from the front.
inline std::int64_t common_tokens(TokenSpan a, TokenSpan b) {
  const std::size_t most = std::min(a.size(), b.size());
  const auto end = a.begin() + static_cast<std::ptrdiff_t>(most);
  return std::mismatch(a.begin(), end, b.begin()).first - a.begin();
}

// Orders siblings by their tokens. Their first pages differ, so that no more than those is read;
// lists that begin alike are neighbours.
struct ByTokens {
  using is_transparent = void;
  static TokenSpan tokens_of(const PrefixNode* node);
  static TokenSpan tokens_of(TokenSpan tokens) { return tokens; }
  template <class A, class B>
  bool operator()(const A& a, const B& b) const {
    const TokenSpan x = tokens_of(a), y = tokens_of(b);
    return std::lexicographical_compare(x.begin(), x.end(), y.begin(), y.end());
  }
};

struct PrefixNode {
  static constexpr std::size_t kNowhere = std::numeric_limits<std::size_t>::max();

  PrefixNode* parent = nullptr;  // null for a root
  const std::shared_ptr<const std::string>* salt = nullptr;
  std::set<PrefixNode*, ByTokens> children;  // owned
  std::vector<TokenId> tokens;               // page_size for each page
  std::vector<PageId> pages;                 // empty for a root alone
  std::int64_t first_block = 0;              // the id of the first page's block; the others follow

  // Every use of a node is one of its ancestors as well: none of these is above the parent's.
  std::uint64_t last_use = 0;  // of a counter
  TimePoint expires = TimePoint::max();
  std::chrono::nanoseconds ttl{};
  int priority = 0;
  std::int64_t num_pins = 0;  // handles that end here or behind

  // For EvictionOrder.
  std::size_t num_doomed = 0;  // children that an eviction under way will take
  std::size_t place = kNowhere, expiry_place = kNowhere;

  bool is_root() const { return parent == nullptr; }
  // Nothing is behind it that has to go first, and nobody pins it.
  bool is_evictable() const { return !is_root() && num_pins == 0 && num_doomed == children.size(); }
  std::int64_t num_pages() const { return static_cast<std::int64_t>(pages.size()); }
};

inline TokenSpan ByTokens::tokens_of(const PrefixNode* node) { return node->tokens; }

}  // namespace seqattn
