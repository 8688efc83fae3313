#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "call_outcome.h"
#include "descriptor_model.h"
#include "prefix_cache_model.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/prefix_cache.h"

namespace seqattn::testing {

// A prefix cache as its pool's reclaimer that remembers whose references the last call dropped.
class WatchedCache final : public Reclaimer {
 public:
  WatchedCache(PrefixCache& cache, PagePool& pool) : cache_(cache), pool_(pool) {
    pool.set_reclaimer(this);
  }
  ~WatchedCache() override { pool_.set_reclaimer(&cache_); }
  bool reclaim(std::int64_t num_pages) override;

  std::vector<PageId> dropped;  // those that became free in their order, then shares

 private:
  PrefixCache& cache_;
  PagePool& pool_;
};

// A request: where keys and values come from, since they depend on all tokens up to theirs.
struct Request {
  std::string salt;
  std::vector<TokenId> tokens;        // at every position, also where they were dropped
  std::vector<std::int64_t> numbers;  // of the tokens that its SequenceModel speaks of
  std::vector<TokenId> drafts;
  std::vector<std::int64_t> draft_numbers;
};

// What the tests' runs have in common, pools of several page sizes: sequences saved in one come
// back in another.
struct SharedRequests {
  struct Saved {
    std::vector<std::byte> state;
    SequenceModel sequence;
    Request request;
    int page_size = 0;
  };
  std::deque<Saved> saved;
  // The number of a salt and tokens, which is written where a model would write the last token's
  // keys and values.
  std::map<PrefixCacheModel::Prefix, std::int64_t> numbers;
};

struct RequestCounts {
  std::int64_t found = 0;                                                                 // tokens
  std::int64_t evicted = 0;                                                               // pages
  std::int64_t reclaimed_by_growth = 0, reclaimed_by_keep = 0, reclaimed_by_restore = 0;  // calls
  std::int64_t no_page = 0;
  std::int64_t refused = 0;             // for other reasons
  std::int64_t committed = 0;           // draft tokens
  std::int64_t kept = 0;                // calls that dropped something
  std::int64_t dropped_with_sinks = 0;  // tokens that windows with sinks have dropped
  std::int64_t restored_elsewhere = 0;  // sequences
};

// Random requests over a manager, its sequences and a prefix cache, on a pool that is always short.
// Each call is made by the library and by models, which say which pages the cache gives up for it.
class PrefixRequests {
 public:
  PrefixRequests(std::mt19937_64& random, SharedRequests& shared, RequestCounts& counts);

  void step();
  void check();           // all that one can see, but for what pages hold
  void check_contents();  // that too

 private:
  using Prefix = PrefixCacheModel::Prefix;
  using Tokens = std::vector<TokenId>;
  struct Held {
    PrefixHandle handle;
    Prefix end;
  };

  // Makes a call by the library, then by the models. Says whether it was done.
  template <class RealCall, class ModelCall>
  bool compare(const char* name, const RealCall& real, const ModelCall& by_model) {
    watched_.dropped.clear();
    const auto got = outcome_of(real);
    DescriptorModel next = model_;
    PrefixCacheModel next_cached = cached_;
    bool has_reclaimed = false;
    next.gives_up = [&](std::int64_t num_pages, const std::vector<int>& left) {
      has_reclaimed = reclaim_by_model(next_cached, num_pages, left);
      return has_reclaimed ? watched_.dropped : std::vector<PageId>();
    };
    const auto expected = outcome_of([&] { return by_model(next); });
    next.gives_up = nullptr;
    EXPECT_EQ(got.thrown, expected.thrown) << name;
    EXPECT_TRUE(got == expected) << name << " gave another result";
    EXPECT_EQ(has_reclaimed, !watched_.dropped.empty()) << name;
    counts_.no_page += expected.thrown == Thrown::kNoPage;
    if (expected.thrown != Thrown::kNothing) {
      counts_.refused += expected.thrown != Thrown::kNoPage;
      return false;
    }
    counts_.evicted += std::ssize(watched_.dropped);
    model_ = std::move(next);
    cached_ = std::move(next_cached);
    return true;
  }
  bool reclaim_by_model(PrefixCacheModel& cached, std::int64_t num_pages,
                        std::span<const std::int32_t> left);
  // Follows the cache where it frees pages on request: those have to be the ones of `before` that
  // the model has no more, and the library says in which order.
  void follow_freed(std::int64_t num_free, const PrefixCacheModel& before);

  std::int64_t below(std::int64_t n) {
    return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n));
  }
  bool one_in(std::int64_t n) { return below(n) == 0; }
  std::string any_salt() { return std::string(static_cast<std::size_t>(below(2)), 's'); }
  SeqId known_id();
  SeqId id_with_tree(bool pending);  // as a rule
  Tokens any_tokens();
  const SequenceModel& sequence(SeqId id) const { return model_.sequence(0, id); }

  void match();
  PrefixHandle look_up(const std::string& salt, const Tokens& list, Prefix& end);
  void start_batch();
  void attach(SeqId id, const PrefixHandle& handle, const std::string& salt, const Tokens& list);
  void hold_or_release(PrefixHandle handle, const Prefix& end);
  void insert();
  void let_go();
  void release();
  void pass_time();
  // prefix_requests_eviction.cc
  void evict();
  void clear();
  // prefix_requests_growth.cc
  void grow();
  bool grow(const std::map<SeqId, Tokens>& growth);
  std::int64_t num_dropped_with_sinks() const;
  void decode();
  void allocate_tree();
  void commit_tree();
  void append_tokens(SeqId id, const Tokens& list);
  void write(const std::vector<SeqId>& ids, const std::vector<std::int64_t>& lengths);
  // prefix_requests_state.cc
  void truncate();
  void fork();
  void set_window();
  void keep();
  void save();
  void restore();
  void restore_wrong_bytes(SeqId id, std::vector<std::byte> state);
  // prefix_requests_check.cc
  void follow_events();
  std::vector<std::int64_t> held_numbers(SeqId id) const;
  std::int64_t number_of(const std::string& salt, const Tokens& list);

  std::mt19937_64& random_;
  SharedRequests& shared_;
  RequestCounts& counts_;
  std::chrono::steady_clock::time_point now_{};
  PagedKVCacheManager manager_;
  PagePool& pool_ = manager_.pool();
  CacheDescriptor sequences_{manager_};
  PrefixCache cache_{pool_, {.clock = [this] { return now_; }, .event_capacity = 4096}};
  WatchedCache watched_{cache_, pool_};
  DescriptorModel model_;
  PrefixCacheModel cached_;
  std::map<SeqId, Request> known_;
  std::deque<std::pair<std::string, Tokens>> history_;
  std::vector<Held> held_;               // goes before the cache does
  std::map<std::int64_t, Prefix> told_;  // what a router that sees the events believes
  SeqId next_id_ = 0;
};

}  // namespace seqattn::testing
