#include "descriptor_model.h"

#include <algorithm>
#include <numeric>
#include <set>
#include <utility>

#include "seqattn/error.h"

namespace seqattn::testing {
namespace {

constexpr std::int64_t kMaxLength = std::int64_t{1} << 62;

void require(bool condition) {
  if (!condition) throw InvalidArgumentError("the model refuses");
}

}  // namespace

DescriptorModel::DescriptorModel(int num_pages, int tokens_a_page)
    : page_size(tokens_a_page),
      counts(static_cast<std::size_t>(num_pages)),
      free_pages(static_cast<std::size_t>(num_pages)),
      generations(static_cast<std::size_t>(num_pages)) {
  std::iota(free_pages.begin(), free_pages.end(), 0);
}

std::int64_t DescriptorModel::num_pages_for(std::int64_t num_tokens) const {
  return num_tokens / page_size + (num_tokens % page_size != 0 ? 1 : 0);
}

PageId DescriptorModel::take() {
  if (free_pages.empty()) {
    free_pages.push_back(static_cast<PageId>(counts.size()));
    counts.push_back(0);
    generations.push_back(0);
  }
  const PageId page = free_pages.front();
  free_pages.erase(free_pages.begin());
  counts.at(page) = 1;
  return page;
}

std::vector<PageId> DescriptorModel::allocate(std::int64_t num_pages) {
  require(num_pages >= 0);
  const auto available = [this] { return static_cast<std::int64_t>(free_pages.size()); };
  if (num_pages > available() &&
      (num_pages > static_cast<std::int64_t>(counts.size()) || !reclaim(num_pages - available()))) {
    throw NoPageError(num_pages, available());
  }
  std::vector<PageId> pages;
  while (num_pages-- > 0) pages.push_back(take());
  return pages;
}

void DescriptorModel::ref(std::span<const PageId> pages) {
  for (const PageId page : pages) {
    require(page >= 0 && page < static_cast<PageId>(counts.size()) && counts.at(page) > 0);
    ++counts.at(page);
  }
}

void DescriptorModel::unref(std::span<const PageId> pages) {
  for (const PageId page : pages) {
    require(page >= 0 && page < static_cast<PageId>(counts.size()) && counts.at(page) > 0);
    if (--counts.at(page) > 0) continue;
    free_pages.push_back(page);
    ++generations.at(page);
  }
}

bool DescriptorModel::reclaim(std::int64_t num_pages) {
  const std::size_t count = num_to_give_up(reclaimable, counts, num_pages);
  if (count == 0) return false;
  unref(std::span(reclaimable).first(count));
  reclaimable.erase(reclaimable.begin(), reclaimable.begin() + static_cast<std::ptrdiff_t>(count));
  return true;
}

Admission DescriptorModel::grow(int descriptor, std::span<const SeqId> ids,
                                std::span<const std::int64_t> lengths) {
  require(ids.size() == lengths.size());
  std::map<SeqId, std::int64_t> totals;
  for (const auto& [id, sequence] : tables[descriptor]) totals[id] = sequence.length;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    require(lengths[i] >= 0 && lengths[i] <= kMaxLength - totals[ids[i]]);
    totals[ids[i]] += lengths[i];
  }
  Admission admission{.ok = true, .needed = 0, .available = 0, .copies = {}};
  admission.available = static_cast<std::int64_t>(free_pages.size());
  DescriptorModel grown = *this;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    grown.grow_one(grown.tables[descriptor][ids[i]], lengths[i], admission);
  }
  if (admission.needed <= admission.available) {
    *this = std::move(grown);
    return admission;
  }
  const bool possible = admission.needed <= static_cast<std::int64_t>(counts.size());
  if (possible && reclaim(admission.needed - admission.available)) {
    return grow(descriptor, ids, lengths);
  }
  return {.ok = false, .needed = admission.needed, .available = admission.available, .copies = {}};
}

void DescriptorModel::grow_one(Sequence& sequence, std::int64_t num_tokens, Admission& admission) {
  if (num_tokens == 0) return;
  if (sequence.length % page_size != 0 && counts.at(sequence.pages.back()) > 1) {
    const PageId shared = sequence.pages.back();
    sequence.pages.back() = take();
    --counts.at(shared);
    ++admission.needed;
    admission.copies.push_back({shared, sequence.pages.back()});
  }
  sequence.length += num_tokens;
  while (static_cast<std::int64_t>(sequence.pages.size()) < num_pages_for(sequence.length)) {
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
  for (const SeqId id : ids) sequence(descriptor, id);
  return allocate(descriptor, ids, std::vector<std::int64_t>(ids.size(), 1));
}

std::int64_t DescriptorModel::release(int descriptor, std::span<const SeqId> ids) {
  std::int64_t count = 0;
  for (const SeqId id : ids) {
    const auto entry = tables[descriptor].find(id);
    if (entry == tables[descriptor].end()) continue;
    unref(entry->second.pages);
    tables[descriptor].erase(entry);
    ++count;
  }
  return count;
}

void DescriptorModel::fork(int descriptor, SeqId parent, SeqId child, std::int64_t num_tokens) {
  const Sequence& from = sequence(descriptor, parent);
  if (num_tokens == kAll) num_tokens = from.length;
  require(num_tokens >= 0 && num_tokens <= from.length);
  attach(descriptor, child, {from.pages.begin(), from.pages.begin() + num_pages_for(num_tokens)},
         num_tokens);
}

void DescriptorModel::attach(int descriptor, SeqId id, std::vector<PageId> pages,
                             std::int64_t num_tokens) {
  require(num_tokens >= 0 && num_pages_for(num_tokens) == static_cast<std::int64_t>(pages.size()));
  require(!tables[descriptor].contains(id));
  ref(pages);
  tables[descriptor][id] = {std::move(pages), num_tokens};
}

void DescriptorModel::adopt(int descriptor, SeqId id, std::vector<PageId> pages,
                            std::int64_t num_tokens) {
  require(num_tokens >= 0 && num_pages_for(num_tokens) == static_cast<std::int64_t>(pages.size()));
  Table& table = tables[descriptor];
  table[id] = {pages, num_tokens};
  for (const PageId page : pages) {
    require(page >= 0 && page < static_cast<PageId>(counts.size()) && counts.at(page) > 0);
    std::ptrdiff_t held = 0;
    for (const auto& [other, sequence] : table) {
      held += std::count(sequence.pages.begin(), sequence.pages.end(), page);
    }
    require(held <= counts.at(page));
  }
}

void DescriptorModel::truncate(int descriptor, SeqId id, std::int64_t num_tokens) {
  sequence(descriptor, id);
  Sequence& sequence = tables[descriptor].at(id);
  require(num_tokens >= 0 && num_tokens <= sequence.length);
  const auto rest = sequence.pages.begin() + num_pages_for(num_tokens);
  unref(std::vector<PageId>(rest, sequence.pages.end()));
  sequence.pages.erase(rest, sequence.pages.end());
  sequence.length = num_tokens;
}

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
    stats.num_tokens += sequence.length;
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
  if (sequence.length == 0) return 0;
  const auto rest = static_cast<int>(sequence.length % page_size);
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
