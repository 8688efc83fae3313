#include "prefix_tree.h"

#include <algorithm>
#include <utility>

#include "message.h"

namespace seqattn {
namespace {

std::ptrdiff_t offset(std::int64_t n) { return static_cast<std::ptrdiff_t>(n); }

}  // namespace

PrefixTree::Place PrefixTree::find(std::string_view salt, TokenSpan tokens) {
  const auto entry = roots_.find(salt);
  if (entry == roots_.end()) return {};
  Place place{.node = &entry->second.node};
  while (!tokens.empty()) {
    const auto& children = place.node->children;
    const auto next =
        children.lower_bound(tokens.first(std::min(tokens.size(), std::size_t(page_size_))));
    // Whoever has most in common with the tokens lies on one side of them or the other.
    place.child = nullptr;
    place.num_common = 0;
    for (const auto& [candidate, exists] :
         {std::pair(next, next != children.end()),
          std::pair(next == children.begin() ? next : std::prev(next), next != children.begin())}) {
      if (!exists) continue;
      const std::int64_t num_common = common_tokens((*candidate)->tokens, tokens);
      if (num_common <= place.num_common) continue;
      place.child = *candidate;
      place.num_common = num_common;
    }
    if (place.child == nullptr || place.num_common < std::ssize(place.child->tokens)) break;
    place.node = place.child;
    place.num_tokens += place.num_common;
    tokens = tokens.subspan(static_cast<std::size_t>(place.num_common));
    place.child = nullptr;
    place.num_common = 0;
  }
  return place;
}

PrefixNode& PrefixTree::root(std::string_view salt) {
  const auto entry = roots_.find(salt);
  if (entry != roots_.end()) return entry->second.node;
  auto text = std::make_shared<const std::string>(salt);
  const std::string_view key = *text;
  Root& root = roots_[key];
  root.salt = std::move(text);
  root.node.salt = &root.salt;
  return root.node;
}

void PrefixTree::forget_if_empty(const PrefixNode& node) noexcept {
  if (!node.is_root() || !node.children.empty()) return;
  roots_.erase(roots_.find(**node.salt));
}

PrefixNode& PrefixTree::split(PrefixNode& node, std::int64_t num_pages) {
  const std::int64_t num_tokens = num_pages * page_size_;
  auto upper = std::make_unique<PrefixNode>();
  upper->tokens.assign(node.tokens.begin(), node.tokens.begin() + offset(num_tokens));
  upper->pages.assign(node.pages.begin(), node.pages.begin() + offset(num_pages));
  std::vector<TokenId> tokens(node.tokens.begin() + offset(num_tokens), node.tokens.end());
  std::vector<PageId> pages(node.pages.begin() + offset(num_pages), node.pages.end());
  upper->children.insert(&node);  // the last step that can fail
  upper->parent = node.parent;
  upper->salt = node.salt;
  upper->first_block = node.first_block;
  upper->last_use = node.last_use;
  upper->expires = node.expires;
  upper->ttl = node.ttl;
  upper->priority = node.priority;
  upper->num_pins = node.num_pins;
  auto entry = node.parent->children.extract(&node);
  entry.value() = upper.get();  // which has the same first page
  node.parent->children.insert(std::move(entry));
  node.parent = upper.get();
  node.tokens.swap(tokens);
  node.pages.swap(pages);
  node.first_block += num_pages;
  ++num_nodes_;
  return *upper.release();
}

PrefixTree::Sprout PrefixTree::sprout(TokenSpan tokens, std::span<const PageId> pages) {
  auto node = std::make_unique<PrefixNode>();
  node->tokens.assign(tokens.begin(), tokens.end());
  node->pages.assign(pages.begin(), pages.end());
  std::set<PrefixNode*, ByTokens> link{node.get()};
  return {std::move(node), std::move(link)};
}

PrefixNode& PrefixTree::plant(Sprout&& sprout, PrefixNode& parent) noexcept {
  PrefixNode* const node = sprout.node.release();
  node->parent = &parent;
  node->salt = parent.salt;
  parent.children.merge(sprout.link);
  ++num_nodes_;
  num_pages_ += node->num_pages();
  return *node;
}

void PrefixTree::trim(PrefixNode& node, std::int64_t num_pages) noexcept {
  num_pages_ -= num_pages;
  const std::int64_t rest = node.num_pages() - num_pages;
  if (rest > 0) {
    node.pages.erase(node.pages.begin() + offset(rest), node.pages.end());
    node.tokens.erase(node.tokens.begin() + offset(rest * page_size_), node.tokens.end());
    return;
  }
  PrefixNode* const parent = node.parent;
  parent->children.erase(&node);
  delete &node;
  --num_nodes_;
  forget_if_empty(*parent);
}

void PrefixTree::clear() noexcept {
  // Step by step and not by recursion, which a deep tree would take beyond the stack.
  for (auto& [salt, root] : roots_) {
    for (PrefixNode* node = &root.node; node != nullptr;) {
      if (!node->children.empty()) {
        node = *node->children.begin();
        continue;
      }
      PrefixNode* const parent = node->parent;
      if (parent != nullptr) {
        parent->children.erase(parent->children.begin());
        delete node;
      }
      node = parent;
    }
  }
  roots_.clear();
  num_nodes_ = num_pages_ = 0;
}

std::vector<PrefixNode*> PrefixTree::nodes() const {
  std::vector<PrefixNode*> nodes;
  nodes.reserve(static_cast<std::size_t>(num_nodes_));
  for (const auto& [salt, root] : roots_) {
    nodes.insert(nodes.end(), root.node.children.begin(), root.node.children.end());
  }
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const auto& children = nodes[i]->children;
    nodes.insert(nodes.end(), children.begin(), children.end());
  }
  return nodes;
}

void PrefixTree::check_invariants() const {
  const auto check = [](bool condition, const auto&... parts) {
    if (!condition) throw Error(concat("PrefixCache: ", parts...));
  };
  std::int64_t num_pages = 0;
  const std::vector<PrefixNode*> all = nodes();
  for (const PrefixNode* node : all) {
    num_pages += node->num_pages();
    check(!node->pages.empty(), "a node has no pages");
    check(std::ssize(node->tokens) == node->num_pages() * page_size_, "a node has ",
          node->tokens.size(), " tokens on ", node->pages.size(), " pages of ", page_size_);
    check(node->parent->children.contains(node), "a node is not among its parent's children");
    const PrefixNode* before = nullptr;
    for (const PrefixNode* child : node->children) {
      check(child->parent == node && child->salt == node->salt, "a child has another parent");
      check(before == nullptr || common_tokens(before->tokens, child->tokens) < page_size_,
            "siblings share their first page");
      before = child;
    }
  }
  check(std::ssize(all) == num_nodes_ && num_pages == num_pages_, "got ", all.size(), " nodes of ",
        num_pages, " pages; expected ", num_nodes_, " of ", num_pages_);
  for (const auto& [salt, root] : roots_) {
    check(!root.node.children.empty(), "a salt without pages is kept");
  }
}

}  // namespace seqattn
