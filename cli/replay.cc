#include "replay.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <numeric>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "page_holders.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/prefix_cache.h"

namespace seqattn::cli {
namespace {

// Stands for every token that is generated, and for the filler behind them: it occurs in no input,
// and equal inputs are answered alike.
constexpr TokenId kGenerated = -1;

std::int64_t pages_for(std::int64_t num_tokens, int page_size) {
  return (num_tokens + page_size - 1) / page_size;
}

// How many blocks the inputs have that differ, or stand behind others.
std::int64_t num_distinct_blocks(const std::vector<Request>& requests) {
  std::map<std::pair<std::int64_t, std::int32_t>, std::int64_t> blocks;  // by block in front and id
  for (const Request& request : requests) {
    std::int64_t block = -1;
    for (const std::int32_t id : request.hash_ids) {
      block = blocks.try_emplace({block, id}, std::ssize(blocks)).first->second;
    }
  }
  return std::ssize(blocks);
}

// Pages that no replay of these requests can use up. Throws for more than a pool can have.
std::int64_t enough_pages(const std::vector<Request>& requests, const ReplayOptions& options) {
  const int page_size = std::max(options.page_size, 1);
  // Those of the requests that run, with a copy to write for each: no more than the largest have.
  std::vector<std::int64_t> own;
  own.reserve(requests.size());
  for (const Request& request : requests) {
    own.push_back(pages_for(request.input_length + request.output_length, page_size) + 1);
  }
  const std::int64_t num_running = std::min(options.concurrency, std::ssize(own));
  std::nth_element(own.begin(), own.begin() + num_running, own.end(), std::greater<>());
  std::int64_t sum = std::accumulate(own.begin(), own.begin() + num_running, std::int64_t{0});
  if (options.policy != Policy::kNone) {
    // Each page of the cache ends inside a block, or behind the input.
    sum += num_distinct_blocks(requests) * (kBlockTokens / page_size + 1);
    for (const Request& request : requests) {
      sum += 1 + (options.cache_output ? pages_for(request.output_length, page_size) : 0);
    }
  }
  constexpr std::int64_t kMost = std::numeric_limits<PageId>::max();
  if (sum > kMost) {
    throw InvalidArgumentError("pages: the requests may take " + std::to_string(sum) +
                               ", a pool has at most " + std::to_string(kMost) +
                               "; say how many it has, or take larger pages");
  }
  return sum;
}

class Replay {
 public:
  Replay(const std::vector<Request>& requests, const ReplayOptions& options)
      : requests_(requests),
        options_(options),
        pool_(options.num_pages > 0 ? options.num_pages : enough_pages(requests, options),
              options.page_size),
        sequences_(pool_),
        holders_(pool_.num_pages()),
        is_counted_(requests.size()) {
    if (options.policy != Policy::kNone) cache_.emplace(pool_);
  }

  ReplayResult run(const std::function<void(std::int64_t)>& on_progress) {
    const auto start = std::chrono::steady_clock::now();
    while (next_ < requests_.size() || !preempted_.empty() || !running_.empty()) {
      admit();
      if (!running_.empty()) {
        generate();
        sample();
        finish();
      } else if (pool_is_short_) {
        throw Error("replay: a request that fits the pool cannot start in it");
      }
      if (on_progress) on_progress(num_ended_);
    }
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    return report(taken.count());
  }

 private:
  struct Running {
    std::size_t request = 0;
    std::int64_t num_generated = 0;
    std::size_t num_pages = 0;  // that holders_ has heard of
  };
  static SeqId id_of(std::size_t request) { return static_cast<SeqId>(request); }

  void admit() {
    while (std::ssize(running_) < options_.concurrency && !pool_is_short_) {
      const bool is_again = !preempted_.empty();
      if (!is_again && next_ == requests_.size()) return;
      const std::size_t request = is_again ? preempted_.front() : next_;
      if (!fits(requests_[request])) {
        ++result_.num_dropped;
        ++num_ended_;
      } else if (!start(request)) {
        ++result_.num_refused;
        pool_is_short_ = true;  // until a request ends
        return;
      }
      if (is_again) {
        preempted_.pop_front();
      } else {
        ++next_;
      }
    }
  }

  bool fits(const Request& request) const {
    return pages_for(request.input_length + request.output_length, options_.page_size) <=
           pool_.num_pages();
  }

  // Over what the cache has.
  bool start(std::size_t request) {
    make_prompt(requests_[request], tokens_);
    PrefixHandle handle = cache_ ? cache_->match(tokens_) : PrefixHandle();
    const SeqId id = id_of(request);
    const std::int64_t num_found = handle.num_tokens();
    if (num_found > 0) cache_->attach(sequences_, id, handle);
    handle.release();
    result_.num_operations += 3;
    const std::int64_t num_new = requests_[request].input_length - num_found;
    if (!sequences_.try_allocate({id}, {num_new})) {
      sequences_.release({id});
      return false;
    }
    count_found(request, num_found);
    give_to_cache(id, tokens_, num_found);
    Running& running = running_.emplace_back(Running{.request = request});
    count_pages(running);
    return true;
  }

  void count_found(std::size_t number, std::int64_t num_found) {
    if (is_counted_[number]) return;
    is_counted_[number] = true;
    const Request& request = requests_[number];
    result_.num_blocks += std::ssize(request.hash_ids);
    result_.num_tokens += request.input_length;
    result_.num_tokens_found += num_found;
    result_.num_blocks_found += num_found / kBlockTokens;
    const bool found_all = num_found == request.input_length - 1;
    if (found_all && num_found % kBlockTokens != 0) ++result_.num_blocks_found;
  }

  // The whole pages of the tokens; those of the first `num_found` were found by this request.
  void give_to_cache(SeqId id, std::span<const TokenId> tokens, std::int64_t num_found) {
    if (!cache_) return;
    cache_->insert(sequences_, id, tokens);
    ++result_.num_operations;
    if (options_.policy != Policy::kReuse || num_found == 0) return;
    cache_->insert(sequences_, id, tokens.first(static_cast<std::size_t>(num_found)), {},
                   {.priority = 1});
    ++result_.num_operations;
  }

  void generate() {
    while (!running_.empty()) {
      ids_.clear();
      for (const Running& running : running_) {
        if (!is_done(running)) ids_.push_back(id_of(running.request));
      }
      ones_.resize(ids_.size(), 1);
      result_.num_operations += std::ssize(ids_);
      if (sequences_.try_allocate(ids_, ones_)) break;
      preempt();
    }
    for (Running& running : running_) {
      if (is_done(running)) continue;
      ++running.num_generated;
      count_pages(running);
    }
    result_.num_tokens_generated += std::ssize(ids_);
  }

  void preempt() {
    const Running& youngest = running_.back();
    if (running_.size() == 1) {
      throw Error("replay: a request that fits the pool cannot grow in it");
    }
    stop(youngest);
    preempted_.push_front(youngest.request);
    running_.pop_back();
    ++result_.num_preempted;
    pool_is_short_ = true;
  }

  void finish() {
    for (const Running& running : running_) {
      if (!is_done(running)) continue;
      give_at_end(running.request);
      stop(running);
      ++num_ended_;
      pool_is_short_ = false;
    }
    std::erase_if(running_, [&](const Running& running) { return is_done(running); });
  }

  void give_at_end(std::size_t number) {
    if (!cache_) return;
    const Request& request = requests_[number];
    const std::int64_t length = request.input_length + request.output_length;
    const std::int64_t end =
        options_.page_size *
        pages_for(options_.cache_output ? length : request.input_length, options_.page_size);
    // Stays on the last page, so that it takes none.
    if (end > length) sequences_.allocate({id_of(number)}, {end - length});
    make_prompt(request, tokens_);
    tokens_.resize(static_cast<std::size_t>(end), kGenerated);
    give_to_cache(id_of(number), tokens_, 0);
  }

  bool is_done(const Running& running) const {
    return running.num_generated == requests_[running.request].output_length;
  }

  void stop(const Running& running) {
    const SeqId id = id_of(running.request);
    holders_.remove(sequences_.pages(id).first(running.num_pages));
    sequences_.release({id});
    ++result_.num_operations;
  }

  void count_pages(Running& running) {
    const auto pages = sequences_.pages(id_of(running.request));
    holders_.add(pages.subspan(running.num_pages));
    running.num_pages = pages.size();
  }

  void sample() {
    const std::int64_t free = pool_.available_pages_count(), taken = pool_.num_pages() - free;
    const std::int64_t in_use = holders_.num_held();
    result_.peak_pages = std::max(result_.peak_pages, taken);
    result_.peak_pages_in_use = std::max(result_.peak_pages_in_use, in_use);
    sum_pages_ += static_cast<double>(taken);
    sum_pages_in_use_ += static_cast<double>(in_use);
    samples_.add({result_.num_steps++, in_use, taken - in_use, free});
  }

  ReplayResult report(double seconds) {
    result_.num_pages = pool_.num_pages();
    result_.num_requests = std::ssize(requests_);
    result_.num_evictions = cache_ ? cache_->stats().num_pages_evicted : 0;
    const auto num_steps = static_cast<double>(std::max<std::int64_t>(result_.num_steps, 1));
    result_.mean_pages = sum_pages_ / num_steps;
    result_.mean_pages_in_use = sum_pages_in_use_ / num_steps;
    result_.seconds = seconds;
    result_.samples = samples_.list();
    return std::move(result_);
  }

  const std::vector<Request>& requests_;
  const ReplayOptions& options_;
  PagePool pool_;
  CacheDescriptor sequences_;
  std::optional<PrefixCache> cache_;
  PageHolders holders_;

  std::size_t next_ = 0;               // the first request that has not been tried
  std::deque<std::size_t> preempted_;  // go before that
  std::vector<Running> running_;       // oldest first
  bool pool_is_short_ = false;
  std::int64_t num_ended_ = 0;

  ReplayResult result_;
  std::vector<bool> is_counted_;  // by request
  Samples samples_;
  double sum_pages_ = 0, sum_pages_in_use_ = 0;
  std::vector<TokenId> tokens_;  // kept for their memory, as are the next two
  std::vector<SeqId> ids_;
  std::vector<std::int64_t> ones_;
};

}  // namespace

ReplayResult replay(const std::vector<Request>& requests, const ReplayOptions& options,
                    const std::function<void(std::int64_t)>& on_progress) {
  if (options.concurrency < 1) throw InvalidArgumentError("concurrency: expected at least 1");
  return Replay(requests, options).run(on_progress);
}

}  // namespace seqattn::cli
