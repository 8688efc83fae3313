#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <new>

#include "failed_allocation_world.h"
#include "seqattn/batch_attention.h"

// What failed allocations leave of a plan, an append, a run and a merge.
namespace seqattn {
namespace {

using ::seqattn::testing::expect_all_or_nothing;
using ::seqattn::testing::FailingAllocations;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::World;

TEST(FailedAllocation, OfAttentionsAppendChangesNothing) {
  HostTensor tokens(DType::kFloat32, {2, 1, 2});
  for (std::int64_t i = 0; i < 4; ++i) tokens.set(i, static_cast<float>(i) + 0.5f);
  EXPECT_GE(expect_all_or_nothing([&](World& w) {
              BatchAttention attention(w.manager, {.num_qo_heads = 1, .num_threads = 1});
              attention.plan(w.descriptor.pack_for_flashinfer({1}), {0, 2});
              attention.append_kv(tokens.view(), tokens.view(), 1);
            }),
            6);
}

TEST(FailedAllocation, OfMergeWritesNothing) {
  HostTensor out_a(DType::kFloat32, {2, 1, 2}), lse_a(DType::kFloat32, {2, 1});
  for (std::int64_t i = 0; i < 4; ++i) out_a.set(i, 1);
  for (std::int64_t i = 0; i < 2; ++i) lse_a.set(i, 0);
  const HostTensor out(DType::kFloat32, {2, 1, 2});
  for (std::int64_t n = 1;; ++n) {
    const auto before = testing::bytes_of(out.view());
    bool threw = false;
    {
      const FailingAllocations failing(n);
      try {
        merge_states(out_a.view(), lse_a.view(), out_a.view(), lse_a.view(), out.view());
      } catch (const std::bad_alloc&) {
        threw = true;
      }
    }
    if (!FailingAllocations::have_failed()) break;
    if (threw) {
      EXPECT_EQ(testing::bytes_of(out.view()), before);
    }
  }
  EXPECT_EQ(out.values(), out_a.values());
}

// A plan that fails leaves the one before it in place, good for append and run.
TEST(FailedAllocation, OfPlanKeepsThePreviousPlan) {
  World world;
  BatchAttention attention(world.manager, {.num_qo_heads = 1, .num_threads = 1});
  const auto first = world.descriptor.pack_for_flashinfer({1});
  world.descriptor.allocate_tree(2, {-1, 0});
  world.descriptor.set_window(3, {.window = 2, .num_sink_tokens = 1});
  const auto second = world.descriptor.pack_for_flashinfer({3, 2});
  HostTensor q(DType::kFloat32, {3, 1, 2});
  for (std::int64_t i = 0; i < q.size(); ++i) q.set(i, static_cast<float>(i) * 0.25f);
  const auto result = [&] {
    const HostTensor out(DType::kFloat32, {3, 1, 2});
    attention.run(q.view(), out.view());
    return testing::bytes_of(out.view());
  };
  attention.plan(first, std::array{0, 3});
  const auto expected = result();
  std::int64_t n = 1;
  for (;; ++n) {
    {
      const FailingAllocations failing(n);
      try {
        attention.plan(second, std::array{0, 1, 3});
      } catch (const std::bad_alloc&) {
      }
    }
    if (!FailingAllocations::have_failed()) break;
    ASSERT_EQ(result(), expected) << "allocation " << n;
  }
  EXPECT_GE(n, 5);
  EXPECT_NE(result(), expected);
}

TEST(FailedAllocation, OfRunIsAnExceptionAndNoMore) {
  World world;
  BatchAttention attention(world.manager, {.num_qo_heads = 1, .num_threads = 1});
  attention.plan(world.descriptor.pack_for_flashinfer({1}), std::array{0, 3});
  HostTensor q(DType::kFloat32, {3, 1, 2});
  for (std::int64_t i = 0; i < q.size(); ++i) q.set(i, 0.5f);
  std::int64_t n = 1;
  for (;; ++n) {
    const HostTensor out(DType::kFloat32, {3, 1, 2});
    bool threw = false;
    {
      const FailingAllocations failing(n);
      try {
        attention.run(q.view(), out.view());
      } catch (const std::bad_alloc&) {
        threw = true;
      }
    }
    EXPECT_EQ(threw, FailingAllocations::have_failed());
    if (!threw) break;
  }
  EXPECT_GE(n, 2);
}

}  // namespace
}  // namespace seqattn
