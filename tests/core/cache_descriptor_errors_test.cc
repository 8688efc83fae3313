#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "host_tensor.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// Errors in mid-batch: after other ids have grown, begun and given up shared pages.
namespace seqattn {
namespace {

using ::seqattn::testing::bytes_of;
using ::seqattn::testing::error_of;
using ::seqattn::testing::state_of;

constexpr std::int64_t kMost = std::int64_t{1} << 62;

class BatchErrors : public ::testing::Test {
 protected:
  BatchErrors() {
    descriptor_.allocate({1, 2}, {6, 4});
    descriptor_.fork(1, 3);
    for (const TensorView& cache : {manager_.key_cache(), manager_.value_cache()}) {
      auto* const data = static_cast<std::byte*>(cache.data);
      for (std::int64_t i = 0; i < cache.num_elements() * 2; ++i) data[i] = std::byte(i * 31 + 7);
    }
  }

  // The message of the error that the call throws, having changed not even storage.
  template <class Exception = InvalidArgumentError, class Call>
  std::string refusal(const Call& call) {
    const auto before = state_of(descriptor_);
    const auto keys = bytes_of(manager_.key_cache()), values = bytes_of(manager_.value_cache());
    const std::string message = error_of<Exception>(call);
    EXPECT_EQ(state_of(descriptor_), before);
    EXPECT_EQ(bytes_of(manager_.key_cache()), keys);
    EXPECT_EQ(bytes_of(manager_.value_cache()), values);
    descriptor_.check_invariants();
    return message;
  }

  PagedKVCacheManager manager_{{.num_pages = 8, .page_size = 4, .num_heads = 1, .head_dim = 4}};
  CacheDescriptor descriptor_{manager_};
};

TEST_F(BatchErrors, AllocateRefusesListsOfDifferentSizes) {
  EXPECT_EQ(refusal([&] {
              descriptor_.allocate({1, 2}, {1});
            }),
            "seq_new_lens: got 1 lengths for 2 sequence ids; expected one for each");
  EXPECT_EQ(refusal([&] { descriptor_.allocate({}, {1}); }),
            "seq_new_lens: got 1 lengths for 0 sequence ids; expected one for each");
  EXPECT_EQ(refusal([&] { descriptor_.try_allocate({1}, {}); }),
            "seq_new_lens: got 0 lengths for 1 sequence ids; expected one for each");
}

TEST_F(BatchErrors, AllocateRefusesNegativeLengths) {
  EXPECT_EQ(refusal([&] {
              descriptor_.allocate({1, 9, 3, 2}, {1, 5, 1, -5});
            }),
            "seq_new_lens: got -5 for sequence 2; expected at least 0");
  EXPECT_EQ(refusal([&] {
              descriptor_.try_allocate({1, 9}, {1, std::numeric_limits<std::int64_t>::min()});
            }),
            "seq_new_lens: got -9223372036854775808 for sequence 9; expected at least 0");
}

TEST_F(BatchErrors, AllocateRefusesLengthsPastItsLimit) {
  EXPECT_EQ(refusal([&] {
              descriptor_.allocate({1, 2}, {1, kMost - 3});
            }),
            "seq_new_lens: got 4611686018427387901 for sequence 2 of length 4; expected a total of "
            "at most 2^62");
  EXPECT_EQ(refusal([&] {
              descriptor_.allocate({3, 9, 9}, {1, kMost, 1});
            }),
            "seq_new_lens: got 1 for sequence 9 of length 4611686018427387904; expected a total of "
            "at most 2^62");
  EXPECT_EQ(refusal([&] { descriptor_.allocate({9}, {std::numeric_limits<std::int64_t>::max()}); }),
            "seq_new_lens: got 9223372036854775807 for sequence 9 of length 0; expected a total of "
            "at most 2^62");
}

// An error of the arguments comes before the news that the pool is full.
TEST_F(BatchErrors, AFullPoolDoesNotHideAWrongArgument) {
  EXPECT_EQ(refusal([&] {
              descriptor_.allocate({1, 3, 9, 2}, {1, 1, 100, -1});
            }),
            "seq_new_lens: got -1 for sequence 2; expected at least 0");
  descriptor_.allocate({8}, {20});
  EXPECT_EQ(refusal<UnknownSequenceError>([&] {
              descriptor_.allocate_decoding({1, 2, 77});
            }),
            "Sequence ID 77 not found in cache descriptor");
}

TEST_F(BatchErrors, DecodingRefusesUnknownIds) {
  EXPECT_EQ(refusal<UnknownSequenceError>([&] {
              descriptor_.allocate_decoding({1, 2, -7, 3});
            }),
            "Sequence ID -7 not found in cache descriptor");
  try {
    descriptor_.allocate_decoding({2, 41, 42});
    FAIL();
  } catch (const UnknownSequenceError& error) {
    EXPECT_EQ(error.seq_id(), 41);
  }
}

TEST_F(BatchErrors, AFullPoolLeavesSharesCopiesAndNewSequencesUndone) {
  refusal<NoPageError>([&] { descriptor_.allocate({1, 9, 3, 10}, {2, 4, 9, 8}); });
  EXPECT_FALSE(descriptor_.contains(9));
  EXPECT_FALSE(descriptor_.try_allocate({1, 9, 3, 10}, {2, 4, 9, 8}));
  EXPECT_FALSE(descriptor_.contains(9));
}

// After any error the same batch, put right, does what it would have done before.
TEST_F(BatchErrors, TheCorrectedBatchGetsThePagesItWouldHaveGot) {
  refusal([&] { descriptor_.allocate({3, 2, 9}, {1, 1, -1}); });
  const auto copies = descriptor_.allocate({3, 2, 9}, {1, 1, 1});
  EXPECT_EQ(copies, (std::vector<PageCopy>{{1, 3}}));
  EXPECT_EQ(descriptor_.sequence(3).kv_page_indices, (std::vector<PageId>{0, 3}));
  EXPECT_EQ(descriptor_.sequence(2).kv_page_indices, (std::vector<PageId>{2, 4}));
  EXPECT_EQ(descriptor_.sequence(9).kv_page_indices, (std::vector<PageId>{5}));
}

}  // namespace
}  // namespace seqattn
