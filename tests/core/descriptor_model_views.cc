#include <set>

#include "descriptor_model.h"
#include "seqattn/error.h"

namespace seqattn::testing {

const DescriptorModel::Sequence& DescriptorModel::sequence(int descriptor, SeqId id) const {
  const auto entry = tables[descriptor].find(id);
  if (entry == tables[descriptor].end()) throw UnknownSequenceError(id);
  return entry->second;
}

Stats DescriptorModel::stats(int descriptor) const {
  Stats stats;
  std::set<PageId> pages, shared;
  for (const auto& [id, sequence] : tables[descriptor]) {
    ++stats.num_sequences;
    stats.num_tokens += sequence.num_slots();
    stats.num_draft_tokens += static_cast<std::int64_t>(sequence.parents.size());
    stats.num_dropped_tokens += sequence.num_dropped();
    for (const PageId page : sequence.pages) {
      ++stats.num_page_references;
      pages.insert(page);
      if (counts.at(page) > 1) shared.insert(page);
    }
  }
  stats.num_pages = static_cast<std::int64_t>(pages.size());
  stats.num_shared_pages = static_cast<std::int64_t>(shared.size());
  stats.num_free_pages = static_cast<std::int64_t>(free_pages.size());
  return stats;
}

int DescriptorModel::last_page_len(const Sequence& sequence) const {
  if (sequence.num_slots() == 0) return 0;
  const auto rest = static_cast<int>(sequence.num_slots() % page_size);
  return rest == 0 ? page_size : rest;
}

std::vector<int> DescriptorModel::holders() const {
  std::vector<int> holders(counts.size());
  for (const PageId page : reclaimable) ++holders.at(page);
  for (const Table& table : tables) {
    for (const auto& [id, sequence] : table) {
      for (const PageId page : sequence.pages) ++holders.at(page);
    }
  }
  return holders;
}

bool DescriptorModel::has_stolen_references() const {
  const std::vector<int> held = holders();
  for (std::size_t page = 0; page < held.size(); ++page) {
    if (held[page] > counts[page]) return true;
  }
  return false;
}

std::size_t num_to_give_up(std::span<const PageId> reclaimable, std::vector<int> counts,
                           std::int64_t num_pages) {
  for (std::size_t i = 0; i < reclaimable.size(); ++i) {
    int& count = counts.at(reclaimable[i]);
    if (count == 0) return 0;  // stolen
    if (--count == 0 && --num_pages == 0) return i + 1;
  }
  return 0;
}

}  // namespace seqattn::testing
