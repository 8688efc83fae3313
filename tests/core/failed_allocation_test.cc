#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "failed_allocation_world.h"
#include "seqattn/batch_attention.h"

// Every call with its first memory allocation failing, then with its second, and so on until it has
// no more of them. Each time the whole state has to be what it was before the call, and the same
// call has to work when it is made again.
namespace seqattn {
namespace {

using ::seqattn::testing::expect_all_or_nothing;
using ::seqattn::testing::FailingAllocations;
using ::seqattn::testing::fails_without_a_trace;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::World;

TEST(FailedAllocation, OfAllocateChangesNothing) {
  const auto grow = [](World& w) { w.descriptor.allocate({4, 2, 1, 4, 3}, {5, 1, 7, 4, 1}); };
  EXPECT_GE(expect_all_or_nothing(grow, [](World& w) { w.manager.unref(w.callers); }), 5);
}

TEST(FailedAllocation, OfAllocateThatIsRefusedChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) {
              w.descriptor.allocate({4, 2, 1, 5}, {5, 1, 7, -1});
            }),
            4);
  EXPECT_GE(expect_all_or_nothing([](World& w) {
              w.descriptor.allocate({4, 2, 1}, {5, 1, 99});
            }),
            4);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.allocate({4}, {}); }), 1);
}

// Many new ids: the map of sequences grows in mid-batch.
TEST(FailedAllocation, OfAllocateOfManySequencesChangesNothing) {
  const auto many = [](World& w) {
    std::array<SeqId, 40> ids;
    std::array<std::int64_t, 40> lengths;
    for (int i = 0; i < 40; ++i) {
      ids[i] = 100 + i;
      lengths[i] = i < 4 ? 1 : 0;
    }
    w.descriptor.allocate(ids, lengths);
  };
  EXPECT_GE(expect_all_or_nothing(many), 45);
}

TEST(FailedAllocation, OfTryAllocateChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.try_allocate({4, 2}, {5, 3}); }), 5);
  EXPECT_GE(expect_all_or_nothing([](World& w) {
              EXPECT_FALSE(w.descriptor.try_allocate({4, 2, 1}, {5, 1, 99}));
            }),
            4);
}

TEST(FailedAllocation, OfAllocateDecodingChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) {
              w.descriptor.allocate_decoding({2, 1, 3, 3});
            }),
            4);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.allocate_decoding({2, 3, 77}); }), 3);
}

TEST(FailedAllocation, OfReleaseChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.release({1, 77, 3, 1, 2}); }), 2);
}

// In which order it frees pages is not told, so that it may end in more than one way.
TEST(FailedAllocation, OfClearChangesNothing) {
  std::int64_t n = 1;
  for (;; ++n) {
    World world;
    if (!fails_without_a_trace(
            world, [](World& w) { w.descriptor.clear(); }, n))
      break;
    world.descriptor.clear();
    EXPECT_EQ(world.descriptor.num_sequences(), 0);
    EXPECT_EQ(world.manager.available_pages_count(), 8);
    world.descriptor.check_invariants();
  }
  EXPECT_GE(n, 3);
}

TEST(FailedAllocation, OfReleaseThatIsRefusedChangesNothing) {
  EXPECT_GE(expect_all_or_nothing(
                [](World& w) {
                  w.descriptor.release({2, 1, 3});
                },
                [](World& w) { w.manager.unref({w.descriptor.pages(1)[2]}); }),
            3);
}

TEST(FailedAllocation, OfForkChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.fork(1, 4, 7); }), 2);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.fork(1, 3); }), 2);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.fork(1, 4, 11); }), 1);
}

TEST(FailedAllocation, OfAttachChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.attach(4, w.callers, 10); }), 2);
  EXPECT_GE(expect_all_or_nothing([](World& w) {
              const PageId free_page = w.manager.pool().num_pages() - 1;
              ASSERT_EQ(w.manager.ref_count(free_page), 0);
              w.descriptor.attach(4, {w.callers[0], free_page}, 8);
            }),
            3);
}

TEST(FailedAllocation, OfAdoptChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.adopt(4, w.callers, 10); }), 4);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.adopt(1, w.callers, 10); }), 3);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.adopt(4, w.descriptor.pages(3), 4); },
                                  [](World& w) { w.other.release({1}); }),
            3);
}

TEST(FailedAllocation, OfTruncateChangesNothing) {
  // It allocates nothing but the messages of errors.
  EXPECT_EQ(expect_all_or_nothing([](World& w) { w.descriptor.truncate(1, 3); }), 0);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.truncate(1, 11); }), 1);
}

// A window leaves pages behind, own ones and a shared one; the pool is full.
void make_windows(World& w) {
  w.descriptor.set_window(1, {.window = 3, .num_sink_tokens = 0});
  w.descriptor.set_window(2, {.window = 1, .num_sink_tokens = 1});
  w.descriptor.allocate({9}, {4 * w.manager.available_pages_count()});
}

TEST(FailedAllocation, OfGrowthWithWindowsChangesNothing) {
  EXPECT_GE(expect_all_or_nothing(
                [](World& w) {
                  w.descriptor.allocate({1, 2, 1}, {1, 1, 1});
                },
                make_windows),
            4);
  EXPECT_GE(expect_all_or_nothing(
                [](World& w) {
                  w.descriptor.allocate({1, 2, 1}, {1, 9, 1});
                },
                make_windows),
            4);
  EXPECT_EQ(expect_all_or_nothing([](World& w) { w.descriptor.set_window(1, {3, 1}); }), 0);
}

TEST(FailedAllocation, OfTreesChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) {
              w.descriptor.allocate_tree(2, {-1, 0, -1, 2}, 2);
            }),
            4);
  const auto plant = [](World& w) { w.descriptor.allocate_tree(1, {-1, -1, 1, 0, 2}); };
  EXPECT_GE(expect_all_or_nothing(
                [](World& w) {
                  w.descriptor.commit_tree(1, {1, 2, 4});
                },
                plant),
            3);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.commit_tree(1, {0, 2}); }, plant), 1);
  EXPECT_EQ(expect_all_or_nothing([](World& w) { w.descriptor.truncate(1, 10); }, plant), 0);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.pack_for_flashinfer({1}); }, plant),
            5);
}

TEST(FailedAllocation, OfKeepChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.keep(1, {1, 2, 5, 8, 9}); }), 4);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.keep(3, {1, 3}); }), 3);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.keep(1, {3, 3}); }), 1);
}

TEST(FailedAllocation, OfPoolCallsChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.manager.allocate(2); }), 1);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.manager.allocate(9); }), 1);
  EXPECT_EQ(expect_all_or_nothing([](World& w) { w.manager.ref(w.callers); }), 0);
  EXPECT_EQ(expect_all_or_nothing([](World& w) { w.manager.unref(w.callers); }), 0);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.manager.ref({w.callers[0], -1}); }), 1);
  EXPECT_GE(expect_all_or_nothing([](World& w) {
              w.manager.unref({w.callers[0], w.callers[1], w.callers[0]});
            }),
            1);
}

TEST(FailedAllocation, OfViewsChangesNothing) {
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.pack_for_flashinfer({1, 2}); }), 4);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.pack_for_flashinfer({1, 77}); }), 4);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.stats(); }), 1);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.check_invariants(); }), 2);
  EXPECT_GE(expect_all_or_nothing([](World& w) { w.descriptor.to_string(); }), 1);
}

TEST(FailedAllocation, OfAppendReadAndCopyChangesNothing) {
  HostTensor tokens(DType::kFloat32, {2, 1, 2});
  for (std::int64_t i = 0; i < 4; ++i) tokens.set(i, static_cast<float>(i) + 0.5f);
  const FlashInferPackedData foreign({11, 10}, {0, 1, 2}, {3, 2});
  const std::array<std::int32_t, 3> one_each = {0, 1, 2}, wrong = {0, 2, 1};
  EXPECT_GE(expect_all_or_nothing([&](World& w) {
              w.manager.append_kv(tokens.view(), tokens.view(), foreign, one_each, 1);
            }),
            2);
  EXPECT_GE(expect_all_or_nothing([&](World& w) {
              w.manager.append_kv(tokens.view(), tokens.view(), foreign, wrong, 1);
            }),
            1);
  EXPECT_GE(expect_all_or_nothing([&](World& w) {
              w.manager.append_kv(tokens.view(), tokens.view(), foreign, one_each, 2);
            }),
            1);
  // These allocate nothing but the messages of errors.
  EXPECT_EQ(expect_all_or_nothing([&](World& w) {
              w.manager.copy_pages(std::array{PageCopy{w.descriptor.pages(1)[0], w.callers[0]}});
            }),
            0);
  EXPECT_GE(expect_all_or_nothing([&](World& w) {
              w.manager.copy_pages(std::vector<PageCopy>{{0, w.callers[0]}, {0, 12}});
            }),
            2);
}

TEST(FailedAllocation, OfReadChangesNothing) {
  const HostTensor keys(DType::kFloat32, {2, 1, 2}), values(DType::kFloat32, {2, 1, 2});
  EXPECT_EQ(expect_all_or_nothing([&](World& w) {
              w.manager.read_kv(w.callers, 0, 2, keys.view(), values.view(), 1);
            }),
            0);
  EXPECT_GE(expect_all_or_nothing([&](World& w) {
              w.manager.read_kv(w.callers, 0, 3, keys.view(), values.view(), 1);
            }),
            1);
}

// What the reclaimer gave up stays free, but no sequence has changed.
TEST(FailedAllocation, AfterTheReclaimerHelpedLeavesSequencesAlone) {
  class Reclaiming : public Reclaimer {
   public:
    explicit Reclaiming(World& world) : world_(world) {}
    bool reclaim(std::int64_t) override {
      world_.manager.unref(std::exchange(world_.callers, {}));
      return true;
    }

   private:
    World& world_;
  };
  std::int64_t n = 1;
  for (;; ++n) {
    World world;
    Reclaiming reclaimer(world);
    world.manager.pool().set_reclaimer(&reclaimer);
    const auto before = testing::state_of(world.descriptor).sequences;
    {
      const FailingAllocations failing(n);
      try {
        world.descriptor.allocate({2, 4, 5}, {1, 16, 8});
      } catch (const std::bad_alloc&) {
      }
    }
    if (!FailingAllocations::have_failed()) break;
    EXPECT_EQ(testing::state_of(world.descriptor).sequences, before) << "allocation " << n;
    world.descriptor.check_invariants();
    world.descriptor.allocate({2, 4, 5}, {1, 16, 8});
    world.descriptor.check_invariants();
  }
  EXPECT_GE(n, 8);
}

TEST(FailedAllocation, OfConstructorsLeaksNothing) {
  const auto number_of_allocations = [](const auto& construct) {
    std::int64_t n = 1;
    for (;; ++n) {
      const FailingAllocations failing(n);
      try {
        construct();
      } catch (const std::bad_alloc&) {
      }
      if (!FailingAllocations::have_failed()) return n - 1;
    }
  };
  const KVCacheConfig config{.num_pages = 3,
                             .page_size = 4,
                             .num_heads = 1,
                             .head_dim = 2,
                             .num_layers = 3,
                             .dtype = DType::kFloat32};
  EXPECT_GE(number_of_allocations([&] { PagedKVCacheManager manager(config); }), 5);
  const HostTensor a(DType::kFloat32, {3, 4, 1, 2}), b(DType::kFloat32, {3, 4, 1, 2}),
      c(DType::kFloat32, {3, 4, 1, 2});
  const std::array views{a.view(), b.view(), c.view()};
  EXPECT_GE(number_of_allocations([&] { PagedKVCacheManager::from_tensors(views, views, config); }),
            4);
  EXPECT_GE(number_of_allocations([] { PagePool pool(5); }), 2);
  EXPECT_GE(number_of_allocations([] { FlashInferPackedData packed({1, 2}, {0, 2}, {3}); }), 4);
  PagedKVCacheManager manager(config);
  EXPECT_GE(number_of_allocations([&] { BatchAttention attention(manager, {.num_qo_heads = 1}); }),
            1);
}

// A sequence's page was freed by somebody else, and there is no memory to say so.
TEST(FailedAllocation, DoesNotEscapeFromTheDestructor) {
  for (std::int64_t n = 1; n < 6; ++n) {
    PagePool pool(4, 4);
    std::optional<CacheDescriptor> descriptor(pool);
    descriptor->allocate({1, 2}, {4, 4});
    pool.unref({0});
    const FailingAllocations failing(n);
    descriptor.reset();
    EXPECT_EQ(pool.available_pages_count(), 4);
  }
}

}  // namespace
}  // namespace seqattn
