#include <algorithm>

#include "seqattn/sequence_state.h"
#include "sequence_contents.h"
#include "stored_tokens.h"

// What sequences start from but their own tokens: cached prefixes and saved states.
namespace seqattn::testing {
namespace {

std::vector<TokenId> ids_of(std::span<const std::int64_t> numbers) {
  return {numbers.begin(), numbers.end()};  // each token is one of its own, as its number says
}

}  // namespace

// Begins like what was cached once, or like nothing.
std::vector<std::int64_t> Contents::any_prompt() {
  std::vector<std::int64_t> prompt;
  if (!inserted_.empty()) {
    prompt =
        inserted_.at(static_cast<std::size_t>(source_.below(static_cast<int>(inserted_.size()))));
  }
  const auto most = static_cast<int>(std::min<std::size_t>(prompt.size(), 200));
  if (source_.one_in(2))
    prompt.resize(prompt.size() - static_cast<std::size_t>(source_.below(most + 1)));
  for (int n = source_.below(3); n > 0; --n) prompt.push_back(shared_.next_token++);
  return prompt;
}

// Starts a sequence over what is found, and pins that for a while or not.
void Contents::match() {
  const SeqId id = new_id();
  if (!cache_ || known_.contains(id)) return;
  std::vector<std::int64_t> prompt = any_prompt();
  PrefixHandle handle =
      source_.one_in(4) ? cache_->pin(ids_of(prompt)) : cache_->match(ids_of(prompt));
  shared_.num_found += handle.num_tokens();
  prompt.resize(static_cast<std::size_t>(handle.num_tokens()));
  expect_numbers(manager_, handle.pages(), prompt);
  cache_->attach(descriptor(), id, handle);
  known_[id].slots.grow(handle.num_tokens());
  known_[id].numbers = prompt;
  if (source_.one_in(4)) pinned_.push_back({std::move(handle), prompt});
  if (pinned_.size() > 2) pinned_.pop_front();
}

void Contents::insert() {
  const SeqId id = any_id();
  if (!cache_ || !known_.contains(id)) return;
  const NumberedSequence& sequence = known_.at(id);
  std::vector<std::int64_t> numbers = sequence.numbers;
  numbers.resize(numbers.size() - std::min<std::size_t>(numbers.size(), source_.below(3)));
  attempt(
      id, [&] { cache_->insert(descriptor(), id, ids_of(numbers)); },
      [&](NumberedSequence& next) { require(next.slots.num_dropped() == 0); });
  if (sequence.slots.num_dropped() > 0) return;
  inserted_.push_back(std::move(numbers));
  if (inserted_.size() > 6) inserted_.pop_front();
}

void Contents::evict() {
  if (!cache_) return;
  const std::int64_t num_free = pool().available_pages_count(), most = source_.below(4);
  const std::int64_t num_evicted = cache_->evict(most);
  num_evicted_ += num_evicted;
  EXPECT_LE(num_evicted, most);
  EXPECT_EQ(pool().available_pages_count(), num_free + num_evicted);
}

// A descriptor over a bare pool saves and restores by way of one that has storage.
constexpr SeqId kOnTheWay = 78;

void Contents::save() {
  const SeqId id = any_id();
  if (!known_.contains(id)) return;
  std::vector<std::byte> state;
  if (copies_by_caller_) {
    over_manager_.attach(kOnTheWay, descriptor().sequence(id));
    state = save_sequence(over_manager_, kOnTheWay);
    over_manager_.release({kOnTheWay});
  } else {
    state = save_sequence(over_manager_, id);
  }
  shared_.saved.push_back({std::move(state), known_.at(id), pool().page_size()});
  if (shared_.saved.size() > 8) shared_.saved.pop_front();
}

void Contents::restore_into(SeqId id, std::span<const std::byte> state) {
  if (!copies_by_caller_) {
    restore_sequence(over_manager_, id, state);
    return;
  }
  restore_sequence(over_manager_, kOnTheWay, state);
  over_pool_.attach(id, over_manager_.sequence(kOnTheWay));
  over_manager_.release({kOnTheWay});
}

void Contents::restore() {
  const SeqId id = new_id();
  if (shared_.saved.empty() || known_.contains(id)) return;
  const auto& saved = shared_.saved.at(
      static_cast<std::size_t>(source_.below(static_cast<int>(shared_.saved.size()))));
  if (source_.one_in(4)) return restore_wrong_bytes(id, saved.state);
  known_[id] = saved.sequence;
  const bool is_done = attempt(
      id, [&] { restore_into(id, saved.state); }, [](NumberedSequence&) {});
  if (!is_done) known_.erase(id);
  if (is_done && saved.page_size != pool().page_size()) ++shared_.num_restored_elsewhere;
}

// Some of the records may be in free pages by the time one is found to be wrong; no sequence and
// nothing that is cached may notice.
void Contents::restore_wrong_bytes(SeqId id, std::vector<std::byte> state) {
  const int high = source_.below(256);
  const std::size_t at = static_cast<std::size_t>(high * 256 + source_.below(256)) % state.size();
  if (source_.one_in(2)) {
    state.resize(at);
  } else {
    state[at] ^= std::byte{1} << source_.below(8);
  }
  const DescriptorState before = state_of(descriptor());
  try {
    restore_into(id, state);
    ADD_FAILURE() << "bytes that are no state were restored";
  } catch (const SequenceStateError&) {
    ++shared_.num_refused_states;
  } catch (const NoPageError&) {
  }
  EXPECT_EQ(state_of(descriptor()), before);
}

}  // namespace seqattn::testing
