#include <gtest/gtest.h>

#include <cstdint>

#include "prefix_requests.h"
#include "random_source.h"

// Random requests, on a pool that is always short, against models that are too simple to be wrong:
// prefixes, batches of growth, windows with sinks, trees of drafts, `keep` and saved states
// together.
namespace seqattn {
namespace {

class PrefixCacheModelTest : public ::testing::TestWithParam<int> {};

TEST_P(PrefixCacheModelTest, AgreesOnRandomRequests) {
  auto random = testing::random_source(300 + static_cast<std::uint64_t>(GetParam()));
  testing::RequestCounts counts;
  testing::SharedRequests shared;
  for (int run = 0; run < 80; ++run) {
    testing::PrefixRequests requests(random, shared, counts);
    for (int step = 0; step < 500; ++step) {
      SCOPED_TRACE(::testing::Message() << "run " << run << ", step " << step);
      requests.step();
      requests.check();
      if (step % 10 == 0) requests.check_contents();
      if (HasFailure()) return;
    }
  }
  // Whatever can happen has happened, lest the test say less than it seems to.
  EXPECT_GT(counts.found, 4000);
  EXPECT_GT(counts.evicted, 1000);
  EXPECT_GT(counts.reclaimed_by_growth, 250);
  EXPECT_GT(counts.reclaimed_by_keep, 5);
  EXPECT_GT(counts.reclaimed_by_restore, 20);
  EXPECT_GT(counts.no_page, 300);
  EXPECT_GT(counts.refused, 500);
  EXPECT_GT(counts.committed, 200);
  EXPECT_GT(counts.kept, 300);
  EXPECT_GT(counts.dropped_with_sinks, 40);
  EXPECT_GT(counts.restored_elsewhere, 40);
}

INSTANTIATE_TEST_SUITE_P(Shards, PrefixCacheModelTest, ::testing::Range(0, 4));

}  // namespace
}  // namespace seqattn
