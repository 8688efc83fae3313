#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "samples.h"
#include "trace.h"

namespace seqattn::cli {

enum class Policy {
  kLru,    // the least recently used prefix goes first
  kReuse,  // as that, but prefixes that no second request has found go before those that one has
  kNone,   // no prefix cache
};

struct ReplayOptions {
  std::int64_t num_pages = 0;  // of the pool; 0 for as many as it takes
  int page_size = 16;
  Policy policy = Policy::kLru;
  std::int64_t concurrency = 1;  // requests that run side by side
  bool cache_output = false;     // generated tokens go to the cache as well
};

struct ReplayResult {
  std::int64_t num_pages = 0;  // of the pool
  std::int64_t num_requests = 0, num_dropped = 0;
  std::int64_t num_blocks = 0, num_blocks_found = 0;
  std::int64_t num_tokens = 0, num_tokens_found = 0;  // of inputs
  std::int64_t num_tokens_generated = 0;
  std::int64_t num_evictions = 0;
  std::int64_t num_refused = 0;    // admissions that had to wait, since the pool was short
  std::int64_t num_preempted = 0;  // requests that gave their pages up, to begin again
  std::int64_t num_steps = 0;
  // Pages taken, by sequences and cache, after each step; and by sequences alone.
  std::int64_t peak_pages = 0, peak_pages_in_use = 0;
  double mean_pages = 0, mean_pages_in_use = 0;
  std::int64_t num_operations = 0;  // calls of descriptor and cache; a batch counts each sequence
  double seconds = 0;
  std::vector<Sample> samples;
};

// Runs the requests in their order through a descriptor and a prefix cache over a pool of pages:
// no keys, no values, only who holds which page. In each step requests are admitted while fewer
// than `concurrency` run and the pool has pages for the next one's input; then every running one
// generates a token. Timestamps are not looked at: a request arrives when there is room for it.
//
// An admitted request starts over what the cache finds of its input, and gives the whole pages of
// the input to the cache. At its end it gives the input's last page too, with what it generated
// there (or a filler, where that is less). When the pool is short in mid-generation, the youngest
// request gives up its pages and begins again later. One that no pool of this size can hold is
// dropped, which takes no step.
//
// A block is found when the request starts over all of its tokens, but for the input's last one,
// which is always left to compute. Blocks and tokens of a request count at its first admission.
// `on_progress` hears how many requests have ended. Memory: what the cache takes for its pages, 16
// bytes a page of the pool, and the trace. Throws InvalidArgumentError for options that make no
// pool, and where an unlimited one could come to more pages than a pool can have.
ReplayResult replay(const std::vector<Request>& requests, const ReplayOptions& options,
                    const std::function<void(std::int64_t)>& on_progress = {});

}  // namespace seqattn::cli
