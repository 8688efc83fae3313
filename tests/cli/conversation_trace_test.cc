#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <string>

#include "lru_simulation.h"
#include "replay.h"

// A published trace of 12,031 requests, which is no part of the project: where it lies beside the
// checkout it has to give the figures that are known of it.
namespace seqattn::cli {
namespace {

using testing::LruSimulation;

class ConversationTrace : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string path = SEQATTN_SHARED_DATA "/conversation_trace.jsonl";
    std::ifstream in(path);
    if (!in) GTEST_SKIP() << path << " is not here";
    requests_ = read_trace(in, [](std::int64_t line, const std::string& what) {
      ADD_FAILURE() << line << ": " << what;
    });
    ASSERT_EQ(requests_.size(), 12'031u);
  }
  std::vector<Request> requests_;
};

TEST_F(ConversationTrace, IsFoundAsFarAsItRepeatsItself) {
  const std::clock_t start = std::clock();
  const ReplayResult result = replay(requests_, {});
  [[maybe_unused]] const double seconds =
      static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  EXPECT_EQ(result.num_blocks, 288'500);
  EXPECT_EQ(result.num_blocks_found, 105'710);
  EXPECT_NEAR(static_cast<double>(result.num_tokens_found) / static_cast<double>(result.num_tokens),
              0.3736, 0.001);
#ifndef SEQATTN_SANITIZE
  EXPECT_LT(seconds, 15);
#endif
}

TEST_F(ConversationTrace, EqualsAnLruSimulationWhereThePoolIsShort) {
  const std::int64_t num_pages = replay(requests_, {}).peak_pages;
  for (const std::int64_t percent : {10, 30}) {
    ReplayOptions options;
    options.num_pages = num_pages * percent / 100;
    LruSimulation expected(options.num_pages, options.page_size);
    for (const Request& request : requests_) expected.run(request);
    const ReplayResult result = replay(requests_, options);
    EXPECT_EQ(result.num_blocks_found, expected.num_blocks_found) << percent;
    EXPECT_EQ(result.num_tokens_found, expected.num_tokens_found) << percent;
    EXPECT_EQ(result.num_evictions, expected.num_evictions) << percent;
    EXPECT_EQ(result.peak_pages, options.num_pages) << percent;
    EXPECT_GT(result.num_evictions, 0);
    EXPECT_LT(result.num_blocks_found, 105'710);
  }
}

}  // namespace
}  // namespace seqattn::cli
