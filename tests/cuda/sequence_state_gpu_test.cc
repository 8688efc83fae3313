// Saved sequences that come from a GPU or go to one: the bytes are those of a CPU.
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/seqattn.h"

namespace seqattn::testing {
namespace {

using State = std::vector<std::byte>;

KVCacheConfig config_of(Device device, DType dtype, int page_size, KVLayout layout) {
  return {.num_pages = 400,
          .page_size = page_size,
          .num_heads = 3,
          .head_dim = 64,
          .head_dim_v = 24,
          .num_layers = 2,
          .dtype = dtype,
          .device = device,
          .kv_layout = layout};
}

// The state of a sequence of random floats, saved from a CPU.
State random_state(std::int64_t num_tokens, DType dtype) {
  auto random = random_source(7001);
  PagedKVCacheManager manager(config_of(cpu(), dtype, 16, KVLayout::kNHD));
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1}, {num_tokens});
  std::normal_distribution<float> normal(0, 1000);  // some beyond float16
  std::vector<float> keys(static_cast<std::size_t>(num_tokens * 3 * 64)),
      values(static_cast<std::size_t>(num_tokens * 3 * 24));
  for (int layer = 0; layer < 2; ++layer) {
    for (float& x : keys) x = normal(random) * normal(random);
    for (float& x : values) x = normal(random);
    manager.write_kv(descriptor.pages(1), 0, num_tokens,
                     TensorView::contiguous(keys.data(), DType::kFloat32, {num_tokens, 3, 64}),
                     TensorView::contiguous(values.data(), DType::kFloat32, {num_tokens, 3, 24}),
                     layer);
  }
  return save_sequence(descriptor, 1);
}

// What a cache makes of a state: restored there, and saved again.
State through(const KVCacheConfig& config, const State& state, Stream stream = {}) {
  PagedKVCacheManager manager(config);
  CacheDescriptor descriptor(manager);
  descriptor.allocate({8}, {5});  // so that pages do not begin with the first
  restore_sequence(descriptor, 9, state, stream);
  State again = save_sequence(descriptor, 9, stream);
  descriptor.check_invariants();
  return again;
}

class CudaSequenceState : public ::testing::TestWithParam<std::tuple<DType, DType>> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  }
};

TEST_P(CudaSequenceState, IsThatOfACpu) {
  const auto [from, to] = GetParam();
  const OwnStream stream;
  // Less than a record, several records, none at all.
  for (const std::int64_t num_tokens : {37, 5000, 0}) {
    const State state = random_state(num_tokens, from);
    const State expected = through(config_of(cpu(), to, 16, KVLayout::kNHD), state);
    for (const KVLayout layout : {KVLayout::kNHD, KVLayout::kHND}) {
      const KVCacheConfig config = config_of(cuda(0), to, 15, layout);
      EXPECT_TRUE(through(config, state) == expected) << num_tokens << " tokens";
      EXPECT_TRUE(through(config, state, stream.get()) == expected) << num_tokens << " tokens";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, CudaSequenceState,
                         ::testing::Combine(::testing::Values(DType::kFloat32, DType::kFloat16,
                                                              DType::kBFloat16),
                                            ::testing::Values(DType::kFloat16, DType::kBFloat16)),
                         [](const auto& tested) {
                           return std::string(to_string(std::get<0>(tested.param))) + "_to_" +
                                  std::string(to_string(std::get<1>(tested.param)));
                         });

}  // namespace
}  // namespace seqattn::testing
