#pragma once

#include <algorithm>
#include <cstdint>
#include <list>
#include <stdexcept>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "trace.h"

namespace seqattn::testing {

// What a replay of one request at a time has to find, with a plain list of pages in the order of
// their last use: no tree, no tokens, no pool. A page of an input is named by its block's id and
// its place in the block, which is enough, since equal ids have equal tokens before them.
class LruSimulation {
 public:
  // `page_size` divides 512.
  LruSimulation(std::int64_t num_pages, std::int64_t page_size)
      : num_pages_(num_pages), page_size_(page_size) {}

  void run(const cli::Request& request) {
    const std::vector<std::int64_t> keys = keys_of(request);
    const std::int64_t most = request.input_length - 1;
    std::int64_t num_cached = 0;  // pages from the front that are there
    while (num_cached < std::ssize(keys) && pages_.count(keys[num_cached]) > 0) ++num_cached;
    const std::int64_t num_found = std::min(num_cached * page_size_, most);
    count(request, num_found);

    // All that was found is used now; but a page of which a part was found is copied.
    use(keys, pages_for(num_found));
    held_.clear();
    for (std::int64_t i = 0; i < num_found / page_size_; ++i) held_.insert(keys[i]);
    num_own_ = 0;
    const auto kept = pages_for(num_found) > num_found / page_size_
                          ? std::vector{keys[pages_for(num_found) - 1]}
                          : std::vector<std::int64_t>{};
    held_.insert(kept.begin(), kept.end());
    take(pages_for(request.input_length) - num_found / page_size_);
    for (const std::int64_t key : kept) held_.erase(key);
    give(keys, request.input_length / page_size_);
    for (std::int64_t n = 1; n <= request.output_length; ++n) {
      const std::int64_t length = request.input_length + n;
      if (pages_for(length) > pages_for(length - 1)) take(1);
    }
    peak_pages = std::max(peak_pages, taken());
    give(keys, std::ssize(keys));
    num_own_ = 0;
    held_.clear();
  }

  std::int64_t num_blocks_found = 0, num_tokens_found = 0, num_evictions = 0, peak_pages = 0;

 private:
  std::int64_t pages_for(std::int64_t num_tokens) const {
    return (num_tokens + page_size_ - 1) / page_size_;
  }
  std::vector<std::int64_t> keys_of(const cli::Request& request) const {
    std::vector<std::int64_t> keys;
    for (std::int64_t i = 0; i < pages_for(request.input_length); ++i) {
      const std::int64_t token = i * page_size_;
      keys.push_back(request.hash_ids[token / 512] * 512LL + token % 512);
    }
    return keys;
  }
  void count(const cli::Request& request, std::int64_t num_found) {
    num_tokens_found += num_found;
    for (std::size_t block = 0; block < request.hash_ids.size(); ++block) {
      const auto begin = static_cast<std::int64_t>(block) * 512;
      const std::int64_t end = std::min(begin + 512, request.input_length);
      const bool all = num_found >= end;
      const bool all_but_the_last = end == request.input_length && num_found == end - 1;
      if (all || (all_but_the_last && end - 1 > begin)) ++num_blocks_found;
    }
  }
  std::int64_t taken() const { return static_cast<std::int64_t>(pages_.size()) + num_own_; }

  // The first of the keys become the most recently used, the very first one most of all.
  void use(const std::vector<std::int64_t>& keys, std::int64_t count) {
    for (std::int64_t i = count - 1; i >= 0; --i) {
      order_.splice(order_.end(), order_, pages_.at(keys[i]));
    }
  }
  // Pages for the sequence alone.
  void take(std::int64_t count) {
    while (taken() + count > num_pages_) {
      const auto oldest = std::find_if(order_.begin(), order_.end(),
                                       [&](std::int64_t key) { return held_.count(key) == 0; });
      if (oldest == order_.end()) throw std::logic_error("a request does not fit the pool");
      pages_.erase(*oldest);
      order_.erase(oldest);
      ++num_evictions;
    }
    num_own_ += count;
  }
  // The first pages of the sequence go to the cache, as far as it lacks them.
  void give(const std::vector<std::int64_t>& keys, std::int64_t count) {
    for (std::int64_t i = 0; i < count; ++i) {
      if (pages_.count(keys[i]) > 0) continue;
      pages_[keys[i]] = order_.insert(order_.end(), keys[i]);
      held_.insert(keys[i]);
      --num_own_;
    }
    use(keys, count);
  }

  std::int64_t num_pages_, page_size_;
  std::list<std::int64_t> order_;  // the least recently used first
  std::unordered_map<std::int64_t, std::list<std::int64_t>::iterator> pages_;
  std::unordered_set<std::int64_t> held_;  // cached pages that the running sequence holds
  std::int64_t num_own_ = 0;               // its other pages
};

}  // namespace seqattn::testing
