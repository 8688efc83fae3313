#include "descriptor_arguments.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>

namespace seqattn::testing {

SeqId DescriptorArguments::any_id() {
  constexpr std::array<SeqId, 8> kIds = {
      0, 1, 2, 3, 4, -1, std::numeric_limits<SeqId>::min(), std::numeric_limits<SeqId>::max()};
  return kIds.at(static_cast<std::size_t>(source_.below(kIds.size())));
}

// As a rule.
SeqId DescriptorArguments::new_id() {
  SeqId id = any_id();
  for (int i = 0; i < 4 && table().contains(id); ++i) id = any_id();
  return id;
}

SeqId DescriptorArguments::known_id() {
  if (table().empty() || source_.one_in(32)) return any_id();
  return std::next(table().begin(), source_.below(static_cast<int>(table().size())))->first;
}

std::vector<SeqId> DescriptorArguments::known_ids() {
  std::vector<SeqId> ids(static_cast<std::size_t>(source_.below(5)));
  for (SeqId& id : ids) id = known_id();
  return ids;
}

std::pair<std::vector<SeqId>, std::vector<std::int64_t>> DescriptorArguments::growth() {
  std::vector<SeqId> ids(static_cast<std::size_t>(source_.below(5)));
  for (SeqId& id : ids) id = any_id();
  std::vector<std::int64_t> lengths(ids.size());
  for (auto& length : lengths) length = any_length();
  if (source_.one_in(64)) lengths.push_back(1);
  return {std::move(ids), std::move(lengths)};
}

std::int64_t DescriptorArguments::any_length() {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  const int kind = source_.below(128);
  if (kind == 0) return -1 - source_.below(3);
  if (kind == 1) return source_.one_in(2) ? kMost + 1 : std::numeric_limits<std::int64_t>::max();
  if (kind < 8) return source_.below(150);
  return source_.below(3 * pool_.page_size() + 1);
}

// As a rule within the sequence.
std::int64_t DescriptorArguments::any_end(SeqId id) {
  const auto entry = table().find(id);
  if (entry == table().end() || source_.one_in(8)) return any_length();
  const auto most = std::min<std::int64_t>(entry->second.length, 254);
  return entry->second.length - source_.below(static_cast<int>(most) + 1);
}

SlidingWindow DescriptorArguments::any_window() {
  SlidingWindow window = good_window();
  if (source_.one_in(16)) window.window = any_length();
  if (source_.one_in(16)) window.num_sink_tokens = any_length();
  return window;
}

std::vector<std::int32_t> DescriptorArguments::any_parents() {
  std::vector<std::int32_t> parents(static_cast<std::size_t>(source_.below(8)));
  for (std::size_t i = 0; i < parents.size(); ++i) {
    parents[i] = source_.below(static_cast<int>(i) + 1) - 1;
    if (source_.one_in(64)) parents[i] += source_.below(3) - 1;
  }
  return parents;
}

// From a leaf, or any other token, up; now and then something else.
std::vector<std::int32_t> DescriptorArguments::any_path(const DescriptorModel::Sequence& sequence) {
  std::vector<std::int32_t> path;
  const auto num_drafts = static_cast<int>(sequence.parents.size());
  for (std::int32_t i = source_.below(num_drafts + 1) - 1; i >= 0; i = sequence.parents[i]) {
    path.insert(path.begin(), i);
  }
  if (source_.one_in(16)) path.push_back(source_.below(9) - 1);
  return path;
}

// A part of those that are alive; now and then others.
std::vector<std::int64_t> DescriptorArguments::any_slots(
    const DescriptorModel::Sequence& sequence) {
  std::vector<std::int64_t> slots;
  const int share = 1 + source_.below(8);
  const bool any = source_.one_in(16);
  for (std::size_t slot = 0; slot < sequence.tokens.size(); ++slot) {
    if (!any && !sequence.sees(sequence.next(), sequence.tokens[slot])) continue;
    if (source_.below(8) < share) slots.push_back(static_cast<std::int64_t>(slot));
  }
  if (source_.one_in(16)) slots.push_back(any_length());
  return slots;
}

PageId DescriptorArguments::any_page() {
  const int kind = source_.below(32);
  const auto num_pages = static_cast<PageId>(pool_.num_pages());
  if (kind == 0) return source_.one_in(2) ? -1 : std::numeric_limits<PageId>::min();
  if (kind == 1 || num_pages == 0) return num_pages + source_.below(2);
  const PageId first = source_.below(num_pages);
  if (kind == 2) return first;
  for (PageId i = 0; i < num_pages; ++i) {  // from there on the first that is in use
    const PageId page = (first + i) % num_pages;
    if (model_.counts.at(page) > 0) return page;
  }
  return first;
}

// Most of what nobody but the caller of the pool holds.
std::vector<PageId> DescriptorArguments::callers_pages() {
  std::vector<PageId> pages;
  const std::vector<int> held = model_.holders();
  for (std::size_t page = 0; page < held.size(); ++page) {
    for (int n = held[page]; n < model_.counts[page] && !source_.one_in(4); ++n) {
      pages.push_back(static_cast<PageId>(page));
    }
  }
  return pages;
}

std::vector<PageId> DescriptorArguments::any_pages() {
  std::vector<PageId> pages(static_cast<std::size_t>(source_.below(4)));
  for (PageId& page : pages) page = any_page();
  return pages;
}

}  // namespace seqattn::testing
