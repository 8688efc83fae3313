#include <algorithm>
#include <utility>

#include "descriptor_model.h"
#include "seqattn/error.h"

namespace seqattn::testing {

void DescriptorModel::drop_dead_pages(Sequence& sequence) {
  std::vector<PageId>& pages = sequence.pages;
  const std::vector<std::size_t> dead = sequence.drop_dead_pages(page_size);
  for (std::size_t i = 0; i < dead.size(); ++i) {
    const auto entry = pages.begin() + static_cast<std::ptrdiff_t>(dead[i] - i);
    const PageId dropped = *entry;
    pages.erase(entry);
    unref({&dropped, 1});
  }
}

Admission DescriptorModel::grow(int descriptor, std::span<const SeqId> ids,
                                std::span<const std::int64_t> lengths) {
  require(ids.size() == lengths.size());
  std::map<SeqId, std::int64_t> totals;
  for (const auto& [id, sequence] : tables[descriptor]) totals[id] = sequence.length;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    require(lengths[i] >= 0 && lengths[i] <= kMaxLength - totals[ids[i]]);
    totals[ids[i]] += lengths[i];
    const auto entry = tables[descriptor].find(ids[i]);
    require(lengths[i] == 0 || entry == tables[descriptor].end() || entry->second.parents.empty());
  }
  return admit(descriptor, ids, lengths);
}

Admission DescriptorModel::admit(int descriptor, std::span<const SeqId> ids,
                                 std::span<const std::int64_t> lengths) {
  Admission admission{.ok = true, .needed = 0, .available = 0, .copies = {}};
  DescriptorModel grown = *this;
  Table& table = grown.tables[descriptor];
  for (std::size_t i = 0; i < ids.size(); ++i) {
    Sequence fresh;
    fresh.window = windows[descriptor];
    Sequence& sequence = table.try_emplace(ids[i], fresh).first->second;
    if (lengths[i] > 0) grown.drop_dead_pages(sequence);
  }
  admission.available = static_cast<std::int64_t>(grown.free_pages.size());
  std::vector<int> left = grown.counts;
  // Lengths that no pool holds are only counted.
  for (std::size_t i = 0; i < ids.size(); ++i) grown.grow_one(table[ids[i]], lengths[i], admission);
  if (admission.needed <= admission.available) {
    *this = std::move(grown);
    return admission;
  }
  const bool possible = admission.needed <= static_cast<std::int64_t>(counts.size());
  for (const PageCopy& copy : admission.copies) --left.at(copy.source);
  if (possible && reclaim(admission.needed - admission.available, left)) {
    return admit(descriptor, ids, lengths);
  }
  return {.ok = false, .needed = admission.needed, .available = admission.available, .copies = {}};
}

void DescriptorModel::grow_one(Sequence& sequence, std::int64_t num_tokens, Admission& admission) {
  if (num_tokens == 0) return;
  if (sequence.num_slots() % page_size != 0 && counts.at(sequence.pages.back()) > 1) {
    const PageId shared = sequence.pages.back();
    sequence.pages.back() = take();
    --counts.at(shared);
    ++admission.needed;
    admission.copies.push_back({shared, sequence.pages.back()});
  }
  sequence.grow(num_tokens);
  while (static_cast<std::int64_t>(sequence.pages.size()) < num_pages_for(sequence.num_slots())) {
    sequence.pages.push_back(take());
    ++admission.needed;
  }
}

Admission DescriptorModel::allocate(int descriptor, std::span<const SeqId> ids,
                                    std::span<const std::int64_t> lengths) {
  Admission admission = grow(descriptor, ids, lengths);
  if (!admission) throw NoPageError(admission.needed, admission.available);
  return admission;
}

Admission DescriptorModel::decode(int descriptor, std::span<const SeqId> ids) {
  for (const SeqId id : ids) require(sequence(descriptor, id).parents.empty());
  return allocate(descriptor, ids, std::vector<std::int64_t>(ids.size(), 1));
}

Admission DescriptorModel::allocate_tree(int descriptor, SeqId id,
                                         std::span<const std::int32_t> parents,
                                         std::int64_t num_tokens) {
  require(num_tokens >= 0 && num_tokens <= kMaxLength);
  require(!parents.empty());
  for (std::size_t i = 0; i < parents.size(); ++i) {
    require(parents[i] >= -1 && parents[i] < static_cast<std::int32_t>(i));
  }
  sequence(descriptor, id);
  // Grown by tokens of the sequence, which then become drafts.
  const auto num_drafts = static_cast<std::int64_t>(parents.size());
  const std::vector<std::int64_t> lengths{num_tokens + num_drafts};
  Admission admission = allocate(descriptor, std::span(&id, 1), lengths);
  Sequence& sequence = tables[descriptor].at(id);
  sequence.length -= num_drafts;
  sequence.tokens.resize(sequence.tokens.size() - parents.size());
  sequence.parents.assign(parents.begin(), parents.end());
  return admission;
}

}  // namespace seqattn::testing
