#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "descriptor_model.h"
#include "seqattn/error.h"

namespace seqattn::testing {

std::vector<TokenMove> DescriptorModel::commit_tree(int descriptor, SeqId id,
                                                    std::span<const std::int32_t> path) {
  sequence(descriptor, id);
  Sequence& sequence = tables[descriptor].at(id);
  sequence.check_path(path);
  std::vector<std::int64_t> slots(sequence.tokens.size());
  std::iota(slots.begin(), slots.end(), 0);
  for (const std::int32_t token : path) slots.push_back(std::ssize(sequence.tokens) + token);
  auto moves = compact(sequence, slots);
  sequence.commit(path);
  return moves;
}

std::vector<TokenMove> DescriptorModel::keep(int descriptor, SeqId id,
                                             std::span<const std::int64_t> slots) {
  sequence(descriptor, id);
  Sequence& sequence = tables[descriptor].at(id);
  sequence.check_slots(slots);
  if (static_cast<std::int64_t>(slots.size()) == sequence.num_slots()) return {};
  auto moves = compact(sequence, slots);
  sequence.keep(slots);
  return moves;
}

// Changes the pages only.
std::vector<TokenMove> DescriptorModel::compact(Sequence& sequence,
                                                std::span<const std::int64_t> slots) {
  std::set<std::size_t> written;  // entries of the table
  for (std::size_t i = 0; i < slots.size(); ++i) {
    if (slots[i] != static_cast<std::int64_t>(i)) written.insert(i / page_size);
  }
  std::vector<std::size_t> replaced;
  const auto list_replaced = [&] {
    replaced.clear();
    for (const std::size_t entry : written) {
      if (counts.at(sequence.pages[entry]) <= 1) continue;
      replaced.push_back(entry);
    }
  };
  list_replaced();
  std::set<PageId> shared;
  for (const std::size_t entry : replaced) shared.insert(sequence.pages[entry]);
  std::vector<int> left = counts;
  for (const PageId page : shared) --left.at(page);
  const std::int64_t missing = std::ssize(replaced) - std::ssize(free_pages);
  if (missing > 0 && std::ssize(replaced) <= std::ssize(counts) && reclaim(missing, left)) {
    list_replaced();
  }
  if (replaced.size() > free_pages.size()) {
    throw NoPageError(std::ssize(replaced), std::ssize(free_pages));
  }
  const std::vector<PageId> old_pages = sequence.pages, fresh = allocate(replaced.size());
  std::vector<PageId> given_up;
  for (std::size_t i = 0; i < replaced.size(); ++i) {
    given_up.push_back(std::exchange(sequence.pages[replaced[i]], fresh[i]));
  }
  const auto rest = sequence.pages.begin() + num_pages_for(static_cast<std::int64_t>(slots.size()));
  given_up.insert(given_up.end(), rest, sequence.pages.end());
  sequence.pages.erase(rest, sequence.pages.end());
  unref(given_up);
  std::vector<TokenMove> moves;
  for (std::int64_t i = 0; i < static_cast<std::int64_t>(slots.size()); ++i) {
    const TokenMove move{old_pages[slots[i] / page_size], static_cast<int>(slots[i] % page_size),
                         sequence.pages[i / page_size], static_cast<int>(i % page_size)};
    const bool is_new = std::count(replaced.begin(), replaced.end(), i / page_size) > 0;
    if (slots[i] != i || is_new) moves.push_back(move);
  }
  return moves;
}

}  // namespace seqattn::testing
