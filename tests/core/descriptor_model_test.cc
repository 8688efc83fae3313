#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "descriptor_operations.h"
#include "random_source.h"

// Random operations, more than a million in all, against a model that is too simple to be wrong.
namespace seqattn {
namespace {

// Each shard has its own random numbers, so that shards can run side by side.
class DescriptorModelTest : public ::testing::TestWithParam<int> {};

TEST_P(DescriptorModelTest, AgreesOnRandomOperations) {
  constexpr std::int64_t kNumOperations = 270'000;
  auto random = testing::random_source(100 + static_cast<std::uint64_t>(GetParam()));
  std::int64_t num_operations = 0, num_errors = 0;
  std::int64_t num_restored = 0, num_restored_elsewhere = 0, num_wrong_states = 0;
  for (int run = 0; num_operations < kNumOperations; ++run) {
    std::vector<std::uint8_t> bytes(run % 16 == 0 ? 40'000 : 1 + random() % 6'000);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random() >> 32);
    const auto result = testing::run_descriptor_operations(bytes);
    ASSERT_EQ(result.difference, "") << "run " << run;
    num_operations += result.num_operations;
    num_errors += result.num_errors;
    num_restored += result.num_restored;
    num_restored_elsewhere += result.num_restored_elsewhere;
    num_wrong_states += result.num_wrong_states;
  }
  // Both the operations that succeed and the ones that have to fail are there in numbers.
  EXPECT_GT(num_errors, num_operations / 10);
  EXPECT_LT(num_errors, num_operations / 2);
  EXPECT_GT(num_restored, 1000);
  EXPECT_GT(num_restored_elsewhere, 500);
  EXPECT_GT(num_wrong_states, 400);
}

INSTANTIATE_TEST_SUITE_P(Shards, DescriptorModelTest, ::testing::Range(0, 4));

}  // namespace
}  // namespace seqattn
