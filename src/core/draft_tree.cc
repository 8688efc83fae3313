#include "draft_tree.h"

#include <cstddef>

#include "message.h"

namespace seqattn {

void check_tree(std::span<const std::int32_t> parents) {
  require(!parents.empty(), "parents: got none; expected one for each draft token");
  for (std::size_t i = 0; i < parents.size(); ++i) {
    require(parents[i] >= -1 && parents[i] < static_cast<std::int64_t>(i), "parents: got ",
            parents[i], " at entry ", i, "; expected a token before it, or -1 for the last token");
  }
}

void check_path(std::span<const std::int32_t> parents, std::span<const std::int32_t> path) {
  std::int32_t last = -1;
  for (std::size_t i = 0; i < path.size(); ++i) {
    require(path[i] >= 0 && path[i] < static_cast<std::int64_t>(parents.size()), "path: got ",
            path[i], " at entry ", i, "; expected a token of the tree, 0 to ", parents.size() - 1);
    const std::int32_t parent = parents[static_cast<std::size_t>(path[i])];
    require(parent == last, "path: got token ", path[i], " at entry ", i, ", a child of ", parent,
            "; expected a child of ", last, i == 0 ? ", the sequence's last token" : "");
    last = path[i];
  }
}

std::vector<std::int64_t> depths_of(std::span<const std::int32_t> parents) {
  std::vector<std::int64_t> depths;
  depths.reserve(parents.size());
  for (const std::int32_t parent : parents) {
    depths.push_back(parent < 0 ? 0 : depths[static_cast<std::size_t>(parent)] + 1);
  }
  return depths;
}

}  // namespace seqattn
