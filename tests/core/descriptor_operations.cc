#include "descriptor_operations.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <limits>
#include <sstream>
#include <tuple>
#include <utility>
#include <vector>

#include "byte_source.h"
#include "call_outcome.h"
#include "descriptor_model.h"
#include "seqattn/cache_descriptor.h"

namespace seqattn::testing {
namespace {

// Holds references that it can give up, as a prefix cache does.
class ListReclaimer : public Reclaimer {
 public:
  explicit ListReclaimer(PagePool& pool) : pool_(pool) {}

  bool reclaim(std::int64_t num_pages) override {
    const auto counts = pool_.ref_counts();
    const auto count = num_to_give_up(references, {counts.begin(), counts.end()}, num_pages);
    if (count == 0) return false;
    pool_.unref(std::span(references).first(count));
    references.erase(references.begin(), references.begin() + static_cast<std::ptrdiff_t>(count));
    return true;
  }

  std::vector<PageId> references;

 private:
  PagePool& pool_;
};

// An Admission as something that compares.
auto value_of(const Admission& a) { return std::tuple(a.ok, a.needed, a.available, a.copies); }
auto value_of(const Stats& s) {
  return std::tuple(s.num_sequences, s.num_tokens, s.num_page_references, s.num_pages,
                    s.num_shared_pages, s.num_free_pages, s.num_draft_tokens, s.num_dropped_tokens);
}

class Operations {
 public:
  explicit Operations(std::span<const std::uint8_t> bytes)
      : source_(bytes),
        pool_(source_.below(25), 1 + source_.below(5)),
        reclaimer_(pool_),
        model_(static_cast<int>(pool_.num_pages()), pool_.page_size()),
        has_reclaimer_(source_.one_in(3)),
        misuse_(source_.one_in(8)) {
    model_.windows = {first_.window(), second_.window()};
    if (has_reclaimer_) pool_.set_reclaimer(&reclaimer_);
  }

  OperationsResult run() {
    while (!source_.empty() && result_.difference.empty()) {
      which_ = source_.one_in(4) ? 1 : 0;
      step();
    }
    return result_;
  }

 private:
  CacheDescriptor& descriptor() { return which_ == 0 ? first_ : second_; }
  const DescriptorModel::Table& table() const { return model_.tables.at(which_); }

  void step();
  void allocate();
  void try_allocate();
  void decode();
  void release();
  void clear();
  void fork();
  void attach_or_adopt(bool attach);
  void attach_what_the_other_has();
  void truncate();
  void set_window();
  void allocate_tree();
  void commit_tree();
  void keep();
  void pack();
  void look_up();
  void allocate_pages();
  void ref_or_unref(bool ref);
  void give_to_reclaimer();

  // Does it by the model, on a copy, and by the library. An operation that would drop somebody
  // else's reference is left out, unless this run is one of misuse.
  template <class RealCall, class ModelCall>
  void compare(const char* name, const RealCall& real, const ModelCall& by_model) {
    DescriptorModel next = model_;
    const auto expected = outcome_of([&] { return by_model(next); });
    if (expected.thrown != Thrown::kNothing) {
      ++result_.num_errors;
    } else if (misuse_ || !next.has_stolen_references()) {
      model_ = std::move(next);
    } else {
      return;
    }
    ++result_.num_operations;
    if (outcome_of(real) != expected) differ(name, "gave another result");
    if (misuse_ && expected.thrown != Thrown::kNothing) follow_reclaimer();
    compare_states(name);
  }
  // A call may find that a page of its own is gone when its reclaimer, misused, has helped already.
  void follow_reclaimer() {
    const std::size_t count = model_.reclaimable.size() - reclaimer_.references.size();
    model_.unref(std::span(model_.reclaimable).first(count));
    model_.reclaimable = reclaimer_.references;
  }
  void compare_states(const char* name);
  bool equals(const CacheDescriptor& descriptor, const DescriptorModel::Table& table) const;
  void differ(const char* name, const std::string& what);

  // Arguments. Most are good; every kind of bad one comes up.
  SeqId any_id();
  SeqId known_id();
  std::vector<SeqId> known_ids();
  std::pair<std::vector<SeqId>, std::vector<std::int64_t>> growth();
  std::int64_t any_length();
  SlidingWindow good_window();
  SlidingWindow any_window();
  std::vector<std::int32_t> any_parents();
  std::vector<std::int32_t> any_path(const DescriptorModel::Sequence& sequence);
  std::vector<std::int64_t> any_slots(const DescriptorModel::Sequence& sequence);
  PageId any_page();
  std::vector<PageId> any_pages();

  ByteSource source_;
  PagePool pool_;
  CacheDescriptor first_{pool_, good_window()}, second_{pool_, good_window()};
  ListReclaimer reclaimer_;
  DescriptorModel model_;
  bool has_reclaimer_;
  bool misuse_;
  int which_ = 0;  // descriptor
  OperationsResult result_;
};

void Operations::compare_states(const char* name) {
  const auto counts = pool_.ref_counts();
  if (!std::equal(counts.begin(), counts.end(), model_.counts.begin(), model_.counts.end())) {
    differ(name, "left other counts");
  }
  if (pool_.free_pages() != model_.free_pages) differ(name, "left another free list");
#ifndef NDEBUG
  for (PageId page = 0; page < pool_.num_pages(); ++page) {
    if (pool_.generation(page) != model_.generations.at(page)) {
      differ(name, "left another generation");
    }
  }
#endif
  if (reclaimer_.references != model_.reclaimable) differ(name, "reclaimed something else");
  if (!equals(first_, model_.tables[0])) differ(name, "left another first descriptor");
  if (!equals(second_, model_.tables[1])) differ(name, "left another second descriptor");
  try {
    if (misuse_) return pool_.check_invariants();
    first_.check_invariants();
    second_.check_invariants();
  } catch (const Error& error) {
    differ(name, error.what());
  }
}

bool Operations::equals(const CacheDescriptor& descriptor,
                        const DescriptorModel::Table& table) const {
  if (descriptor.num_sequences() != static_cast<std::int64_t>(table.size())) return false;
  for (const auto& [id, expected] : table) {
    if (!descriptor.contains(id)) return false;
    const SequenceData& actual = descriptor.sequence(id);
    if (actual.kv_page_indices != expected.pages || actual.length != expected.length ||
        actual.last_page_len != model_.last_page_len(expected) ||
        actual.window != expected.window || actual.num_dropped != expected.num_missing() ||
        actual.dropped_to != expected.dropped_to() || actual.compacted_to != expected.floor ||
        actual.tree_parents != expected.parents) {
      return false;
    }
  }
  return true;
}

void Operations::differ(const char* name, const std::string& what) {
  if (!result_.difference.empty()) return;
  std::ostringstream text;
  text << "operation " << result_.num_operations << ", " << name << ": " << what << " (pool of "
       << pool_.num_pages() << " pages of " << pool_.page_size()
       << (has_reclaimer_ ? ", with a reclaimer" : "") << (misuse_ ? ", misused)" : ")");
  result_.difference = text.str();
}

void Operations::step() {
  constexpr std::array<void (Operations::*)(), 8> kOften = {
      &Operations::allocate, &Operations::try_allocate, &Operations::decode, &Operations::decode,
      &Operations::fork,     &Operations::release,      &Operations::pack,   &Operations::truncate};
  constexpr std::array<void (Operations::*)(), 4> kLess = {
      &Operations::set_window, &Operations::allocate_tree, &Operations::commit_tree,
      &Operations::keep};
  const int kind = source_.below(20);
  if (kind >= 16) return (this->*kLess.at(static_cast<std::size_t>(kind - 16)))();
  if (kind < 8) return (this->*kOften.at(static_cast<std::size_t>(kind)))();
  if (kind < 9) return allocate();
  if (kind < 10) return source_.one_in(2) ? attach_or_adopt(true) : attach_what_the_other_has();
  if (kind < 11) return attach_or_adopt(false);
  if (kind < 12) return allocate_pages();
  if (kind < 13) return ref_or_unref(true);
  if (kind < 14) return ref_or_unref(false);
  if (kind < 15) return give_to_reclaimer();
  return source_.one_in(8) ? clear() : look_up();
}

void Operations::allocate() {
  const auto [ids, lengths] = growth();
  compare(
      "allocate", [&, &i = ids, &n = lengths] { return descriptor().allocate(i, n); },
      [&, &i = ids, &n = lengths](DescriptorModel& model) {
        return model.allocate(which_, i, n).copies;
      });
}

void Operations::try_allocate() {
  const auto [ids, lengths] = growth();
  compare(
      "try_allocate",
      [&, &i = ids, &n = lengths] { return value_of(descriptor().try_allocate(i, n)); },
      [&, &i = ids, &n = lengths](DescriptorModel& model) {
        return value_of(model.grow(which_, i, n));
      });
}

void Operations::decode() {
  const std::vector<SeqId> ids = known_ids();
  compare(
      "allocate_decoding", [&] { return descriptor().allocate_decoding(ids); },
      [&](DescriptorModel& model) { return model.decode(which_, ids).copies; });
}

void Operations::release() {
  const std::vector<SeqId> ids = known_ids();
  compare(
      "release", [&] { return descriptor().release(ids); },
      [&](DescriptorModel& model) { return model.release(which_, ids); });
}

void Operations::clear() {
  const std::vector<SeqId> ids = descriptor().seq_ids();  // the order in which pages become free
  compare(
      "clear", [&] { descriptor().clear(); },
      [&](DescriptorModel& model) { model.release(which_, ids); });
}

void Operations::fork() {
  const SeqId parent = known_id(), child = any_id();
  const std::int64_t num_tokens = source_.one_in(2) ? kAll : any_length();
  compare(
      "fork", [&] { descriptor().fork(parent, child, num_tokens); },
      [&](DescriptorModel& model) { model.fork(which_, parent, child, num_tokens); });
}

void Operations::attach_what_the_other_has() {
  const SeqId id = any_id();
  which_ = 1 - which_;
  const SeqId other_id = known_id();
  const CacheDescriptor& other = descriptor();
  which_ = 1 - which_;
  compare(
      "attach of another descriptor's sequence",
      [&] { descriptor().attach(id, other.sequence(other_id)); },
      [&](DescriptorModel& model) {
        model.attach(which_, id, model.sequence(1 - which_, other_id));
      });
}

void Operations::attach_or_adopt(bool attach) {
  const SeqId id = any_id();
  const std::vector<PageId> pages = any_pages();
  std::int64_t num_tokens = static_cast<std::int64_t>(pages.size()) * pool_.page_size();
  if (num_tokens > 0) num_tokens -= source_.below(pool_.page_size());
  if (source_.one_in(8)) num_tokens = any_length();
  compare(
      attach ? "attach" : "adopt",
      [&] {
        attach ? descriptor().attach(id, pages, num_tokens)
               : descriptor().adopt(id, pages, num_tokens);
      },
      [&](DescriptorModel& model) {
        attach ? model.attach(which_, id, pages, num_tokens)
               : model.adopt(which_, id, pages, num_tokens);
      });
}

void Operations::truncate() {
  const SeqId id = known_id();
  const std::int64_t num_tokens = any_length();
  compare(
      "truncate", [&] { descriptor().truncate(id, num_tokens); },
      [&](DescriptorModel& model) { model.truncate(which_, id, num_tokens); });
}

void Operations::set_window() {
  const SeqId id = known_id();
  const SlidingWindow window = any_window();
  compare(
      "set_window", [&] { descriptor().set_window(id, window); },
      [&](DescriptorModel& model) { model.set_window(which_, id, window); });
}

void Operations::allocate_tree() {
  const SeqId id = known_id();
  const std::vector<std::int32_t> parents = any_parents();
  const std::int64_t num_tokens = source_.one_in(4) ? any_length() : 0;
  compare(
      "allocate_tree", [&] { return descriptor().allocate_tree(id, parents, num_tokens); },
      [&](DescriptorModel& model) {
        return model.allocate_tree(which_, id, parents, num_tokens).copies;
      });
}

void Operations::commit_tree() {
  SeqId id = known_id();
  for (const auto& [other, sequence] : table()) {
    if (!sequence.parents.empty() && !source_.one_in(4)) id = other;
  }
  const auto entry = table().find(id);
  const std::vector<std::int32_t> path =
      any_path(entry == table().end() ? DescriptorModel::Sequence() : entry->second);
  compare(
      "commit_tree", [&] { return descriptor().commit_tree(id, path); },
      [&](DescriptorModel& model) { return model.commit_tree(which_, id, path); });
}

void Operations::keep() {
  const SeqId id = known_id();
  const auto entry = table().find(id);
  const std::vector<std::int64_t> slots =
      any_slots(entry == table().end() ? DescriptorModel::Sequence() : entry->second);
  compare(
      "keep", [&] { return descriptor().keep(id, slots); },
      [&](DescriptorModel& model) { return model.keep(which_, id, slots); });
}

void Operations::pack() {
  using Lists = std::array<std::vector<std::int32_t>, 3>;
  using Windows = std::vector<std::array<std::int64_t, 4>>;
  using Packed = std::tuple<Lists, Windows, std::vector<std::vector<std::int32_t>>>;
  const std::vector<SeqId> ids = known_ids();
  compare(
      "pack_for_flashinfer",
      [&] {
        const auto packed = descriptor().pack_for_flashinfer(ids);
        const auto list = [](auto span) { return std::vector(span.begin(), span.end()); };
        Windows windows;
        for (const RowWindow& row : packed.columns().windows) {
          windows.push_back({row.window, row.num_sink_tokens, row.num_dropped, row.first_query});
        }
        return Packed{Lists{list(packed.kv_page_indices()), list(packed.kv_page_indptr()),
                            list(packed.kv_last_page_len())},
                      windows, packed.columns().trees};
      },
      [&](DescriptorModel& model) {
        Lists packed = {std::vector<std::int32_t>{}, {0}, {}};
        Windows windows;
        std::vector<std::vector<std::int32_t>> trees;
        bool has_windows = false, has_trees = false;
        for (const SeqId id : ids) {
          const auto& sequence = model.sequence(which_, id);
          packed[0].insert(packed[0].end(), sequence.pages.begin(), sequence.pages.end());
          packed[1].push_back(static_cast<std::int32_t>(packed[0].size()));
          packed[2].push_back(model.last_page_len(sequence));
          has_windows |= sequence.window.window > 0;
          windows.push_back({sequence.window.window, sequence.window.num_sink_tokens,
                             sequence.num_missing(), sequence.first_query()});
          trees.push_back(sequence.parents);
          has_trees |= !sequence.parents.empty();
        }
        if (!has_windows) windows.clear();
        if (!has_trees) trees.clear();
        return Packed{packed, windows, trees};
      });
}

void Operations::look_up() {
  const SeqId id = any_id();
  compare(
      "stats", [&] { return value_of(descriptor().stats()); },
      [&](DescriptorModel& model) { return value_of(model.stats(which_)); });
  compare(
      "length", [&] { return std::pair(descriptor().length(id), descriptor().num_kv_tokens(id)); },
      [&](DescriptorModel& model) {
        const auto& sequence = model.sequence(which_, id);
        return std::pair(sequence.length, sequence.num_slots());
      });
}

void Operations::allocate_pages() {
  const std::int64_t num_pages = source_.one_in(16) ? any_length() : source_.below(4);
  compare(
      "PagePool::allocate", [&] { return pool_.allocate(num_pages); },
      [&](DescriptorModel& model) { return model.allocate(num_pages); });
}

void Operations::ref_or_unref(bool ref) {
  const std::vector<PageId> pages = any_pages();
  compare(
      ref ? "PagePool::ref" : "PagePool::unref",
      [&] { ref ? pool_.ref(pages) : pool_.unref(pages); },
      [&](DescriptorModel& model) { ref ? model.ref(pages) : model.unref(pages); });
}

// References to a sequence's first pages, as a prefix cache would take them.
void Operations::give_to_reclaimer() {
  const auto entry = table().find(known_id());
  if (!has_reclaimer_ || entry == table().end()) return;
  std::vector<PageId> pages = entry->second.pages;
  pages.resize(std::min<std::size_t>(pages.size(), static_cast<std::size_t>(source_.below(5))));
  compare(
      "ref for the reclaimer",
      [&] {
        pool_.ref(pages);
        reclaimer_.references.insert(reclaimer_.references.end(), pages.begin(), pages.end());
      },
      [&](DescriptorModel& model) {
        model.ref(pages);
        model.reclaimable.insert(model.reclaimable.end(), pages.begin(), pages.end());
      });
}

SeqId Operations::any_id() {
  constexpr std::array<SeqId, 8> kIds = {
      0, 1, 2, 3, 4, -1, std::numeric_limits<SeqId>::min(), std::numeric_limits<SeqId>::max()};
  return kIds.at(static_cast<std::size_t>(source_.below(kIds.size())));
}

SeqId Operations::known_id() {
  if (table().empty() || source_.one_in(32)) return any_id();
  return std::next(table().begin(), source_.below(static_cast<int>(table().size())))->first;
}

std::vector<SeqId> Operations::known_ids() {
  std::vector<SeqId> ids(static_cast<std::size_t>(source_.below(5)));
  for (SeqId& id : ids) id = known_id();
  return ids;
}

std::pair<std::vector<SeqId>, std::vector<std::int64_t>> Operations::growth() {
  std::vector<SeqId> ids(static_cast<std::size_t>(source_.below(5)));
  for (SeqId& id : ids) id = any_id();
  std::vector<std::int64_t> lengths(ids.size());
  for (auto& length : lengths) length = any_length();
  if (source_.one_in(64)) lengths.push_back(1);
  return {std::move(ids), std::move(lengths)};
}

std::int64_t Operations::any_length() {
  constexpr std::int64_t kMost = std::int64_t{1} << 62;
  const int kind = source_.below(128);
  if (kind == 0) return -1 - source_.below(3);
  if (kind == 1) return source_.one_in(2) ? kMost + 1 : std::numeric_limits<std::int64_t>::max();
  if (kind < 8) return source_.below(150);
  return source_.below(3 * pool_.page_size() + 1);
}

SlidingWindow Operations::good_window() {
  if (source_.one_in(2)) return {};
  return {.window = 1 + source_.below(3 * pool_.page_size()),
          .num_sink_tokens = source_.below(2 * pool_.page_size())};
}

SlidingWindow Operations::any_window() {
  SlidingWindow window = good_window();
  if (source_.one_in(16)) window.window = any_length();
  if (source_.one_in(16)) window.num_sink_tokens = any_length();
  return window;
}

std::vector<std::int32_t> Operations::any_parents() {
  std::vector<std::int32_t> parents(static_cast<std::size_t>(source_.below(8)));
  for (std::size_t i = 0; i < parents.size(); ++i) {
    parents[i] = source_.below(static_cast<int>(i) + 1) - 1;
    if (source_.one_in(64)) parents[i] += source_.below(3) - 1;
  }
  return parents;
}

// From a leaf, or any other token, up; now and then something else.
std::vector<std::int32_t> Operations::any_path(const DescriptorModel::Sequence& sequence) {
  std::vector<std::int32_t> path;
  const auto num_drafts = static_cast<int>(sequence.parents.size());
  for (std::int32_t i = source_.below(num_drafts + 1) - 1; i >= 0; i = sequence.parents[i]) {
    path.insert(path.begin(), i);
  }
  if (source_.one_in(16)) path.push_back(source_.below(9) - 1);
  return path;
}

// A part of those that are alive; now and then others.
std::vector<std::int64_t> Operations::any_slots(const DescriptorModel::Sequence& sequence) {
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

PageId Operations::any_page() {
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

std::vector<PageId> Operations::any_pages() {
  std::vector<PageId> pages(static_cast<std::size_t>(source_.below(4)));
  for (PageId& page : pages) page = any_page();
  return pages;
}

}  // namespace

OperationsResult run_descriptor_operations(std::span<const std::uint8_t> bytes) {
  return Operations(bytes).run();
}

}  // namespace seqattn::testing
