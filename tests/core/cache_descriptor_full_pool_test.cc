#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <numeric>
#include <utility>
#include <vector>

#include "descriptor_state.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

// What happens when the pool falls short: as an exception, as a value, and with a reclaimer.
namespace seqattn {
namespace {

using ::seqattn::testing::state_of;
using ::testing::ElementsAre;
using ::testing::IsEmpty;

constexpr std::int64_t kMostTokens = std::int64_t{1} << 62;

class FullPool : public ::testing::Test {
 protected:
  FullPool() { descriptor_.allocate({1, 2}, {8, 3}); }

  // The call throws NoPageError with these numbers and changes nothing.
  void expect_full(std::int64_t needed, std::int64_t available, const std::function<void()>& call) {
    const auto before = state_of(descriptor_);
    try {
      call();
      ADD_FAILURE() << "threw nothing";
    } catch (const NoPageError& error) {
      EXPECT_EQ(error.needed(), needed);
      EXPECT_EQ(error.available(), available);
    }
    EXPECT_EQ(state_of(descriptor_), before);
  }

  PagePool pool_{4, 4};
  CacheDescriptor descriptor_{pool_};
};

TEST_F(FullPool, AllocateSaysWhatTheWholeBatchNeeds) {
  expect_full(2, 1, [&] { descriptor_.allocate({1, 3}, {2, 1}); });
  expect_full(4, 1, [&] { descriptor_.allocate({3, 2, 4}, {5, 4, 1}); });
  expect_full(2, 1, [&] { descriptor_.allocate({2, 2, 2}, {1, 4, 4}); });
}

TEST_F(FullPool, DecodingSaysWhatTheWholeBatchNeeds) {
  descriptor_.allocate({2, 3}, {1, 4});
  expect_full(3, 0, [&] { descriptor_.allocate_decoding({1, 2, 3}); });
}

TEST_F(FullPool, NewSequencesOfTheBatchDoNotStay) {
  expect_full(2, 1, [&] { descriptor_.allocate({5, 6, 7}, {0, 4, 4}); });
  EXPECT_FALSE(descriptor_.contains(5));
}

TEST_F(FullPool, SharesAreNotGivenUp) {
  descriptor_.fork(2, 3);
  descriptor_.allocate({4}, {1});
  expect_full(1, 0, [&] { descriptor_.allocate_decoding({2, 3}); });
  EXPECT_EQ(pool_.ref_count(2), 2);
}

TEST_F(FullPool, TryAllocateGivesTheSameAsAValue) {
  const auto before = state_of(descriptor_);
  const Admission full = descriptor_.try_allocate({1, 3}, {2, 1});
  EXPECT_FALSE(full.ok);
  EXPECT_FALSE(full);
  EXPECT_EQ(full.needed, 2);
  EXPECT_EQ(full.available, 1);
  EXPECT_THAT(full.copies, IsEmpty());
  EXPECT_EQ(state_of(descriptor_), before);
}

TEST_F(FullPool, TryAllocateSaysWhatItTook) {
  descriptor_.fork(2, 3);
  const Admission admission = descriptor_.try_allocate({3}, {1});
  EXPECT_TRUE(admission.ok);
  EXPECT_EQ(admission.needed, 1);
  EXPECT_EQ(admission.available, 1);
  EXPECT_THAT(admission.copies, ElementsAre(PageCopy{2, 3}));
  EXPECT_EQ(descriptor_.length(3), 4);
}

TEST_F(FullPool, TryAllocateThrowsOtherErrors) {
  EXPECT_THROW(descriptor_.try_allocate({1}, {-1}), InvalidArgumentError);
  EXPECT_THROW(descriptor_.try_allocate({1}, {1, 2}), InvalidArgumentError);
}

TEST_F(FullPool, LengthsBeyondAnyPoolAreOnlyCounted) {
  expect_full(kMostTokens / 4, 1, [&] { descriptor_.allocate({9}, {kMostTokens}); });
  expect_full(kMostTokens / 2, 1, [&] {
    descriptor_.allocate({9, 8}, {kMostTokens, kMostTokens});
  });
  // Sums past 2^62 pages are not counted on.
  const std::vector<SeqId> ids = {3, 4, 5, 6, 7, 8};
  expect_full(kMostTokens, 1,
              [&] { descriptor_.allocate(ids, std::vector<std::int64_t>(6, kMostTokens)); });
}

// Gives up pages of a list that it holds, from its front, when that frees enough.
class HoldingReclaimer : public Reclaimer {
 public:
  explicit HoldingReclaimer(PagePool& pool) : pool_(pool) { pool.set_reclaimer(this); }
  ~HoldingReclaimer() override { pool_.set_reclaimer(nullptr); }

  bool reclaim(std::int64_t num_pages) override {
    asked.push_back(num_pages);
    if (num_pages > static_cast<std::int64_t>(held.size())) return lie_;
    const auto count = static_cast<std::size_t>(num_pages);
    pool_.unref(std::span(held).first(count));
    held.erase(held.begin(), held.begin() + num_pages);
    return true;
  }
  void always_say_yes() { lie_ = true; }

  std::vector<PageId> held;
  std::vector<std::int64_t> asked;

 private:
  PagePool& pool_;
  bool lie_ = false;
};

TEST_F(FullPool, TheReclaimerIsAskedForWhatIsMissing) {
  HoldingReclaimer reclaimer(pool_);
  reclaimer.held = pool_.allocate(1);
  descriptor_.allocate_decoding({2});
  EXPECT_THAT(reclaimer.asked, IsEmpty());
  descriptor_.allocate_decoding({2});
  EXPECT_THAT(reclaimer.asked, ElementsAre(1));
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(2, 3));
}

TEST_F(FullPool, AReclaimerWithoutPagesChangesNothing) {
  HoldingReclaimer reclaimer(pool_);
  expect_full(3, 1, [&] { descriptor_.allocate({1, 3}, {1, 8}); });
  EXPECT_THAT(reclaimer.asked, ElementsAre(2));
}

TEST_F(FullPool, AReclaimerThatPromisesTooMuchIsNotBelieved) {
  HoldingReclaimer reclaimer(pool_);
  reclaimer.always_say_yes();
  expect_full(3, 1, [&] { descriptor_.allocate({1, 3}, {1, 8}); });
  const Admission full = descriptor_.try_allocate({1, 3}, {1, 8});
  EXPECT_FALSE(full);
  EXPECT_THROW(pool_.allocate(2), NoPageError);
}

TEST_F(FullPool, NoReclaimerIsAskedForMoreThanThePoolHas) {
  HoldingReclaimer reclaimer(pool_);
  expect_full(5, 1, [&] { descriptor_.allocate({3}, {17}); });
  EXPECT_THAT(reclaimer.asked, IsEmpty());
}

TEST_F(FullPool, NoReclaimerIsAskedForACallThatIsWrong) {
  HoldingReclaimer reclaimer(pool_);
  EXPECT_THROW(descriptor_.allocate({3, 1}, {9, -1}), InvalidArgumentError);
  descriptor_.allocate({4}, {1});
  EXPECT_THROW(descriptor_.allocate_decoding({1, 77}), UnknownSequenceError);
  EXPECT_THAT(reclaimer.asked, IsEmpty());
}

// The reclaimer gives up its share of the page that would have been copied.
TEST_F(FullPool, ACopyThatTheReclaimerMadeUnnecessaryIsNotMade) {
  HoldingReclaimer reclaimer(pool_);
  pool_.ref({2});
  reclaimer.held = {2};
  reclaimer.held.push_back(pool_.allocate(1).front());
  const Admission admission = descriptor_.try_allocate({2, 1}, {1, 1});
  EXPECT_TRUE(admission);
  EXPECT_THAT(reclaimer.asked, ElementsAre(2));
  EXPECT_EQ(admission.needed, 1);
  EXPECT_EQ(admission.available, 1);
  EXPECT_THAT(admission.copies, IsEmpty());
  EXPECT_THAT(descriptor_.pages(2), ElementsAre(2));
  descriptor_.check_invariants();
}

class ThrowingReclaimer : public Reclaimer {
 public:
  bool reclaim(std::int64_t) override { throw BackendError("no"); }
};

TEST_F(FullPool, AnExceptionOfTheReclaimerChangesNothing) {
  ThrowingReclaimer reclaimer;
  pool_.set_reclaimer(&reclaimer);
  descriptor_.fork(2, 3);
  const auto before = state_of(descriptor_);
  EXPECT_THROW(descriptor_.allocate({3, 9}, {1, 4}), BackendError);
  EXPECT_THROW(descriptor_.try_allocate({3, 9}, {1, 4}), BackendError);
  EXPECT_THROW(pool_.allocate(3), BackendError);
  EXPECT_EQ(state_of(descriptor_), before);
}

// What compaction gives up is put back by then, from lists that are still there.
TEST(FullPoolOfOneSequence, AnExceptionOfTheReclaimerChangesNothingInCompaction) {
  for (const std::int64_t num_pages : {2, 4, 8, 64, 1000}) {
    PagePool pool(num_pages, 2);
    CacheDescriptor descriptor(pool);
    descriptor.allocate({1}, {2 * num_pages - 3});
    descriptor.allocate_tree(1, {-1, -1, 1});
    pool.ref(descriptor.pages(1));
    ThrowingReclaimer reclaimer;
    pool.set_reclaimer(&reclaimer);
    const auto before = state_of(descriptor);
    EXPECT_THROW(descriptor.commit_tree(1, {1, 2}), BackendError);
    EXPECT_EQ(state_of(descriptor), before);
    descriptor.truncate(1, descriptor.length(1));
    const auto cut = state_of(descriptor);
    if (descriptor.length(1) < 3) continue;
    std::vector<std::int64_t> kept(static_cast<std::size_t>(descriptor.length(1) - 1));
    std::iota(kept.begin(), kept.end(), 1);
    pool.allocate(pool.available_pages_count());
    EXPECT_THROW(descriptor.keep(1, kept), BackendError);
    EXPECT_EQ(state_of(descriptor).sequences, cut.sequences);
    pool.check_invariants();
  }
}

}  // namespace
}  // namespace seqattn
