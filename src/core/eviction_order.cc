#include "eviction_order.h"

#include "message.h"

namespace seqattn {
namespace {

void check_heap(const std::vector<PrefixNode*>& nodes, std::size_t PrefixNode::*place,
                const auto& before) {
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    if (nodes[i]->*place != i || !nodes[i]->is_evictable() ||
        (i > 0 && before(*nodes[i], *nodes[(i - 1) / 2]))) {
      throw Error(concat("PrefixCache: entry ", i, " of the order of eviction is out of place"));
    }
  }
}

}  // namespace

void EvictionOrder::check_invariants() const {
  check_heap(by_use_.nodes(), &PrefixNode::place, UsedBefore{});
  check_heap(by_expiry_.nodes(), &PrefixNode::expiry_place, ExpiresBefore{});
}

}  // namespace seqattn
