#include <algorithm>
#include <array>
#include <cstddef>
#include <span>
#include <utility>
#include <vector>

#include "compact_transaction.h"
#include "draft_tree.h"
#include "grow_transaction.h"
#include "message.h"
#include "seqattn/cache_descriptor.h"
#include "sequence_slots.h"

// Trees of draft tokens, and what picks tokens out of a sequence.
namespace seqattn {
namespace {

// Indices of slots, strictly ascending, of tokens that the window has not left behind.
void check_indices(const SequenceData& data, std::span<const std::int64_t> indices,
                   std::int64_t held) {
  for (std::size_t i = 0; i < indices.size(); ++i) {
    require(held > 0, "token_indices: got ", indices[i],
            " for a sequence that holds no tokens; expected none");
    require(indices[i] >= 0 && indices[i] < held, "token_indices: got ", indices[i], " at entry ",
            i, "; expected 0 to ", held - 1, ", the tokens that are held");
    require(i == 0 || indices[i] > indices[i - 1], "token_indices: got ", indices[i], " at entry ",
            i, ", behind ", indices[i - 1], "; expected each token once, in ascending order");
    require(is_alive(data, indices[i], held), "token_indices: got ", indices[i], " at entry ", i,
            "; the window of ", data.window.window,
            " has left that token behind; expected one of the ", data.window.num_sink_tokens,
            " sinks or from ", held - data.window.window + 1, " on");
  }
}

}  // namespace

std::vector<PageCopy> CacheDescriptor::allocate_tree(SeqId seq_id, ListView<std::int32_t> parents,
                                                     std::int64_t num_tokens, Stream stream) {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  require(num_tokens >= 0 && num_tokens <= kMost, "num_tokens: got ", num_tokens,
          "; expected 0 to 2^62");
  const std::array ids{seq_id};
  const std::array num_slots{num_tokens + static_cast<std::int64_t>(parents.size())};
  auto growth = GrowTransaction::by_tree(*this, ids, num_slots, parents);
  if (!growth.prepare(stream)) {
    throw NoPageError(growth.needed(), growth.available(), pool_->reclaimer() != nullptr);
  }
  growth.commit();
  return growth.take_copies();
}

std::vector<TokenMove> CacheDescriptor::commit_tree(SeqId seq_id, ListView<std::int32_t> path,
                                                    Stream stream) {
  SequenceData& data = find(seq_id);
  require(!data.tree_parents.empty(), "sequence ", seq_id,
          ": has no pending tree; expected one: allocate_tree starts it");
  check_path(data.tree_parents, path);
  const std::int64_t held = slots_of(data, pool_->page_size()).held;
  const auto num_committed = static_cast<std::int64_t>(path.size());
  std::vector<std::int64_t> committed;
  committed.reserve(path.size());
  for (const std::int32_t draft : path) committed.push_back(held + draft);
  CompactTransaction compaction(*this, data);
  compaction.prepare({.num_unmoved = held, .rest = committed}, stream);
  compaction.commit();
  data.length += num_committed;
  data.tree_parents.clear();
  return compaction.take_moves();
}

std::vector<TokenMove> CacheDescriptor::keep(SeqId seq_id, ListView<std::int64_t> token_indices,
                                             Stream stream) {
  SequenceData& data = find(seq_id);
  require(data.tree_parents.empty(), "sequence ", seq_id, ": has a pending tree of ",
          data.tree_parents.size(),
          " draft tokens; expected none: commit_tree, or truncate to its length, ends it");
  const std::int64_t held = slots_of(data, pool_->page_size()).held;
  check_indices(data, token_indices, held);
  if (static_cast<std::int64_t>(token_indices.size()) == held) return {};  // all of them
  CompactTransaction compaction(*this, data);
  compaction.prepare({.num_unmoved = 0, .rest = token_indices}, stream);
  compaction.commit();
  const auto num_sinks =
      std::lower_bound(token_indices.begin(), token_indices.end(), data.window.num_sink_tokens) -
      token_indices.begin();
  data.window.num_sink_tokens = num_sinks;
  data.dropped_to = data.num_dropped = data.num_in_front = 0;
  data.compacted_to = data.length;
  return compaction.take_moves();
}

}  // namespace seqattn
