#include <algorithm>

#include "prefix_requests.h"
#include "stored_tokens.h"

// Growth by tokens and by trees of drafts, one batch at a time.
namespace seqattn::testing {

void PrefixRequests::grow() {
  std::map<SeqId, Tokens> growth;
  const std::int64_t num_new = known_.empty() ? 1 : below(2);
  for (std::int64_t n = known_.empty() ? 0 : 1 + below(2); n > 0; --n) growth[id_with_tree(false)];
  for (std::int64_t n = num_new; n > 0; --n) {
    known_[next_id_].salt = any_salt();
    growth[next_id_++];
  }
  for (auto& [id, list] : growth) {
    list = any_tokens();
    if (one_in(2)) list.resize(std::min<std::size_t>(list.size(), 1));
  }
  grow(growth);
  std::erase_if(known_, [&](const auto& entry) { return !sequences_.contains(entry.first); });
}

bool PrefixRequests::grow(const std::map<SeqId, Tokens>& growth) {
  std::vector<SeqId> ids;
  std::vector<std::int64_t> lengths;
  for (const auto& [id, list] : growth) {
    ids.push_back(id);
    lengths.push_back(std::ssize(list));
  }
  const std::int64_t num_dropped = num_dropped_with_sinks();
  bool is_admitted = true;
  const bool is_done = compare(
      "try_allocate", [&] { return value_of(sequences_.try_allocate(ids, lengths)); },
      [&](DescriptorModel& model) {
        const Admission admission = model.grow(0, ids, lengths);
        is_admitted = admission.ok;
        return value_of(admission);
      });
  counts_.no_page += !is_admitted;
  if (!is_done || !is_admitted) return false;
  counts_.reclaimed_by_growth += !watched_.dropped.empty();
  counts_.dropped_with_sinks += num_dropped_with_sinks() - num_dropped;
  for (const auto& [id, list] : growth) append_tokens(id, list);
  write(ids, lengths);
  return true;
}

std::int64_t PrefixRequests::num_dropped_with_sinks() const {
  std::int64_t count = 0;
  for (const auto& [id, sequence] : model_.tables[0]) {
    if (sequence.window.num_sink_tokens > 0) count += sequence.num_missing();
  }
  return count;
}

void PrefixRequests::decode() {
  std::map<SeqId, Tokens> growth;
  for (std::int64_t n = 1 + below(4); n > 0; --n)
    growth[known_id()] = {static_cast<TokenId>(below(2))};
  std::vector<SeqId> ids;
  for (const auto& [id, list] : growth) ids.push_back(id);
  const bool is_done = compare(
      "allocate_decoding", [&] { return sequences_.allocate_decoding(ids); },
      [&](DescriptorModel& model) { return model.decode(0, ids).copies; });
  if (!is_done) return;
  counts_.reclaimed_by_growth += !watched_.dropped.empty();
  for (const auto& [id, list] : growth) append_tokens(id, list);
  write(ids, std::vector<std::int64_t>(ids.size(), 1));
}

void PrefixRequests::append_tokens(SeqId id, const Tokens& list) {
  Request& request = known_.at(id);
  for (const TokenId token : list) {
    request.tokens.push_back(token);
    request.numbers.push_back(number_of(request.salt, request.tokens));
  }
  if (list.empty()) return;
  history_.emplace_back(request.salt, request.tokens);
  if (history_.size() > 16) history_.pop_front();
}

// What the last slots of each sequence have to hold.
void PrefixRequests::write(const std::vector<SeqId>& ids,
                           const std::vector<std::int64_t>& lengths) {
  std::vector<std::int64_t> numbers;
  for (std::size_t i = 0; i < ids.size(); ++i) {
    const std::vector<std::int64_t> held = held_numbers(ids[i]);
    numbers.insert(numbers.end(), held.end() - lengths[i], held.end());
  }
  append_numbers(manager_, sequences_.pack_for_flashinfer(ids), lengths, numbers);
}

void PrefixRequests::allocate_tree() {
  const SeqId id = id_with_tree(false);
  std::vector<std::int32_t> parents(static_cast<std::size_t>(1 + below(6)));
  for (std::size_t i = 0; i < parents.size(); ++i) {
    parents[i] = static_cast<std::int32_t>(below(static_cast<std::int64_t>(i) + 1) - 1);
  }
  Tokens list;
  if (one_in(2)) list.push_back(static_cast<TokenId>(below(2)));
  const bool is_done = compare(
      "allocate_tree", [&] { return sequences_.allocate_tree(id, parents, std::ssize(list)); },
      [&](DescriptorModel& model) {
        return model.allocate_tree(0, id, parents, std::ssize(list)).copies;
      });
  if (!is_done) return;
  counts_.reclaimed_by_growth += !watched_.dropped.empty();
  append_tokens(id, list);
  Request& request = known_.at(id);
  std::vector<Tokens> paths;
  for (std::size_t i = 0; i < parents.size(); ++i) {
    Tokens path = parents[i] < 0 ? request.tokens : paths[static_cast<std::size_t>(parents[i])];
    path.push_back(static_cast<TokenId>(2 + i));  // so that no two drafts are the same
    request.drafts.push_back(path.back());
    request.draft_numbers.push_back(number_of(request.salt, path));
    paths.push_back(std::move(path));
  }
  write({id}, {std::ssize(list) + std::ssize(parents)});
}

void PrefixRequests::commit_tree() {
  const SeqId id = id_with_tree(true);
  const std::vector<std::int32_t>& parents = sequence(id).parents;
  std::vector<std::int32_t> path;
  for (auto i = static_cast<std::int32_t>(below(std::ssize(parents) + 1) - 1); i >= 0;
       i = parents[static_cast<std::size_t>(i)]) {
    path.insert(path.begin(), i);
  }
  const bool is_done = compare(
      "commit_tree", [&] { return sequences_.commit_tree(id, path); },
      [&](DescriptorModel& model) { return model.commit_tree(0, id, path); });
  if (!is_done) return;
  counts_.reclaimed_by_keep += !watched_.dropped.empty();
  counts_.committed += std::ssize(path);
  Request& request = known_.at(id);
  Tokens list;
  for (const std::int32_t i : path) list.push_back(request.drafts[static_cast<std::size_t>(i)]);
  append_tokens(id, list);
  request.drafts.clear();
  request.draft_numbers.clear();
}

}  // namespace seqattn::testing
