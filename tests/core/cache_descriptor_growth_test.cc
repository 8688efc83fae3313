#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "seqattn/cache_descriptor.h"

namespace seqattn {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

TEST(CacheDescriptorGrowth, StartsAndGrowsSequences) {
  PagePool pool(8, 4);
  CacheDescriptor descriptor(pool);
  EXPECT_THAT(descriptor.allocate({7, 9}, {9, 4}), IsEmpty());
  EXPECT_THAT(descriptor.pages(7), ElementsAre(0, 1, 2));
  EXPECT_THAT(descriptor.pages(9), ElementsAre(3));
  descriptor.allocate_decoding({7, 9});
  EXPECT_THAT(descriptor.pages(7), ElementsAre(0, 1, 2));
  EXPECT_THAT(descriptor.pages(9), ElementsAre(3, 4));
  EXPECT_EQ(descriptor.length(7), 10);
  EXPECT_EQ(descriptor.num_kv_tokens(9), 5);
  descriptor.check_invariants();
}

}  // namespace
}  // namespace seqattn
