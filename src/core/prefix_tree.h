#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "prefix_node.h"
#include "seqattn/types.h"

namespace seqattn {

// A radix tree for each salt, its edges whole pages. It knows nothing of pools, uses and pins, but
// that nodes which are split keep them.
class PrefixTree {
 public:
  explicit PrefixTree(int page_size) : page_size_(page_size) {}
  ~PrefixTree() { clear(); }
  PrefixTree(const PrefixTree&) = delete;
  PrefixTree& operator=(const PrefixTree&) = delete;

  // Where a list of tokens leaves the tree: `node` ends after `num_tokens` of them, and the next
  // `num_common` are the first of `child`, which has more.
  struct Place {
    PrefixNode* node = nullptr;  // null where the salt is unknown
    std::int64_t num_tokens = 0;
    PrefixNode* child = nullptr;  // null where no child begins with the next token
    std::int64_t num_common = 0;
  };
  // O(tokens found + nodes * page_size * log(siblings)).
  Place find(std::string_view salt, TokenSpan tokens);

  // The salt's root, made where there is none.
  PrefixNode& root(std::string_view salt);
  // Forgets the salt of a root without children. Does nothing for other nodes.
  void forget_if_empty(const PrefixNode& node) noexcept;

  // Cuts a node behind its first pages, 0 < num_pages < its own; the node itself becomes the child
  // of a new one, which is returned. All or nothing. O(tokens of the node).
  PrefixNode& split(PrefixNode& node, std::int64_t num_pages);

  // A node on its own, in two steps: the first can fail, the second cannot.
  struct Sprout {
    std::unique_ptr<PrefixNode> node;
    std::set<PrefixNode*, ByTokens> link;  // an entry for the parent's children
  };
  static Sprout sprout(TokenSpan tokens, std::span<const PageId> pages);
  PrefixNode& plant(Sprout&& sprout, PrefixNode& parent) noexcept;

  // Drops the last pages of a node without children; with the last of them the node goes, and its
  // salt with that, where it was the only one.
  void trim(PrefixNode& node, std::int64_t num_pages) noexcept;
  void clear() noexcept;

  std::int64_t num_nodes() const noexcept { return num_nodes_; }  // without roots
  std::int64_t num_pages() const noexcept { return num_pages_; }
  std::int64_t num_salts() const noexcept { return static_cast<std::int64_t>(roots_.size()); }
  // Parents before children; without roots.
  std::vector<PrefixNode*> nodes() const;
  // Throws Error unless every node has pages, their tokens, and a place that these give it.
  void check_invariants() const;

 private:
  struct Root {
    std::shared_ptr<const std::string> salt;  // which events share
    PrefixNode node;
  };

  int page_size_;
  std::map<std::string_view, Root> roots_;  // the key is what `salt` holds
  std::int64_t num_nodes_ = 0, num_pages_ = 0;
};

}  // namespace seqattn
