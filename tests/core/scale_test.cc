#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <numeric>
#include <vector>

#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/page_pool.h"
#include "seqattn/prefix_cache.h"

// 10 million pages and 100,000 live sequences are ordinary. The bounds on time are far above what
// any machine takes, with sanitizers too, and far below what anything quadratic would take.
namespace seqattn {
namespace {

constexpr std::int64_t kNumPages = 10'000'000, kNumSequences = 100'000;
constexpr int kPageSize = 16;
constexpr std::int64_t kPagesEach = kNumPages / kNumSequences;

class Scale : public ::testing::Test {
 protected:
  void TearDown() override {
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start_;
    EXPECT_LT(taken.count(), 60);
  }

  // All but one slot of each sequence's last page: the whole pool.
  void fill() {
    std::iota(ids_.begin(), ids_.end(), SeqId{1} << 40);
    const std::vector<std::int64_t> lengths(ids_.size(), kPagesEach * kPageSize - 1);
    descriptor_.allocate(ids_, lengths);
    ASSERT_EQ(pool_.available_pages_count(), 0);
  }

  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  PagePool pool_{kNumPages, kPageSize};
  CacheDescriptor descriptor_{pool_};
  std::vector<SeqId> ids_ = std::vector<SeqId>(kNumSequences);
};

TEST_F(Scale, SequencesGrowAreCountedAndGo) {
  fill();
  const Stats stats = descriptor_.stats();
  EXPECT_EQ(stats.num_sequences, kNumSequences);
  EXPECT_EQ(stats.num_pages, kNumPages);
  EXPECT_EQ(stats.num_tokens, kNumPages * kPageSize - kNumSequences);
  descriptor_.check_invariants();
  descriptor_.allocate_decoding(ids_);
  EXPECT_EQ(descriptor_.length(ids_.back()), kPagesEach * kPageSize);
  EXPECT_THROW(descriptor_.allocate_decoding(ids_), NoPageError);
  EXPECT_EQ(descriptor_.length(ids_.front()), kPagesEach * kPageSize);
  EXPECT_EQ(descriptor_.release(ids_), kNumSequences);
  EXPECT_EQ(pool_.available_pages_count(), kNumPages);
  descriptor_.check_invariants();
}

TEST_F(Scale, ABatchOfAllPagesPacks) {
  fill();
  const auto packed = descriptor_.pack_for_flashinfer(ids_);
  EXPECT_EQ(packed.batch_size(), kNumSequences);
  EXPECT_EQ(packed.kv_page_indptr().back(), kNumPages);
  EXPECT_EQ(packed.kv_page_indices()[kNumPages - 1], kNumPages - 1);
  EXPECT_EQ(packed.kv_len(kNumSequences - 1, kPageSize), kPagesEach * kPageSize - 1);
}

// A shared prompt, then steps of one token for everybody: one copy each, at the first step.
TEST_F(Scale, ForksOfOnePromptDecodeSideBySide) {
  descriptor_.allocate({-1}, {100'005});
  for (SeqId id = 0; id < kNumSequences; ++id) descriptor_.fork(-1, id, 20);
  EXPECT_EQ(pool_.ref_count(1), kNumSequences + 1);
  std::iota(ids_.begin(), ids_.end(), SeqId{0});
  const auto copies = descriptor_.allocate_decoding(ids_);
  EXPECT_EQ(static_cast<std::int64_t>(copies.size()), kNumSequences);
  for (int step = 0; step < 20; ++step) EXPECT_TRUE(descriptor_.allocate_decoding(ids_).empty());
  EXPECT_EQ(descriptor_.stats().num_shared_pages, 1);
  descriptor_.check_invariants();
  descriptor_.clear();
  EXPECT_EQ(pool_.available_pages_count(), kNumPages);
}

TEST_F(Scale, PagesGoBackAndForth) {
  for (int round = 0; round < 3; ++round) {
    const auto pages = pool_.allocate(kNumPages - 1);
    pool_.ref(pages);
    pool_.unref(pages);
    pool_.unref(pages);
  }
  pool_.check_invariants();
  EXPECT_EQ(pool_.available_pages_count(), kNumPages);
}

// A million cached pages, 100,000 prompts that have nothing in common: found, and given up for
// sequences a few pages at a time, while 10,000 prompts are in use.
TEST_F(Scale, APrefixCacheFillsIsSearchedAndGivesUp) {
  constexpr std::int64_t kCachedPages = 1'000'000, kNumPrompts = 100'000, kNumInUse = 10'000;
  constexpr std::int64_t kPromptPages = kCachedPages / kNumPrompts;
  PagePool pool(kCachedPages, kPageSize);
  CacheDescriptor sequences(pool);
  PrefixCache cache(pool);
  std::vector<TokenId> prompt(kPromptPages * kPageSize);
  const auto make_prompt = [&](std::int64_t i) { prompt.assign(prompt.size(), TokenId(i)); };
  for (std::int64_t i = 0; i < kNumPrompts; ++i) {
    make_prompt(i);
    sequences.allocate({i}, {kPromptPages * kPageSize});
    EXPECT_EQ(cache.insert(sequences, i, prompt), kPromptPages);
    if (i >= kNumInUse) sequences.release({i});
  }
  EXPECT_EQ(pool.available_pages_count(), 0);
  cache.check_invariants();
  for (std::int64_t i = 0; i < kNumPrompts; ++i) {
    make_prompt(i);
    ASSERT_EQ(cache.match(prompt).num_tokens(), kPromptPages * kPageSize - 1);
  }
  for (SeqId id = -1; id >= -100'000; --id) sequences.allocate({id}, {2 * kPageSize});
  EXPECT_EQ(cache.stats().num_pages_evicted, 200'000);
  EXPECT_FALSE(cache.reclaim(kCachedPages - 200'000));
  cache.check_invariants();
}

}  // namespace
}  // namespace seqattn
