#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <utility>
#include <vector>

#include "descriptor_state.h"
#include "grow_transaction.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/page_pool.h"

// Growths of several descriptors that commit together or not at all.
namespace seqattn {
namespace {

using ::seqattn::testing::state_of;
using ::testing::ElementsAre;

class JointGrowth : public ::testing::Test {
 protected:
  JointGrowth() {
    a_.allocate({1}, {5});  // pages 0 1
    b_.attach(1, a_.pages(1), 5);
    far_.allocate({1}, {3});
  }
  // Of sequences 1 and 2.
  GrowTransaction growth(CacheDescriptor& descriptor, std::vector<std::int64_t> lengths) {
    lengths_.push_back(std::move(lengths));
    return GrowTransaction::by_lengths(descriptor, ids_, lengths_.back());
  }
  void check_invariants() {
    for (CacheDescriptor* descriptor : {&a_, &b_, &far_}) descriptor->check_invariants();
    for (PageId page = 0; page < pool_.num_pages(); ++page) {
      std::int32_t holders = 0;
      for (const CacheDescriptor* descriptor : {&a_, &b_}) {
        for (const SeqId id : descriptor->seq_ids()) {
          for (const PageId held : descriptor->pages(id)) holders += held == page ? 1 : 0;
        }
      }
      EXPECT_EQ(pool_.ref_count(page), holders + num_cached(page)) << page;
    }
  }
  virtual std::int32_t num_cached(PageId) const { return 0; }

  const std::vector<SeqId> ids_{1, 2};
  std::deque<std::vector<std::int64_t>> lengths_;  // which growths borrow
  PagePool pool_{8, 4}, other_pool_{4, 4};
  CacheDescriptor a_{pool_}, b_{pool_}, far_{other_pool_};
};

TEST_F(JointGrowth, OfOnePoolTakesPagesApart) {
  {
    auto of_a = growth(a_, {0, 8});
    auto of_b = growth(b_, {0, 7});
    ASSERT_TRUE(of_a.prepare({}) && of_b.prepare({}));
    of_a.commit();
    of_b.commit();
  }
  EXPECT_THAT(a_.pages(2), ElementsAre(2, 3));
  EXPECT_THAT(b_.pages(2), ElementsAre(4, 5));
  check_invariants();
}

TEST_F(JointGrowth, OfSeveralPoolsCommits) {
  {
    auto of_a = growth(a_, {0, 8});
    auto of_far = growth(far_, {3, 1});
    ASSERT_TRUE(of_a.prepare({}) && of_far.prepare({}));
    of_a.commit();
    of_far.commit();
  }
  EXPECT_THAT(a_.pages(2), ElementsAre(2, 3));
  EXPECT_THAT(far_.pages(1), ElementsAre(0, 1));
  check_invariants();
}

// The page that both give up is copied for both, and free at the end.
TEST_F(JointGrowth, CopiesAPageThatTwoOfThemShare) {
  {
    auto of_a = growth(a_, {1, 0});
    auto of_b = growth(b_, {1, 0});
    ASSERT_TRUE(of_a.prepare({}) && of_b.prepare({}));
    EXPECT_EQ(pool_.ref_count(1), 2);  // until the commit
    of_a.commit();
    of_b.commit();
    EXPECT_THAT(of_a.take_copies(), ElementsAre(PageCopy{1, 2}));
    EXPECT_THAT(of_b.take_copies(), ElementsAre(PageCopy{1, 3}));
  }
  EXPECT_EQ(pool_.ref_count(1), 0);
  check_invariants();
}

TEST_F(JointGrowth, ThatCannotBePreparedChangesNothing) {
  const auto before_a = state_of(a_), before_b = state_of(b_), before_far = state_of(far_);
  {
    auto of_far = growth(far_, {3, 1});
    auto of_a = growth(a_, {1, 8});
    auto of_b = growth(b_, {1, 16});
    EXPECT_TRUE(of_far.prepare({}) && of_a.prepare({}));
    EXPECT_FALSE(of_b.prepare({}));
    EXPECT_EQ(of_b.needed(), 5);
    EXPECT_EQ(of_b.available(), 3);
  }
  EXPECT_EQ(state_of(a_), before_a);
  EXPECT_EQ(state_of(b_), before_b);
  EXPECT_EQ(state_of(far_), before_far);
  check_invariants();
}

TEST_F(JointGrowth, ThatIsNeverPreparedChangesNothing) {
  const auto before = state_of(a_);
  {
    auto of_a = growth(a_, {1, 8});
    auto of_b = growth(b_, {1, 16});
    EXPECT_TRUE(of_a.prepare({}));
  }
  EXPECT_EQ(state_of(a_), before);
  check_invariants();
}

// A reclaimer that holds the last page of both, and pages of its own.
class JointGrowthWithReclaimer : public JointGrowth, public Reclaimer {
 protected:
  JointGrowthWithReclaimer() : cached_(pool_.allocate(3)) {  // 2 3 4: three pages stay free
    b_.release({1});
    pool_.ref({1});
    cached_.push_back(1);
    pool_.set_reclaimer(this);
  }
  bool reclaim(std::int64_t) override {
    pool_.unref(cached_);
    cached_.clear();
    return true;
  }
  std::int32_t num_cached(PageId page) const override {
    return static_cast<std::int32_t>(std::count(cached_.begin(), cached_.end(), page));
  }
  std::vector<PageId> cached_;
};

TEST_F(JointGrowthWithReclaimer, CommitsWhatItMadeRoomFor) {
  {
    auto of_a = growth(a_, {1, 4});  // a copy of page 1, whose share the reclaimer then drops
    auto of_b = growth(b_, {4, 12});
    ASSERT_TRUE(of_a.prepare({}) && of_b.prepare({}));
    EXPECT_EQ(pool_.ref_count(1), 1);
    of_a.commit();
    of_b.commit();
  }
  EXPECT_THAT(a_.pages(1), ElementsAre(0, 5));
  EXPECT_EQ(pool_.free_pages(), std::vector<PageId>{1});
  check_invariants();
}

TEST_F(JointGrowthWithReclaimer, ThatStillFailsChangesNoSequence) {
  const auto before = state_of(a_).sequences;
  {
    auto of_a = growth(a_, {1, 4});
    auto of_b = growth(b_, {4, 20});
    EXPECT_TRUE(of_a.prepare({}));
    EXPECT_FALSE(of_b.prepare({}));
  }
  EXPECT_EQ(state_of(a_).sequences, before);
  EXPECT_EQ(b_.num_sequences(), 0);
  EXPECT_EQ(pool_.free_pages(), (std::vector<PageId>{5, 6, 7, 2, 3, 4}));
  check_invariants();
}

}  // namespace
}  // namespace seqattn
