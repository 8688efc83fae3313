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
  const std::size_t count = num_to_give_up(reclaimable, left, num_pages);
  if (count == 0) return false;
  unref(std::span(reclaimable).first(count));
  reclaimable.erase(reclaimable.begin(), reclaimable.begin() + static_cast<std::ptrdiff_t>(count));
  return true;
}

bool DescriptorModel::Sequence::holds(std::int64_t token) const {
  return std::binary_search(tokens.begin(), tokens.end(), token);
}

bool DescriptorModel::Sequence::finds_all(std::int64_t query, const SlidingWindow& with) const {
  for (std::int64_t token = 0; token < query; ++token) {
    const bool is_seen =
        with.window == 0 || token < with.num_sink_tokens || token > query - with.window;
    if (is_seen && !holds(token)) return false;
  }
  return true;
}

bool DescriptorModel::Sequence::sees(std::int64_t query, std::int64_t token) const {
  return window.window == 0 || token < window.num_sink_tokens || token > query - window.window;
}

std::int64_t DescriptorModel::Sequence::dropped_to() const {
  for (std::int64_t token = next() - 1; token >= 0; --token) {
    if (!holds(token)) return token + 1 + offset;
  }
  return 0;
}

std::int64_t DescriptorModel::Sequence::first_query() const {
  if (dropped_to() == 0) return 0;
  std::int64_t behind = next();
  for (std::size_t slot = tokens.size(); slot > 0; --slot) {
    const std::int64_t token = tokens[slot - 1];
    if (token + 1 != behind || !finds_all(token, window)) return static_cast<std::int64_t>(slot);
    behind = token;
  }
  return 0;
}

// Those of which the next token sees nothing.
void DescriptorModel::drop_dead_pages(Sequence& sequence) {
  const auto size = static_cast<std::size_t>(page_size);
  for (std::size_t page = 0; (page + 1) * size <= sequence.tokens.size();) {
    const auto first = sequence.tokens.begin() + static_cast<std::ptrdiff_t>(page * size);
    const auto end = first + page_size;
    if (std::any_of(first, end, [&](auto t) { return sequence.sees(sequence.next(), t); })) {
      ++page;
      continue;
    }
    sequence.tokens.erase(first, end);
    const PageId dropped = sequence.pages[page];
    sequence.pages.erase(sequence.pages.begin() + static_cast<std::ptrdiff_t>(page));
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
  for (std::int64_t i = 0; i < num_tokens; ++i) sequence.tokens.push_back(sequence.next() + i);
  sequence.length += num_tokens;
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

std::vector<TokenMove> DescriptorModel::commit_tree(int descriptor, SeqId id,
                                                    std::span<const std::int32_t> path) {
  sequence(descriptor, id);
  Sequence& sequence = tables[descriptor].at(id);
  const auto num_drafts = static_cast<std::int32_t>(sequence.parents.size());
  require(num_drafts > 0);
  const auto num_held = static_cast<std::int64_t>(sequence.tokens.size());
  std::vector<std::int64_t> slots(sequence.tokens.size());
  std::iota(slots.begin(), slots.end(), 0);
  std::int32_t above = -1;
  for (const std::int32_t token : path) {
    require(token >= 0 && token < num_drafts && sequence.parents[token] == above);
    slots.push_back(num_held + token);
    above = token;
  }
  auto moves = compact(sequence, slots);
  for (std::size_t i = 0; i < path.size(); ++i)
    sequence.tokens.push_back(sequence.length++ - sequence.offset);
  sequence.parents.clear();
  return moves;
}

std::vector<TokenMove> DescriptorModel::keep(int descriptor, SeqId id,
                                             std::span<const std::int64_t> slots) {
  sequence(descriptor, id);
  Sequence& sequence = tables[descriptor].at(id);
  require(sequence.parents.empty());
  std::int64_t num_sinks = 0;
  for (std::size_t i = 0; i < slots.size(); ++i) {
    require(slots[i] >= 0 && slots[i] < sequence.num_slots() &&
            (i == 0 || slots[i] > slots[i - 1]));
    require(sequence.sees(sequence.next(), sequence.tokens[static_cast<std::size_t>(slots[i])]));
    if (slots[i] < sequence.window.num_sink_tokens) ++num_sinks;
  }
  if (static_cast<std::int64_t>(slots.size()) == sequence.num_slots()) return {};
  auto moves = compact(sequence, slots);
  sequence.tokens.resize(slots.size());
  std::iota(sequence.tokens.begin(), sequence.tokens.end(), 0);
  sequence.offset = sequence.length - static_cast<std::int64_t>(slots.size());
  sequence.floor = sequence.length;
  sequence.window.num_sink_tokens = num_sinks;
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

void DescriptorModel::set_window(int descriptor, SeqId id, SlidingWindow window) {
  sequence(descriptor, id);
  Sequence& sequence = tables[descriptor].at(id);
  require(window.window >= 0 && window.window <= kMaxLength && window.num_sink_tokens >= 0 &&
          window.num_sink_tokens <= kMaxLength);
  require(window.window > 0 || window.num_sink_tokens == 0);
  require(sequence.finds_all(sequence.next(), window));
  sequence.window = window;
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

// A pending tree goes in any case.
void DescriptorModel::cut(Sequence& sequence, std::int64_t num_tokens) const {
  require(num_tokens >= 0 && num_tokens <= sequence.length);
  if (num_tokens < sequence.length) {
    require(num_tokens >= sequence.floor);
    // What `keep` has left in front of a gap has lost its positions.
    require(sequence.floor == 0 || num_tokens >= sequence.dropped_to());
    const std::int64_t end = num_tokens - sequence.offset;
    require(sequence.finds_all(end, sequence.window));
    require(end == 0 || sequence.holds(end) || sequence.holds(end - 1));
    while (!sequence.tokens.empty() && sequence.tokens.back() >= end) sequence.tokens.pop_back();
  }
  sequence.length = num_tokens;
  sequence.parents.clear();
  sequence.pages.resize(static_cast<std::size_t>(num_pages_for(sequence.num_slots())));
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
