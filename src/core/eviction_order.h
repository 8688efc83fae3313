#pragma once

#include <cstddef>
#include <vector>

#include "prefix_node.h"

namespace seqattn {

// A binary heap of nodes that know their places in it.
template <class Before, std::size_t PrefixNode::*kPlace>
class NodeHeap {
 public:
  // Room for that many nodes; without it `update` could fail.
  void reserve(std::size_t num_nodes) {
    if (num_nodes > nodes_.capacity()) nodes_.reserve(num_nodes + num_nodes / 2);
  }
  void clear() noexcept { nodes_.clear(); }
  const std::vector<PrefixNode*>& nodes() const noexcept { return nodes_; }
  PrefixNode* first() const noexcept { return nodes_.empty() ? nullptr : nodes_.front(); }

  // Puts the node where its key belongs, or takes it out.
  void update(PrefixNode& node, bool is_member) noexcept {
    std::size_t place = node.*kPlace;
    if (place == PrefixNode::kNowhere) {
      if (!is_member) return;
      place = nodes_.size();
      nodes_.push_back(&node);
    } else if (!is_member) {
      node.*kPlace = PrefixNode::kNowhere;
      PrefixNode* const last = nodes_.back();
      nodes_.pop_back();
      if (last == &node) return;
      nodes_[place] = last;
    }
    sink(rise(place));
  }

 private:
  std::size_t rise(std::size_t i) noexcept {
    PrefixNode* const node = nodes_[i];
    for (; i > 0 && Before{}(*node, *nodes_[(i - 1) / 2]); i = (i - 1) / 2) {
      put(i, nodes_[(i - 1) / 2]);
    }
    put(i, node);
    return i;
  }
  void sink(std::size_t i) noexcept {
    PrefixNode* const node = nodes_[i];
    for (;;) {
      std::size_t child = 2 * i + 1;
      if (child + 1 < nodes_.size() && Before{}(*nodes_[child + 1], *nodes_[child])) ++child;
      if (child >= nodes_.size() || !Before{}(*nodes_[child], *node)) break;
      put(i, nodes_[child]);
      i = child;
    }
    put(i, node);
  }
  void put(std::size_t i, PrefixNode* node) noexcept {
    nodes_[i] = node;
    node->*kPlace = i;
  }

  std::vector<PrefixNode*> nodes_;
};

// The nodes of a tree that can be evicted next, and which of them goes first.
class EvictionOrder {
 public:
  void reserve(std::size_t num_nodes) {
    by_use_.reserve(num_nodes);
    by_expiry_.reserve(num_nodes);
  }
  void clear() noexcept {
    by_use_.clear();
    by_expiry_.clear();
  }

  // To be called when a node's children, pins or uses have changed. O(log(nodes)).
  void update(PrefixNode& node) noexcept { set(node, node.is_evictable()); }
  void remove(PrefixNode& node) noexcept { set(node, false); }

  // The first of those past their ttl; null where there are none.
  PrefixNode* first_expired(TimePoint now) const noexcept {
    PrefixNode* const node = by_expiry_.first();
    return node != nullptr && node->expires <= now ? node : nullptr;
  }
  PrefixNode* first(TimePoint now) const noexcept {
    PrefixNode* const node = first_expired(now);
    return node != nullptr ? node : by_use_.first();
  }

  // Throws Error unless both heaps are in order and hold their nodes once.
  void check_invariants() const;

 private:
  struct UsedBefore {
    bool operator()(const PrefixNode& a, const PrefixNode& b) const noexcept {
      return a.priority != b.priority ? a.priority < b.priority : a.last_use < b.last_use;
    }
  };
  struct ExpiresBefore {
    bool operator()(const PrefixNode& a, const PrefixNode& b) const noexcept {
      return a.expires != b.expires ? a.expires < b.expires : a.last_use < b.last_use;
    }
  };
  void set(PrefixNode& node, bool is_member) noexcept {
    by_use_.update(node, is_member);
    by_expiry_.update(node, is_member && node.expires != TimePoint::max());
  }

  NodeHeap<UsedBefore, &PrefixNode::place> by_use_;
  NodeHeap<ExpiresBefore, &PrefixNode::expiry_place> by_expiry_;
};

}  // namespace seqattn
