#include "replay.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "lru_simulation.h"
#include "random_source.h"
#include "seqattn/error.h"

namespace seqattn::cli {
namespace {

using testing::LruSimulation;

// Conversations: turns that repeat what was said and add to it, some asked again word for word, and
// inputs that have nothing in common. A last block that is not full has an id of its own.
std::vector<Request> make_trace(std::mt19937_64& random, std::size_t num_requests) {
  const auto below = [&](std::int64_t n) {
    return static_cast<std::int64_t>(random() % static_cast<std::uint64_t>(n));
  };
  std::vector<Request> trace;
  std::int32_t next_id = 0;
  while (trace.size() < num_requests) {
    Request request;
    request.output_length = below(60);
    if (!trace.empty() && below(3) > 0) {
      const Request& before = trace[static_cast<std::size_t>(below(std::ssize(trace)))];
      request.hash_ids = before.hash_ids;
      request.input_length = before.input_length;
      if (below(4) > 0) {
        request.hash_ids.resize(
            static_cast<std::size_t>(std::min(below(4), before.input_length / kBlockTokens)));
        request.input_length = 0;
      }
    }
    if (request.input_length == 0) {
      const std::int64_t num_new = 1 + below(2 * kBlockTokens);
      request.input_length = std::ssize(request.hash_ids) * kBlockTokens + num_new;
      while (std::ssize(request.hash_ids) * kBlockTokens < request.input_length) {
        request.hash_ids.push_back(next_id++);
      }
    }
    trace.push_back(request);
  }
  return trace;
}

std::int64_t largest(const std::vector<Request>& trace, int page_size) {
  std::int64_t most = 0;
  for (const Request& request : trace) {
    most = std::max(most, request.input_length + request.output_length);
  }
  return (most + page_size - 1) / page_size;
}

void expect_simulated(const std::vector<Request>& trace, std::int64_t num_pages, int page_size) {
  LruSimulation expected(num_pages, page_size);
  for (const Request& request : trace) expected.run(request);
  ReplayOptions options;
  options.num_pages = num_pages;
  options.page_size = page_size;
  const ReplayResult result = replay(trace, options);
  EXPECT_EQ(result.num_blocks_found, expected.num_blocks_found);
  EXPECT_EQ(result.num_tokens_found, expected.num_tokens_found);
  EXPECT_EQ(result.num_evictions, expected.num_evictions);
  EXPECT_EQ(result.peak_pages, expected.peak_pages);
  EXPECT_EQ(result.num_dropped, 0);
}

TEST(Replay, CountsWhatASmallTraceShows) {
  // A prompt of one block and a bit; its second turn; the first one again; something else.
  const std::vector<Request> trace = {
      {600, 20, {1, 2}}, {1024, 5, {1, 3}}, {600, 1, {1, 2}}, {10, 0, {4}}};
  ReplayOptions options;
  options.num_pages = 1000;
  const ReplayResult result = replay(trace, options);
  EXPECT_EQ(result.num_requests, 4);
  EXPECT_EQ(result.num_blocks, 7);
  EXPECT_EQ(result.num_blocks_found, 3);
  EXPECT_EQ(result.num_tokens, 2234);
  EXPECT_EQ(result.num_tokens_found, 512 + 599);
  EXPECT_EQ(result.num_tokens_generated, 26);
  EXPECT_EQ(result.num_steps, 27);
  EXPECT_EQ(result.num_evictions, 0);
  // 38 pages of the first input, 32 of the second's end, one of the last, and what they generate.
  EXPECT_EQ(result.peak_pages, 38 + 32 + 1);
  EXPECT_EQ(result.peak_pages_in_use, 65);
  EXPECT_EQ(result.samples.size(), 27u);
  for (const Sample& sample : result.samples) {
    EXPECT_EQ(sample.in_use + sample.cached + sample.free, 1000);
  }
  EXPECT_EQ(result.samples.back().in_use, 1);
}

TEST(Replay, FindsEveryBlockThatAnEarlierRequestHad) {
  auto random = testing::random_source(400);
  const auto trace = make_trace(random, 300);
  std::vector<bool> seen(2000);
  std::int64_t num_blocks_found = 0;
  for (const Request& request : trace) {
    bool all_before = true;
    for (const std::int32_t id : request.hash_ids) {
      all_before = all_before && seen[static_cast<std::size_t>(id)];
      // Of a last block of one token nothing but that token, which is left to compute, would tell.
      const bool tells = id != request.hash_ids.back() || request.input_length % kBlockTokens != 1;
      num_blocks_found += all_before && tells;
    }
    for (const std::int32_t id : request.hash_ids) seen[static_cast<std::size_t>(id)] = true;
  }
  for (const int page_size : {1, 16, 100, 512}) {
    ReplayOptions options;
    options.page_size = page_size;
    EXPECT_EQ(replay(trace, options).num_blocks_found, num_blocks_found) << page_size;
    options.cache_output = true;
    EXPECT_EQ(replay(trace, options).num_blocks_found, num_blocks_found) << page_size;
  }
}

TEST(Replay, EqualsAnLruSimulationOnPoolsOfEverySize) {
  auto random = testing::random_source(401);
  for (int run = 0; run < 20; ++run) {
    const auto trace = make_trace(random, 150);
    for (const int page_size : {8, 16, 64, 512}) {
      const std::int64_t least = largest(trace, page_size) + 1;
      for (const std::int64_t factor : {1, 2, 5, 20}) {
        expect_simulated(trace, least * factor, page_size);
        if (HasFailure()) FAIL() << "run " << run << ", page size " << page_size << ", " << factor;
      }
    }
  }
}

TEST(Replay, RequestsSideBySideShareAPoolThatIsShort) {
  auto random = testing::random_source(402);
  const auto trace = make_trace(random, 200);
  std::int64_t num_refused = 0, num_preempted = 0, num_generated = 0, num_tokens = 0;
  for (const Request& request : trace) {
    num_generated += request.output_length;
    num_tokens += request.input_length;
  }
  for (const Policy policy : {Policy::kLru, Policy::kReuse, Policy::kNone}) {
    for (const std::int64_t concurrency : {2, 7, 50}) {
      ReplayOptions options;
      options.num_pages = largest(trace, options.page_size) + 1;
      options.policy = policy;
      options.concurrency = concurrency;
      std::int64_t last_ended = 0;
      const ReplayResult result = replay(trace, options, [&](std::int64_t n) { last_ended = n; });
      EXPECT_EQ(last_ended, std::ssize(trace));
      EXPECT_EQ(result.num_tokens, num_tokens);
      // Those that are preempted generate their tokens again.
      EXPECT_GE(result.num_tokens_generated, num_generated);
      EXPECT_LE(result.peak_pages, options.num_pages);
      EXPECT_EQ(result.num_dropped, 0);
      EXPECT_EQ(result.num_blocks_found > 0, policy != Policy::kNone);
      if (policy == Policy::kNone) {
        EXPECT_EQ(result.peak_pages, result.peak_pages_in_use);
      }
      num_refused += result.num_refused;
      num_preempted += result.num_preempted;
    }
  }
  EXPECT_GT(num_refused, 0);
  EXPECT_GT(num_preempted, 0);
}

// An unlimited pool is as large as any trace can need: nothing waits, nothing is evicted.
TEST(Replay, AnUnlimitedPoolIsNeverShort) {
  auto random = testing::random_source(403);
  for (int run = 0; run < 5; ++run) {
    const auto trace = make_trace(random, 60);
    for (const int page_size : {1, 16, 24, 513}) {
      for (const std::int64_t concurrency : {1, 5, 1000}) {
        for (const bool cache_output : {false, true}) {
          ReplayOptions options{.num_pages = 0,
                                .page_size = page_size,
                                .policy = Policy::kLru,
                                .concurrency = concurrency,
                                .cache_output = cache_output};
          const ReplayResult result = replay(trace, options);
          EXPECT_EQ(result.num_evictions + result.num_refused + result.num_preempted, 0);
          options.num_pages = 2'000'000 / page_size;
          const ReplayResult large = replay(trace, options);
          EXPECT_EQ(result.num_tokens_found, large.num_tokens_found);
          EXPECT_EQ(result.peak_pages, large.peak_pages);
          if (HasFailure()) FAIL() << "run " << run << ", page size " << page_size;
        }
      }
    }
  }
}

TEST(Replay, ARequestLargerThanThePoolIsDropped) {
  ReplayOptions options;
  options.num_pages = 4;
  const ReplayResult result = replay({{64, 1, {1}}, {64, 0, {2}}, {60, 4, {3}}}, options);
  EXPECT_EQ(result.num_dropped, 1);
  EXPECT_EQ(result.num_blocks, 2);
  EXPECT_EQ(result.peak_pages, 4);
  EXPECT_EQ(result.num_steps, 5);
}

TEST(Replay, WhereEveryRequestIsDroppedThereIsNoStep) {
  ReplayOptions options;
  options.num_pages = 4;
  std::vector<Request> trace = {{65, 1, {1}}, {400, 0, {2}}};
  std::int64_t num_ended = 0;
  ReplayResult result = replay(trace, options, [&](std::int64_t n) { num_ended = n; });
  EXPECT_EQ(result.num_dropped, 2);
  EXPECT_EQ(num_ended, 2);
  EXPECT_EQ(result.num_steps, 0);
  EXPECT_TRUE(result.samples.empty());
  trace.insert(trace.begin(), {10, 3, {5}});  // nor behind the last one that runs
  result = replay(trace, options);
  EXPECT_EQ(result.num_steps, 3);
  EXPECT_EQ(result.num_dropped, 2);
}

// A copy of the page that is found in part would take one page too many.
TEST(Replay, ARequestThatJustFitsTakesWhatTheCacheHas) {
  ReplayOptions options;
  options.num_pages = 4;
  const ReplayResult result = replay({{60, 4, {1}}, {60, 4, {1}}}, options);
  EXPECT_EQ(result.num_dropped, 0);
  EXPECT_EQ(result.num_blocks_found, 1);
  EXPECT_EQ(result.num_tokens_found, 59);
  EXPECT_EQ(result.num_tokens_generated, 8);
}

TEST(Replay, PolicyReuseKeepsWhatWasFoundOnce) {
  std::vector<Request> trace = {{512, 1, {1}}, {513, 1, {1, 2}}};
  for (std::int32_t id = 10; id < 30; ++id) trace.push_back({512, 1, {id}});
  trace.push_back({513, 1, {1, 3}});
  ReplayOptions options;
  options.num_pages = 200;
  EXPECT_EQ(replay(trace, options).num_blocks_found, 1);
  options.policy = Policy::kReuse;
  EXPECT_EQ(replay(trace, options).num_blocks_found, 2);
}

TEST(Replay, RefusesOptionsThatMakeNoSense) {
  ReplayOptions options;
  options.concurrency = 0;
  EXPECT_THROW(replay({}, options), InvalidArgumentError);
  options.concurrency = 1;
  options.page_size = 0;
  EXPECT_THROW(replay({}, options), InvalidArgumentError);
  options.page_size = 16;
  EXPECT_EQ(replay({}, options).num_steps, 0);
}

TEST(Replay, AnUnlimitedPoolBeyondWhatAPoolCanHaveIsRefused) {
  const std::vector<Request> trace = {{5, 2'147'483'647, {1}}};
  try {
    replay(trace, {.page_size = 1});
    FAIL() << "expected an error";
  } catch (const InvalidArgumentError& error) {
    EXPECT_NE(std::string(error.what()).find("a pool has at most 2147483647"), std::string::npos);
  }
}

TEST(Samples, StayFewAndEvenlySpaced) {
  Samples samples;
  for (std::int64_t step = 0; step < 1'000'000; ++step) samples.add({step, 1, 2, 3});
  const auto& list = samples.list();
  ASSERT_GT(list.size(), Samples::kMost / 4);
  ASSERT_LT(list.size(), Samples::kMost);
  for (std::size_t i = 1; i < list.size(); ++i) {
    ASSERT_EQ(list[i].step, list[1].step * static_cast<std::int64_t>(i));
  }
}

}  // namespace
}  // namespace seqattn::cli
