#include <algorithm>

#include "descriptor_comparison.h"
#include "prefix_requests.h"
#include "stored_tokens.h"

// Everything that one can see is what the models say.
namespace seqattn::testing {

void PrefixRequests::check() {
  cache_.check_invariants();
  sequences_.check_invariants();
  ASSERT_TRUE(std::ranges::equal(pool_.ref_counts(), model_.counts));
  ASSERT_EQ(pool_.free_pages(), model_.free_pages);
  ASSERT_TRUE(equals(sequences_, model_, 0));
  ASSERT_EQ(std::ssize(known_), sequences_.num_sequences());
  follow_events();
  ASSERT_EQ(told_.size(), cached_.entries.size());
  for (const auto& [block, prefix] : told_) ASSERT_TRUE(cached_.entries.contains(prefix));
  const auto stats = cache_.stats();
  ASSERT_EQ(stats.num_pages, std::ssize(cached_.entries));
  ASSERT_EQ(stats.num_pinned_pages, cached_.num_pinned_pages());
  ASSERT_EQ(stats.num_handles, cached_.num_pins());
  ASSERT_EQ(stats.num_events_lost, 0);
}

void PrefixRequests::check_contents() {
  for (const auto& [id, request] : known_) {
    SCOPED_TRACE(::testing::Message() << "sequence " << id);
    expect_numbers(manager_, sequences_.pages(id), held_numbers(id));
  }
  const auto page_size = static_cast<std::size_t>(pool_.page_size());
  for (const auto& [prefix, entry] : cached_.entries) {
    const auto& [salt, list] = prefix;
    std::vector<std::int64_t> numbers;
    for (std::size_t n = list.size() - page_size + 1; n <= list.size(); ++n) {
      numbers.push_back(
          number_of(salt, {list.begin(), list.begin() + static_cast<std::ptrdiff_t>(n)}));
    }
    SCOPED_TRACE("a cached page");
    expect_numbers(manager_, std::span(&entry.page, 1), numbers);
  }
}

void PrefixRequests::follow_events() {
  for (const CacheEvent& event : cache_.drain_events()) {
    switch (event.kind) {
      case CacheEvent::Kind::kStored: {
        Prefix prefix{event.salt, {}};
        if (event.parent != 0) prefix = told_.at(event.parent);
        prefix.second.insert(prefix.second.end(), event.tokens.begin(), event.tokens.end());
        ASSERT_TRUE(told_.emplace(event.block, prefix).second);
        break;
      }
      case CacheEvent::Kind::kHit: {
        const std::int64_t size = pool_.page_size();
        ASSERT_EQ(told_.at(event.block).first, event.salt);
        ASSERT_EQ(std::ssize(told_.at(event.block).second),
                  (event.num_tokens + size - 1) / size * size);
        break;
      }
      case CacheEvent::Kind::kEvicted:
        ASSERT_EQ(told_.erase(event.block), 1u);
        break;
      case CacheEvent::Kind::kCleared:
        told_.clear();
    }
  }
}

std::vector<std::int64_t> PrefixRequests::held_numbers(SeqId id) const {
  const Request& request = known_.at(id);
  std::vector<std::int64_t> held;
  for (const std::int64_t token : sequence(id).tokens) {
    held.push_back(request.numbers[static_cast<std::size_t>(token)]);
  }
  held.insert(held.end(), request.draft_numbers.begin(), request.draft_numbers.end());
  return held;
}

std::int64_t PrefixRequests::number_of(const std::string& salt, const Tokens& list) {
  return shared_.numbers.try_emplace({salt, list}, std::ssize(shared_.numbers)).first->second;
}

}  // namespace seqattn::testing
