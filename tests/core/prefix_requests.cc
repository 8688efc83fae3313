#include "prefix_requests.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "stored_tokens.h"

namespace seqattn::testing {
namespace {

KVCacheConfig any_config(std::mt19937_64& random) {
  const auto num_pages = static_cast<std::int64_t>(8 + random() % 24);
  const auto page_size = static_cast<int>(1 + random() % 4);
  return numbered_config(num_pages, page_size, random() % 2 == 0 ? KVLayout::kNHD : KVLayout::kHND);
}

}  // namespace

PrefixRequests::PrefixRequests(std::mt19937_64& random, SharedRequests& shared,
                               RequestCounts& counts)
    : random_(random),
      shared_(shared),
      counts_(counts),
      manager_(any_config(random)),
      model_(static_cast<int>(pool_.num_pages()), pool_.page_size()),
      cached_(pool_.page_size()) {
  model_.has_storage = {true, false};
}

void PrefixRequests::step() {
  using Call = void (PrefixRequests::*)();
  using Requests = PrefixRequests;
  constexpr std::array<Call, 30> kAlways = {
      &Requests::match,       &Requests::match,         &Requests::start_batch,
      &Requests::start_batch, &Requests::grow,          &Requests::grow,
      &Requests::grow,        &Requests::decode,        &Requests::insert,
      &Requests::insert,      &Requests::insert,        &Requests::insert,
      &Requests::release,     &Requests::release,       &Requests::release,
      &Requests::let_go,      &Requests::truncate,      &Requests::fork,
      &Requests::evict,       &Requests::pass_time,     &Requests::set_window,
      &Requests::keep,        &Requests::allocate_tree, &Requests::commit_tree,
      &Requests::keep,        &Requests::allocate_tree, &Requests::commit_tree,
      &Requests::save,        &Requests::restore,       &Requests::clear};
  // These need no sequence.
  constexpr std::array<Call, 3> kAtFirst = {&Requests::match, &Requests::grow, &Requests::restore};
  if (std::ssize(known_) > 4 + below(4)) return release();
  const auto call = known_.empty() ? kAtFirst.at(static_cast<std::size_t>(below(kAtFirst.size())))
                                   : kAlways.at(static_cast<std::size_t>(below(kAlways.size())));
  (this->*call)();
}

SeqId PrefixRequests::known_id() {
  return std::next(known_.begin(), below(std::ssize(known_)))->first;
}

SeqId PrefixRequests::id_with_tree(bool pending) {
  std::vector<SeqId> ids;
  for (const auto& [id, request] : known_) {
    if (sequence(id).parents.empty() != pending) ids.push_back(id);
  }
  return ids.empty() || one_in(8) ? known_id()
                                  : ids[static_cast<std::size_t>(below(std::ssize(ids)))];
}

// A new list, or one that begins like a sequence that was there.
PrefixRequests::Tokens PrefixRequests::any_tokens() {
  Tokens list;
  if (!history_.empty() && below(4) > 0) {
    list = history_[static_cast<std::size_t>(below(std::ssize(history_)))].second;
    list.resize(static_cast<std::size_t>(below(std::ssize(list) + 1)));
  }
  const std::int64_t num_more = below(2 * pool_.page_size() + 2);
  for (std::int64_t i = 0; i < num_more; ++i) list.push_back(static_cast<TokenId>(below(2)));
  return list;
}

PrefixHandle PrefixRequests::look_up(const std::string& salt, const Tokens& list, Prefix& end) {
  const bool pins = one_in(8);
  const std::size_t most = pins || list.empty() ? list.size() : list.size() - 1;
  const auto found = cached_.find(salt, std::span(list).first(most), pins);
  PrefixHandle handle = pins ? cache_.pin(list, salt) : cache_.match(list, salt);
  EXPECT_EQ(handle.num_tokens(), static_cast<std::int64_t>(found.num_tokens));
  counts_.found += handle.num_tokens();
  if (!handle) return handle;
  const auto is_it = [&](const Prefix& prefix) {
    return std::ranges::equal(cached_.pages(prefix), handle.pages());
  };
  const auto entry = std::find_if(found.ends.begin(), found.ends.end(), is_it);
  if (entry == found.ends.end()) {
    ADD_FAILURE() << "pages that do not hold these tokens";
    return handle;
  }
  end = *entry;
  cached_.pin(end);
  if (!pins) cached_.use(end, now_);
  return handle;
}

void PrefixRequests::match() {
  const std::string salt = any_salt();
  const Tokens list = any_tokens();
  Prefix end;
  PrefixHandle handle = look_up(salt, list, end);
  if (one_in(2)) attach(next_id_++, handle, salt, list);
  hold_or_release(std::move(handle), end);
}

void PrefixRequests::attach(SeqId id, const PrefixHandle& handle, const std::string& salt,
                            const Tokens& list) {
  compare(
      "attach", [&] { cache_.attach(sequences_, id, handle); },
      [&](DescriptorModel& model) {
        const std::vector<PageId> pages(handle.pages().begin(), handle.pages().end());
        model.attach(0, id, pages, handle.num_tokens());
      });
  known_[id].salt = salt;
  append_tokens(id, {list.begin(), list.begin() + handle.num_tokens()});
}

void PrefixRequests::hold_or_release(PrefixHandle handle, const Prefix& end) {
  if (!handle) return;
  if (one_in(3)) {
    held_.push_back({std::move(handle), end});
  } else {
    handle.release();
    cached_.unpin(end);
  }
}

// Several requests look their prompts up, start over what is found, and compute the rest together.
void PrefixRequests::start_batch() {
  std::map<SeqId, Tokens> rest;
  std::vector<Held> handles;
  for (std::int64_t n = 1 + below(3); n > 0; --n) {
    const std::string salt = any_salt();
    Tokens list = any_tokens();
    const SeqId id = next_id_++;
    Prefix end;
    PrefixHandle handle = look_up(salt, list, end);
    attach(id, handle, salt, list);
    rest[id] = {list.begin() + handle.num_tokens(), list.end()};
    if (handle) handles.push_back({std::move(handle), end});
  }
  const bool is_done = grow(rest);
  for (Held& held : handles) hold_or_release(std::move(held.handle), held.end);
  if (is_done) return;
  for (const auto& [id, list] : rest) {
    compare(
        "release", [&, &i = id] { return sequences_.release({i}); },
        [&, &i = id](DescriptorModel& model) { return model.release(0, std::span(&i, 1)); });
    known_.erase(id);
  }
}

void PrefixRequests::insert() {
  const SeqId id = known_id();
  const Request& request = known_.at(id);
  Tokens list = request.tokens;
  list.resize(list.size() - static_cast<std::size_t>(std::min(below(3), std::ssize(list))));
  const InsertOptions options{
      .priority = static_cast<int>(below(3)) - 1,
      .ttl = one_in(2) ? std::chrono::nanoseconds::max() : std::chrono::seconds(1 + below(9))};
  // A lie, where one of the pages gives it away: it is cached under the salt that is true.
  std::string salt = request.salt;
  if (one_in(4) && cached_.holds_any(list, sequence(id).pages)) salt = any_salt();
  PrefixCacheModel cached = cached_;
  const bool is_done = compare(
      "insert", [&] { return cache_.insert(sequences_, id, list, salt, options); },
      [&](DescriptorModel& model) {
        require(sequence(id).num_dropped() == 0 && salt == request.salt);
        const auto added = cached.insert(request.salt, list, sequence(id).pages, options, now_);
        std::vector<PageId> pages;
        for (const std::size_t i : added) pages.push_back(sequence(id).pages[i]);
        model.ref(pages);
        return std::ssize(added);
      });
  if (is_done) cached_ = std::move(cached);
}

void PrefixRequests::let_go() {
  if (held_.empty()) return;
  const auto entry = held_.begin() + below(std::ssize(held_));
  cached_.unpin(entry->end);
  held_.erase(entry);
}

void PrefixRequests::release() {
  const SeqId id = known_id();
  compare(
      "release", [&] { return sequences_.release({id}); },
      [&](DescriptorModel& model) { return model.release(0, std::span(&id, 1)); });
  known_.erase(id);
}

void PrefixRequests::pass_time() { now_ += std::chrono::seconds(below(4)); }

}  // namespace seqattn::testing
