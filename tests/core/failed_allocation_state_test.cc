#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>
#include <new>
#include <string>
#include <vector>

#include "descriptor_state.h"
#include "failing_allocations.h"
#include "random_source.h"
#include "saved_cache.h"
#include "seqattn/error.h"
#include "seqattn/sequence_state.h"
#include "temporary_folder.h"

// Saving and restoring with every memory allocation failing in turn.
namespace seqattn {
namespace {

using ::seqattn::testing::FailingAllocations;
using ::seqattn::testing::SavedCache;
using ::seqattn::testing::state_of;

constexpr KVCacheConfig kConfig{.num_pages = 12,
                                .page_size = 4,
                                .num_heads = 1,
                                .head_dim = 2,
                                .num_layers = 2,
                                .dtype = DType::kFloat16};

// Calls until no allocation fails any more; returns how many did. `check` looks after each failure.
template <class Call, class Check>
std::int64_t fail_every_allocation(const Call& call, const Check& check) {
  for (std::int64_t n = 1;; ++n) {
    {
      const FailingAllocations failing(n);
      try {
        call();
      } catch (const std::bad_alloc&) {
      } catch (const Error&) {  // with a shortened message where that allocation failed
      }
    }
    if (!FailingAllocations::have_failed()) return n - 1;
    check(n);
    if (::testing::Test::HasFailure()) return n;
  }
}

class FailedAllocationOfState : public ::testing::Test {
 protected:
  FailedAllocationOfState() {
    auto random = testing::random_source(4301);
    cache_.add(random, 1, 10);
    cache_.descriptor.fork(1, 2, 6);
    cache_.manager.unref(cache_.manager.allocate(5));
    state_ = save_sequence(cache_.descriptor, 1);
    held_ = cache_.bits(1);
    before_ = state_of(cache_.descriptor);
  }
  void expect_nothing_changed(std::int64_t n) {
    EXPECT_EQ(state_of(cache_.descriptor), before_) << "allocation " << n;
    EXPECT_EQ(cache_.bits(1), held_) << "allocation " << n;
  }

  SavedCache cache_{kConfig};
  std::vector<std::byte> state_, held_;
  testing::DescriptorState before_;
};

TEST_F(FailedAllocationOfState, RestoreChangesNothing) {
  const auto restore = [&] { restore_sequence(cache_.descriptor, 9, state_); };
  EXPECT_GE(fail_every_allocation(restore, [&](std::int64_t n) { expect_nothing_changed(n); }), 8);
  EXPECT_EQ(cache_.bits(9), held_);
  cache_.descriptor.check_invariants();
}

TEST_F(FailedAllocationOfState, RestoreThatConvertsChangesNothing) {
  KVCacheConfig config = kConfig;
  config.dtype = DType::kBFloat16;
  SavedCache other(config);
  const auto before = state_of(other.descriptor);
  EXPECT_GE(fail_every_allocation([&] { restore_sequence(other.descriptor, 9, state_); },
                                  [&](std::int64_t n) {
                                    EXPECT_EQ(state_of(other.descriptor), before)
                                        << "allocation " << n;
                                  }),
            9);
  EXPECT_EQ(other.descriptor.length(9), 10);
}

TEST_F(FailedAllocationOfState, RestoreThatIsRefusedChangesNothing) {
  state_.back() ^= std::byte{1};
  const auto restore = [&] { restore_sequence(cache_.descriptor, 9, state_); };
  EXPECT_GE(fail_every_allocation(restore, [&](std::int64_t n) { expect_nothing_changed(n); }), 8);
  expect_nothing_changed(0);
}

TEST_F(FailedAllocationOfState, SaveChangesNothing) {
  EXPECT_GE(fail_every_allocation([&] { save_sequence(cache_.descriptor, 1); },
                                  [&](std::int64_t n) { expect_nothing_changed(n); }),
            2);
}

TEST_F(FailedAllocationOfState, SaveLeavesNoFile) {
  const testing::TemporaryFolder folder;
  const std::filesystem::path path = folder.path() / "one.state";
  EXPECT_GE(fail_every_allocation([&] { save_sequence(cache_.descriptor, 1, path); },
                                  [&](std::int64_t n) {
                                    EXPECT_TRUE(std::filesystem::is_empty(folder.path()))
                                        << "allocation " << n;
                                  }),
            5);
  EXPECT_EQ(std::filesystem::file_size(path), state_.size());
}

}  // namespace
}  // namespace seqattn
