#pragma once

#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <new>
#include <ostream>
#include <vector>

#include "descriptor_state.h"
#include "failing_allocations.h"
#include "host_tensor.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

namespace seqattn::testing {

// A manager with two descriptors, some pages shared, the free list wrapped around its end.
//   sequence 1: pages 0 1 2, 10 tokens     2: pages 0 1, 6 tokens     3: page 3, 4 tokens
//   pages 6 7 8 are the caller's           other, 1: pages 3, 3 tokens
class World {
 public:
  World() {
    descriptor.allocate({9}, {12});
    descriptor.release({9});
    manager.unref(manager.allocate(9));
    descriptor.allocate({1}, {10});
    write(descriptor.pack_for_flashinfer({1}), 10);
    descriptor.fork(1, 2, 6);
    descriptor.allocate({3}, {4});
    write(descriptor.pack_for_flashinfer({3}), 4);
    other.attach(1, descriptor.pages(3), 3);
    callers = manager.allocate(3);
  }

  void write(const FlashInferPackedData& packed, std::int32_t n) {
    HostTensor tokens(DType::kFloat32, {n, 1, 2});
    for (int layer = 0; layer < 2; ++layer) {
      for (std::int64_t i = 0; i < tokens.size(); ++i) tokens.set(i, static_cast<float>(++written));
      manager.append_kv(tokens.view(), tokens.view(), packed, std::array{0, n}, layer);
    }
  }

  PagedKVCacheManager manager{{.num_pages = 12,
                               .page_size = 4,
                               .num_heads = 1,
                               .head_dim = 2,
                               .num_layers = 2,
                               .dtype = DType::kFloat32}};
  CacheDescriptor descriptor{manager};
  CacheDescriptor other{manager};
  std::vector<PageId> callers;
  int written = 0;
};

struct WorldState {
  DescriptorState descriptor, other;
  std::vector<std::vector<std::byte>> storage;
  friend bool operator==(const WorldState&, const WorldState&) = default;
};

inline WorldState state_of(World& world) {
  WorldState state{state_of(world.descriptor), state_of(world.other), {}};
  for (int layer = 0; layer < 2; ++layer) {
    state.storage.push_back(bytes_of(world.manager.key_cache(layer)));
    state.storage.push_back(bytes_of(world.manager.value_cache(layer)));
  }
  return state;
}

inline void PrintTo(const WorldState& state, std::ostream* out) {
  *out << state.descriptor << "\nother: " << state.other << "\n(and the storage)";
}

using Call = std::function<void(World&)>;

// Makes the call with that allocation failing. True where it was reached. When the call ends in
// std::bad_alloc or in an error of the library, nothing may have changed.
inline bool fails_without_a_trace(World& world, const Call& call, std::int64_t n) {
  const WorldState before = state_of(world);
  bool threw = false;
  {
    const FailingAllocations failing(n);
    try {
      call(world);
    } catch (const std::bad_alloc&) {
      threw = true;
    } catch (const Error&) {
      threw = true;  // of wrong arguments; with a shortened message where that allocation failed
    }
  }
  const bool reached = FailingAllocations::have_failed();
  if (threw) {
    EXPECT_EQ(state_of(world), before) << "allocation " << n;
  }
  return reached;
}

// As it ends where every allocation succeeds.
inline WorldState state_after(World& world, const Call& call) {
  try {
    call(world);
  } catch (const Error&) {
  }
  return state_of(world);
}

// Returns how many allocations the call makes.
inline std::int64_t expect_all_or_nothing(const Call& call, const Call& prepare = {}) {
  const auto make_world = [&] {
    auto world = std::make_unique<World>();
    if (prepare) prepare(*world);
    return world;
  };
  const WorldState expected = state_after(*make_world(), call);
  std::int64_t n = 1;
  for (;; ++n) {
    const auto world = make_world();
    if (!fails_without_a_trace(*world, call, n)) break;
    EXPECT_EQ(state_after(*world, call), expected) << "tried again after allocation " << n;
    if (::testing::Test::HasFailure()) break;
  }
  return n - 1;
}

}  // namespace seqattn::testing
