#include <algorithm>

#include "prefix_requests.h"
#include "seqattn/error.h"
#include "seqattn/sequence_state.h"

// Sequences that end earlier, pick tokens, have windows, or come back from bytes.
namespace seqattn::testing {
namespace {

void cut(Request& request, const SequenceModel& sequence) {
  request.tokens.resize(static_cast<std::size_t>(sequence.length));
  request.numbers.resize(static_cast<std::size_t>(sequence.next()));
  request.drafts.clear();
  request.draft_numbers.clear();
}

}  // namespace

void PrefixRequests::truncate() {
  const SeqId id = known_id();
  const std::int64_t num_tokens = below(sequence(id).length + 1);
  const bool is_done = compare(
      "truncate", [&] { sequences_.truncate(id, num_tokens); },
      [&](DescriptorModel& model) { model.truncate(0, id, num_tokens); });
  if (is_done) cut(known_.at(id), sequence(id));
}

void PrefixRequests::fork() {
  const SeqId parent = known_id(), child = next_id_++;
  const std::int64_t num_tokens = one_in(2) ? kAll : below(sequence(parent).length + 1);
  const bool is_done = compare(
      "fork", [&] { sequences_.fork(parent, child, num_tokens); },
      [&](DescriptorModel& model) { model.fork(0, parent, child, num_tokens); });
  if (!is_done) return;
  known_[child] = known_.at(parent);
  cut(known_.at(child), sequence(child));
}

void PrefixRequests::set_window() {
  const SeqId id = known_id();
  SlidingWindow window{.window = 1 + below(2 * pool_.page_size())};
  if (one_in(2)) window.num_sink_tokens = below(2 * pool_.page_size() + 1);
  if (one_in(8)) window = {};
  compare(
      "set_window", [&] { sequences_.set_window(id, window); },
      [&](DescriptorModel& model) { model.set_window(0, id, window); });
}

void PrefixRequests::keep() {
  const SeqId id = id_with_tree(false);
  const SequenceModel before = sequence(id);
  const std::int64_t share = 1 + below(8);
  std::vector<std::int64_t> slots;
  for (std::size_t slot = 0; slot < before.tokens.size(); ++slot) {
    const bool is_alive = before.sees(before.next(), before.tokens[slot]) || one_in(64);
    if (is_alive && below(8) < share) slots.push_back(static_cast<std::int64_t>(slot));
  }
  const bool is_done = compare(
      "keep", [&] { return sequences_.keep(id, slots); },
      [&](DescriptorModel& model) { return model.keep(0, id, slots); });
  if (!is_done || slots.size() == before.tokens.size()) return;
  counts_.reclaimed_by_keep += !watched_.dropped.empty();
  ++counts_.kept;
  std::vector<std::int64_t> numbers;
  for (const std::int64_t slot : slots) {
    const std::int64_t token = before.tokens[static_cast<std::size_t>(slot)];
    numbers.push_back(known_.at(id).numbers[static_cast<std::size_t>(token)]);
  }
  known_.at(id).numbers = std::move(numbers);
}

void PrefixRequests::save() {
  const SeqId id = known_id();
  std::vector<std::byte> state;
  const bool is_done = compare(
      "save_sequence", [&] { state = save_sequence(sequences_, id); },
      [&](DescriptorModel& model) { model.save(0, id); });
  if (!is_done) return;
  shared_.saved.push_back({std::move(state), sequence(id), known_.at(id), pool_.page_size()});
  if (shared_.saved.size() > 8) shared_.saved.pop_front();
}

void PrefixRequests::restore() {
  if (shared_.saved.empty()) return;
  const auto& saved = shared_.saved[static_cast<std::size_t>(below(std::ssize(shared_.saved)))];
  const SeqId id = one_in(8) && !known_.empty() ? known_id() : next_id_++;
  if (one_in(4)) return restore_wrong_bytes(id, saved.state);
  const bool is_done = compare(
      "restore_sequence", [&] { restore_sequence(sequences_, id, saved.state); },
      [&](DescriptorModel& model) { model.restore(0, id, saved.sequence); });
  if (!is_done) return;
  counts_.reclaimed_by_restore += !watched_.dropped.empty();
  counts_.restored_elsewhere += saved.page_size != pool_.page_size();
  known_[id] = saved.request;
}

// From memory, a reclaimer is not even asked.
void PrefixRequests::restore_wrong_bytes(SeqId id, std::vector<std::byte> state) {
  const auto at = static_cast<std::size_t>(below(std::ssize(state)));
  if (one_in(2)) {
    state.resize(at);
  } else {
    state[at] ^= std::byte{1} << below(8);
  }
  compare(
      "restore_sequence of wrong bytes",
      [&] {
        try {
          restore_sequence(sequences_, id, state);
        } catch (const NoPageError&) {
          throw SequenceStateError("pages lack too, and either may be said");
        }
      },
      [&](DescriptorModel& model) {
        model.check_restore(0, id);
        throw SequenceStateError("the model refuses");
      });
}

}  // namespace seqattn::testing
