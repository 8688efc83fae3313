#include "descriptor_model.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "seqattn/error.h"

namespace seqattn::testing {
namespace {

DescriptorModel::Sequence make_sequence(std::vector<PageId> pages, std::int64_t num_tokens,
                                        SlidingWindow window) {
  DescriptorModel::Sequence sequence;
  sequence.pages = std::move(pages);
  sequence.length = num_tokens;
  sequence.window = window;
  sequence.tokens.resize(static_cast<std::size_t>(num_tokens));
  std::iota(sequence.tokens.begin(), sequence.tokens.end(), 0);
  return sequence;
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
  if (num_pages > available() && (num_pages > static_cast<std::int64_t>(counts.size()) ||
                                  !reclaim(num_pages - available(), counts))) {
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

bool DescriptorModel::reclaim(std::int64_t num_pages, const std::vector<int>& left) {
  if (gives_up) {
    const std::vector<PageId> pages = gives_up(num_pages, left);
    unref(pages);
    return !pages.empty();
  }
  const std::size_t count = num_to_give_up(reclaimable, left, num_pages);
  if (count == 0) return false;
  unref(std::span(reclaimable).first(count));
  reclaimable.erase(reclaimable.begin(), reclaimable.begin() + static_cast<std::ptrdiff_t>(count));
  return true;
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
  Sequence data = sequence(descriptor, parent);
  cut(data, num_tokens == kAll ? data.length : num_tokens);
  require(!tables[descriptor].contains(child));
  ref(data.pages);
  tables[descriptor][child] = std::move(data);
}

void DescriptorModel::attach(int descriptor, SeqId id, std::vector<PageId> pages,
                             std::int64_t num_tokens) {
  require(num_tokens >= 0 && num_pages_for(num_tokens) == static_cast<std::int64_t>(pages.size()));
  require(!tables[descriptor].contains(id));
  ref(pages);
  tables[descriptor][id] = make_sequence(std::move(pages), num_tokens, windows[descriptor]);
}

void DescriptorModel::attach(int descriptor, SeqId id, Sequence data) {
  require(!tables[descriptor].contains(id));
  ref(data.pages);
  tables[descriptor][id] = std::move(data);
}

void DescriptorModel::adopt(int descriptor, SeqId id, std::vector<PageId> pages,
                            std::int64_t num_tokens) {
  require(num_tokens >= 0 && num_pages_for(num_tokens) == static_cast<std::int64_t>(pages.size()));
  Table& table = tables[descriptor];
  const SlidingWindow window = table.contains(id) ? table[id].window : windows[descriptor];
  table[id] = make_sequence(pages, num_tokens, window);
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
  Sequence left = sequence(descriptor, id);
  const std::vector<PageId> before = left.pages;
  cut(left, num_tokens);
  unref(std::span(before).subspan(left.pages.size()));
  tables[descriptor].at(id) = std::move(left);
}

void DescriptorModel::cut(Sequence& sequence, std::int64_t num_tokens) const {
  sequence.cut(num_tokens);
  sequence.pages.resize(static_cast<std::size_t>(num_pages_for(sequence.num_slots())));
}

DescriptorModel::Sequence DescriptorModel::save(int descriptor, SeqId id) const {
  require(has_storage[descriptor]);
  require(sequence(descriptor, id).parents.empty());
  return sequence(descriptor, id);
}

void DescriptorModel::restore(int descriptor, SeqId id, Sequence saved) {
  check_restore(descriptor, id);
  saved.pages = allocate(num_pages_for(saved.num_slots()));
  tables[descriptor][id] = std::move(saved);
}

void DescriptorModel::check_restore(int descriptor, SeqId id) const {
  require(has_storage[descriptor] && !tables[descriptor].contains(id));
}

void DescriptorModel::set_window(int descriptor, SeqId id, SlidingWindow window) {
  sequence(descriptor, id);
  tables[descriptor].at(id).set_window(window);
}

}  // namespace seqattn::testing
