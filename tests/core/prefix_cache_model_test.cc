#include "prefix_cache_model.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

// Random requests, on a pool that is always short, against a model that is too simple to be wrong.
namespace seqattn {
namespace {

using testing::PrefixCacheModel;
using Prefix = PrefixCacheModel::Prefix;
using Tokens = std::vector<TokenId>;

class Requests {
 public:
  explicit Requests(std::mt19937_64& random)
      : random_(random),
        pool_(8 + below(24), 1 + static_cast<int>(below(4))),
        slots_(static_cast<std::size_t>(pool_.num_pages() * pool_.page_size())) {}
  ~Requests() { held_.clear(); }

  void step() {
    switch (below(16)) {
      case 0:
      case 1:
      case 2:
        return match();
      case 3:
      case 4:
      case 5:
        return grow();
      case 6:
      case 7:
      case 8:
        return insert();
      case 9:
      case 10:
        return release();
      case 11:
        return let_go();
      case 12:
        return truncate_or_fork();
      case 13:
        return evict();
      case 14:
        now_ += std::chrono::seconds(below(4));
        return;
      default:
        return rarely();
    }
  }

  // Everything that one can see of the cache is what the model says.
  void check() {
    cache_.check_invariants();
    sequences_.check_invariants();
    follow_events();
    std::map<Prefix, PageId> expected;
    for (const auto& [prefix, entry] : model_.entries) expected[prefix] = entry.page;
    ASSERT_EQ(told_.size(), expected.size());
    for (const auto& [block, prefix] : told_) ASSERT_TRUE(expected.contains(prefix));
    const auto stats = cache_.stats();
    ASSERT_EQ(stats.num_pages, static_cast<std::int64_t>(expected.size()));
    ASSERT_EQ(stats.num_pinned_pages, model_.num_pinned_pages());
    ASSERT_EQ(stats.num_handles, model_.num_pins());
    ASSERT_EQ(stats.num_events_lost, 0);
  }

  std::int64_t num_found = 0, num_evicted = 0, num_refused = 0;

 private:
  struct Sequence {
    std::string salt;
    Tokens tokens;
    std::int64_t window = 0;
  };
  struct Held {
    PrefixHandle handle;
    Prefix end;
  };

  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n));
  }
  std::string any_salt() { return std::string(static_cast<std::size_t>(below(2)), 's'); }
  SeqId known_id() {
    return std::next(known_.begin(), below(static_cast<std::int64_t>(known_.size())))->first;
  }

  // A new list, or one that begins like a sequence that was there.
  Tokens any_tokens() {
    Tokens list;
    if (!history_.empty() && below(4) > 0) {
      list = history_[static_cast<std::size_t>(below(std::ssize(history_)))];
      list.resize(static_cast<std::size_t>(below(std::ssize(list) + 1)));
    }
    const std::int64_t num_more = below(2 * pool_.page_size() + 2);
    for (std::int64_t i = 0; i < num_more; ++i) list.push_back(static_cast<TokenId>(below(2)));
    return list;
  }

  void match() {
    const Tokens list = any_tokens();
    const std::string salt = any_salt();
    const bool pins = below(8) == 0;
    const std::size_t most = pins ? list.size() : list.size() - (list.empty() ? 0 : 1);
    const auto found = model_.find(salt, std::span(list).first(most), pins);
    PrefixHandle handle = pins ? cache_.pin(list, salt) : cache_.match(list, salt);
    ASSERT_EQ(handle.num_tokens(), static_cast<std::int64_t>(found.num_tokens));
    num_found += handle.num_tokens();
    Prefix end;
    if (handle) {
      const auto pages = handle.pages();
      const auto is_it = [&](const Prefix& prefix) {
        return std::ranges::equal(model_.pages(prefix), pages);
      };
      const auto entry = std::find_if(found.ends.begin(), found.ends.end(), is_it);
      ASSERT_NE(entry, found.ends.end()) << "pages that do not hold these tokens";
      end = *entry;
      model_.pin(end);
      if (!pins) model_.use(end, now_);
    }
    check_contents(salt, std::span(list).first(found.num_tokens), handle.pages());
    if (below(2) == 0) {
      const SeqId id = next_id_++;
      cache_.attach(sequences_, id, handle);
      known_[id] = {salt, {list.begin(), list.begin() + handle.num_tokens()}};
      if (below(2) == 0) {
        known_[id].window = 1 + below(2 * pool_.page_size());
        sequences_.set_window(id, {.window = known_[id].window});
      }
    }
    if (handle && below(2) == 0) {
      held_.push_back({std::move(handle), end});
    } else if (handle) {
      handle.release();
      model_.unpin(end);
    }
  }

  void grow() {
    if (known_.empty() || below(4) == 0) known_[next_id_++] = {any_salt(), {}};
    const SeqId id = known_id();
    Sequence& sequence = known_.at(id);
    Tokens list = any_tokens();
    if (below(2) == 0) list.resize(std::min<std::size_t>(list.size(), 1));
    const Need need = what_growth_needs(id, std::ssize(list));
    const bool fits = need.num_pages <= pool_.num_pages() &&
                      evict_for(need.num_pages - need.num_available, need.ref_counts);
    const Admission admission = sequences_.try_allocate({id}, {std::ssize(list)});
    ASSERT_EQ(admission.ok, fits);
    if (!fits) {
      ++num_refused;
      if (!sequences_.contains(id)) known_.erase(id);
      return;
    }
    for (const auto& [source, target] : admission.copies) copy(source, target);
    for (const TokenId token : list) {
      sequence.tokens.push_back(token);
      const auto num_dropped = static_cast<std::size_t>(sequences_.sequence(id).dropped_to);
      const PageId page =
          sequences_.pages(id)[(sequence.tokens.size() - 1 - num_dropped) / page_size()];
      ASSERT_EQ(pool_.ref_count(page), 1) << "a shared page would be written";
      slot(page, (sequence.tokens.size() - 1) % page_size()) = {sequence.salt, sequence.tokens};
    }
    history_.push_back(sequence.tokens);
    if (history_.size() > 16) history_.erase(history_.begin());
  }

  bool evict_for(std::int64_t missing, std::span<const std::int32_t> ref_counts) {
    if (missing <= 0) return true;
    const auto n = model_.evict(missing, ref_counts, now_, false, /*all_or_nothing=*/true);
    num_evicted += n;
    return n == missing;
  }

  struct Need {
    std::int64_t num_pages = 0;
    std::int64_t num_available = 0;
    std::vector<std::int32_t> ref_counts;  // without what the sequence gives up
  };
  Need what_growth_needs(SeqId id, std::int64_t num_new) {
    const auto counts = pool_.ref_counts();
    Need need{0, pool_.available_pages_count(), {counts.begin(), counts.end()}};
    if (num_new == 0) return need;
    const std::int64_t page_size = pool_.page_size();
    if (!sequences_.contains(id)) {
      need.num_pages = (num_new + page_size - 1) / page_size;
      return need;
    }
    const std::int64_t length = sequences_.length(id), window = known_.at(id).window;
    const auto pages = sequences_.pages(id);
    const std::int64_t dropped_to = sequences_.sequence(id).dropped_to;
    for (std::int64_t end = dropped_to + page_size;
         window > 0 && end <= length && end <= length - window + 1; end += page_size) {
      const PageId page = pages[static_cast<std::size_t>((end - dropped_to) / page_size - 1)];
      if (--need.ref_counts[static_cast<std::size_t>(page)] == 0) ++need.num_available;
    }
    need.num_pages =
        (length + num_new + page_size - 1) / page_size - (length + page_size - 1) / page_size;
    if (length % page_size != 0 && pool_.ref_count(pages.back()) > 1) {
      ++need.num_pages;
      --need.ref_counts[static_cast<std::size_t>(pages.back())];
    }
    return need;
  }

  void insert() {
    if (known_.empty()) return;
    const SeqId id = known_id();
    const Sequence& sequence = known_.at(id);
    if (!sequences_.contains(id) || sequences_.sequence(id).dropped_to > 0) return;
    const auto list =
        std::span(sequence.tokens)
            .first(sequence.tokens.size() -
                   static_cast<std::size_t>(std::min(below(3), std::ssize(sequence.tokens))));
    const InsertOptions options{.priority = static_cast<int>(below(3)) - 1,
                                .ttl = below(2) == 0 ? std::chrono::nanoseconds::max()
                                                     : std::chrono::seconds(1 + below(9))};
    const auto added = model_.insert(sequence.salt, list, sequences_.pages(id), options, now_);
    ASSERT_EQ(cache_.insert(sequences_, id, list, sequence.salt, options), std::ssize(added));
  }

  void release() {
    if (known_.empty()) return;
    const SeqId id = known_id();
    sequences_.release({id});
    known_.erase(id);
  }

  void let_go() {
    if (held_.empty()) return;
    const auto entry = held_.begin() + below(std::ssize(held_));
    model_.unpin(entry->end);
    held_.erase(entry);
  }

  void truncate_or_fork() {
    if (known_.empty()) return;
    const SeqId id = known_id();
    if (!sequences_.contains(id) || sequences_.sequence(id).dropped_to > 0) return;
    const std::int64_t num_tokens = below(sequences_.length(id) + 1);
    Sequence sequence = known_.at(id);
    sequence.tokens.resize(static_cast<std::size_t>(num_tokens));
    const SeqId child = below(2) == 0 ? id : next_id_++;
    child == id ? sequences_.truncate(id, num_tokens) : sequences_.fork(id, child, num_tokens);
    known_[child] = std::move(sequence);
  }

  void evict() {
    const bool only_expired = below(2) == 0;
    const std::int64_t most = only_expired ? pool_.num_pages() : below(4);
    const auto n = model_.evict(most, pool_.ref_counts(), now_, only_expired, false);
    ASSERT_EQ(only_expired ? cache_.evict_expired() : cache_.evict(most), n);
    num_evicted += n;
  }

  void rarely() {
    if (below(8) != 0) return;
    if (!held_.empty()) {
      EXPECT_THROW(cache_.clear(), PinnedError);
      return;
    }
    cache_.clear();
    model_.entries.clear();
  }

  // What the slots of pages hold, as far as sequences have written them: salt and tokens up to
  // there, on which keys and values depend.
  std::size_t page_size() const { return static_cast<std::size_t>(pool_.page_size()); }
  Prefix& slot(PageId page, std::size_t i) {
    return slots_[static_cast<std::size_t>(page) * page_size() + i];
  }
  void copy(PageId source, PageId target) {
    for (std::size_t i = 0; i < page_size(); ++i) slot(target, i) = slot(source, i);
  }
  void check_contents(const std::string& salt, std::span<const TokenId> list,
                      std::span<const PageId> pages) {
    for (std::size_t n = 0; n < list.size(); ++n) {
      const Prefix expected{salt,
                            {list.begin(), list.begin() + static_cast<std::ptrdiff_t>(n) + 1}};
      ASSERT_EQ(slot(pages[n / page_size()], n % page_size()), expected) << "token " << n;
    }
  }

  // What a router that sees the events believes: block id to prefix.
  void follow_events() {
    for (const CacheEvent& event : cache_.drain_events()) {
      switch (event.kind) {
        case CacheEvent::Kind::kStored: {
          Prefix prefix{event.salt, {}};
          if (event.parent != 0) prefix = told_.at(event.parent);
          prefix.second.insert(prefix.second.end(), event.tokens.begin(), event.tokens.end());
          ASSERT_TRUE(told_.emplace(event.block, prefix).second);
          break;
        }
        case CacheEvent::Kind::kHit:
          ASSERT_EQ(told_.at(event.block).first, event.salt);
          ASSERT_EQ(told_.at(event.block).second.size(),
                    (static_cast<std::size_t>(event.num_tokens) + page_size() - 1) / page_size() *
                        page_size());
          break;
        case CacheEvent::Kind::kEvicted:
          ASSERT_EQ(told_.erase(event.block), 1u);
          break;
        case CacheEvent::Kind::kCleared:
          told_.clear();
      }
    }
  }

  std::mt19937_64& random_;
  std::chrono::steady_clock::time_point now_{};
  PagePool pool_;
  std::vector<Prefix> slots_;
  CacheDescriptor sequences_{pool_};
  PrefixCache cache_{pool_, {.clock = [this] { return now_; }, .event_capacity = 4096}};
  PrefixCacheModel model_{pool_.page_size()};
  std::map<SeqId, Sequence> known_;
  std::vector<Tokens> history_;
  std::vector<Held> held_;
  std::map<std::int64_t, Prefix> told_;
  SeqId next_id_ = 0;
};

class PrefixCacheModelTest : public ::testing::TestWithParam<int> {};

TEST_P(PrefixCacheModelTest, AgreesOnRandomRequests) {
  auto random = testing::random_source(300 + static_cast<std::uint64_t>(GetParam()));
  std::int64_t num_found = 0, num_evicted = 0, num_refused = 0;
  for (int run = 0; run < 250; ++run) {
    Requests requests(random);
    for (int step = 0; step < 500; ++step) {
      requests.step();
      if (HasFatalFailure()) FAIL() << "run " << run << ", step " << step;
      requests.check();
      if (HasFatalFailure()) FAIL() << "run " << run << ", after step " << step;
    }
    num_found += requests.num_found;
    num_evicted += requests.num_evicted;
    num_refused += requests.num_refused;
  }
  EXPECT_GT(num_found, 10'000);
  EXPECT_GT(num_evicted, 1500);
  EXPECT_GT(num_refused, 500);
}

INSTANTIATE_TEST_SUITE_P(Shards, PrefixCacheModelTest, ::testing::Range(0, 4));

}  // namespace
}  // namespace seqattn
