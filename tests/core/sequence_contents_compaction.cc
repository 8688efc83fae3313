#include "sequence_contents.h"

// Trees of draft tokens, and sequences that keep a choice of their tokens.
namespace seqattn::testing {

void Contents::grow_by_a_tree() {
  const SeqId id = any_id();
  if (!known_.contains(id)) return;
  std::vector<std::int32_t> parents(1 + static_cast<std::size_t>(source_.below(7)));
  for (std::size_t i = 0; i < parents.size(); ++i) {
    parents[i] = source_.below(static_cast<int>(i) + 1) - 1;
  }
  const bool is_done = attempt(
      id,
      [&] {
        const auto copies = descriptor().allocate_tree(id, parents);
        if (copies_by_caller_) manager_.copy_pages(copies);
      },
      [&](NumberedSequence& sequence) {
        sequence.slots.drop_dead_pages(pool().page_size());
        sequence.slots.parents = parents;
      });
  if (!is_done) return;
  const std::int64_t first_token = shared_.next_token;
  shared_.next_token += std::ssize(parents);
  append({id}, {std::ssize(parents)}, first_token);
  end_tree(id, first_token);
}

void Contents::end_tree(SeqId id, std::int64_t first_token) {
  const std::vector<std::int32_t> parents = known_.at(id).slots.parents;
  std::vector<std::int32_t> path;
  for (std::int32_t i = source_.below(static_cast<int>(parents.size()) + 1) - 1; i >= 0;
       i = parents[static_cast<std::size_t>(i)]) {
    path.insert(path.begin(), i);
  }
  // The last page shared, where there are tokens in front: then the path moves to another one.
  const SeqId sharer = 77;
  if (source_.one_in(2)) descriptor().fork(id, sharer);
  const bool is_done = attempt(
      id,
      [&] {
        const auto moves = descriptor().commit_tree(id, path);
        if (copies_by_caller_) manager_.move_tokens(moves);
      },
      [&](NumberedSequence& sequence) {
        sequence.slots.commit(path);
        for (const std::int32_t i : path) sequence.numbers.push_back(first_token + i);
      });
  if (!is_done) {
    descriptor().truncate(id, descriptor().length(id));
    known_.at(id).slots.parents.clear();
  }
  descriptor().release({sharer});
}

void Contents::keep() {
  const SeqId id = any_id();
  if (!known_.contains(id)) return;
  const SequenceModel& before = known_.at(id).slots;
  std::vector<std::int64_t> slots;
  for (std::size_t slot = 0; slot < before.tokens.size(); ++slot) {
    const bool is_alive = before.sees(before.next(), before.tokens[slot]);
    if ((is_alive || source_.one_in(64)) && !source_.one_in(3)) {
      slots.push_back(static_cast<std::int64_t>(slot));
    }
  }
  attempt(
      id,
      [&] {
        const auto moves = descriptor().keep(id, slots);
        if (copies_by_caller_) manager_.move_tokens(moves);
      },
      [&](NumberedSequence& sequence) {
        const std::vector<std::int64_t> held = sequence.held();
        const std::size_t num_held = held.size();
        sequence.slots.keep(slots);
        if (slots.size() == num_held) return;
        sequence.numbers.clear();
        for (const std::int64_t slot : slots) {
          sequence.numbers.push_back(held[static_cast<std::size_t>(slot)]);
        }
      });
}

}  // namespace seqattn::testing
