#include "sequence_contents.h"

#include <algorithm>
#include <array>
#include <set>

#include "stored_tokens.h"

namespace seqattn::testing {

std::vector<std::int64_t> NumberedSequence::held() const {
  std::vector<std::int64_t> held;
  for (const std::int64_t token : slots.tokens) {
    held.push_back(numbers[static_cast<std::size_t>(token)]);
  }
  return held;
}

namespace {

KVCacheConfig any_config(ByteSource& source, KVLayout layout) {
  const int num_pages = 4 + source.below(20);
  return numbered_config(num_pages, 1 + source.below(5), layout);
}

}  // namespace

Contents::Contents(ByteSource& source, SharedContents& shared, KVLayout layout,
                   bool copies_by_caller)
    : source_(source),
      shared_(shared),
      manager_(any_config(source, layout)),
      copies_by_caller_(copies_by_caller) {
  if (!source_.one_in(4)) cache_.emplace(pool());
}

void Contents::step() {
  using Operation = void (Contents::*)();
  constexpr std::array<Operation, 18> kOperations = {
      &Contents::grow_much, &Contents::decode,         &Contents::decode,   &Contents::decode,
      &Contents::fork,      &Contents::fork,           &Contents::truncate, &Contents::set_window,
      &Contents::keep,      &Contents::grow_by_a_tree, &Contents::release,  &Contents::match,
      &Contents::match,     &Contents::insert,         &Contents::insert,   &Contents::evict,
      &Contents::save,      &Contents::restore};
  (this->*kOperations.at(static_cast<std::size_t>(source_.below(kOperations.size()))))();
  remember_a_batch();
  check();
}

void Contents::finish() {
  if (cache_) shared_.num_reclaimed += cache_->stats().num_pages_evicted - num_evicted_;
  pinned_.clear();
  descriptor().clear();
  if (cache_) cache_->clear();
  EXPECT_EQ(pool().available_pages_count(), pool().num_pages());
}

void Contents::grow_much() { grow(3 * pool().page_size()); }
void Contents::decode() { grow(1); }

// Grows a few sequences by up to that many tokens each and appends to all layers.
void Contents::grow(int most) {
  std::set<SeqId> unique;
  for (int n = 1 + source_.below(4); n > 0; --n) unique.insert(any_id());
  const std::vector<SeqId> ids(unique.begin(), unique.end());
  std::vector<std::int64_t> lengths;
  for (std::size_t i = 0; i < ids.size(); ++i) lengths.push_back(1 + source_.below(most));
  const DescriptorState before = state_of(descriptor());
  const Admission admission = descriptor().try_allocate(ids, lengths);
  if (!admission) {
    EXPECT_EQ(state_of(descriptor()), before);
    return;
  }
  shared_.num_copies += std::ssize(admission.copies);
  if (copies_by_caller_) manager_.copy_pages(admission.copies);
  const std::int64_t first_token = shared_.next_token;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    NumberedSequence& sequence = known_[ids[i]];
    sequence.slots.drop_dead_pages(pool().page_size());
    sequence.slots.grow(lengths[i]);
    for (std::int64_t j = 0; j < lengths[i]; ++j) sequence.numbers.push_back(shared_.next_token++);
  }
  append(ids, lengths, first_token);
}

// Tokens numbered from first_token on.
void Contents::append(const std::vector<SeqId>& ids, const std::vector<std::int64_t>& lengths,
                      std::int64_t first_token) {
  std::vector<std::int64_t> numbers;
  for (const std::int64_t n : lengths) {
    for (std::int64_t i = 0; i < n; ++i) numbers.push_back(first_token + std::ssize(numbers));
  }
  append_numbers(manager_, descriptor().pack_for_flashinfer(ids), lengths, numbers);
}

// As a rule.
SeqId Contents::new_id() {
  SeqId id = any_id();
  for (int i = 0; i < 4 && known_.contains(id); ++i) id = any_id();
  return id;
}

std::int64_t Contents::any_end(SeqId id) {
  const std::int64_t length = known_.at(id).slots.length;
  return length - source_.below(static_cast<int>(std::min<std::int64_t>(length, 200)) + 1);
}

void Contents::fork() {
  const SeqId parent = any_id(), child = any_id();
  if (!known_.contains(parent) || parent == child) return;
  EXPECT_EQ(descriptor().release({child}), known_.erase(child));
  const std::int64_t n = source_.one_in(2) ? descriptor().length(parent) : any_end(parent);
  known_[child] = known_.at(parent);
  const bool is_done = attempt(
      child, [&] { descriptor().fork(parent, child, n); },
      [&](NumberedSequence& sequence) {
        sequence.slots.cut(n);
        sequence.numbers.resize(static_cast<std::size_t>(sequence.slots.next()));
      });
  if (!is_done) known_.erase(child);
}

void Contents::truncate() {
  const SeqId id = any_id();
  if (!known_.contains(id)) return;
  const std::int64_t n = any_end(id);
  attempt(
      id, [&] { descriptor().truncate(id, n); },
      [&](NumberedSequence& sequence) {
        sequence.slots.cut(n);
        sequence.numbers.resize(static_cast<std::size_t>(sequence.slots.next()));
      });
}

void Contents::set_window() {
  const SeqId id = any_id();
  if (!known_.contains(id)) return;
  const int window = 1 + source_.below(12);
  const SlidingWindow with{.window = window, .num_sink_tokens = source_.below(9)};
  attempt(
      id, [&] { descriptor().set_window(id, with); },
      [&](NumberedSequence& sequence) { sequence.slots.set_window(with); });
}

void Contents::release() {
  const SeqId id = any_id();
  EXPECT_EQ(descriptor().release({id}), known_.erase(id));
}

}  // namespace seqattn::testing
