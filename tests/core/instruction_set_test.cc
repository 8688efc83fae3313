#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <numeric>
#include <string>
#include <vector>

#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/half.h"
#include "seqattn/paged_kv_cache_manager.h"

// What appends and reads convert, they convert as half.h does, bit for bit, with every instruction
// set that this build and this machine have.
namespace seqattn {
namespace {

std::vector<std::int64_t> instruction_sets() {
  std::vector<std::int64_t> sets;
  for (std::int64_t rest = hwy::SupportedTargets() & HWY_TARGETS; rest != 0; rest &= rest - 1) {
    sets.push_back(rest & -rest);
  }
  return sets;
}

class InstructionSet : public ::testing::TestWithParam<std::int64_t> {
 protected:
  void SetUp() override { force(GetParam()); }
  void TearDown() override { force(0); }  // whatever the machine has

  static void force(std::int64_t set) {
    hwy::SetSupportedTargetsForTest(set);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
  }
};

std::uint16_t to_half(float value, DType dtype) {
  return dtype == DType::kFloat16 ? to_float16(value) : to_bfloat16(value);
}
float from_half(std::uint16_t bits, DType dtype) {
  return dtype == DType::kFloat16 ? from_float16(bits) : from_bfloat16(bits);
}

// A cache of one page whose keys are these elements, in tokens of 37: no whole number of vectors.
constexpr int kHeadDim = 37;
std::unique_ptr<PagedKVCacheManager> cache_over(std::vector<std::uint16_t>& elements, DType dtype) {
  const auto num_tokens = static_cast<int>(elements.size()) / kHeadDim;
  const auto keys = TensorView::contiguous(static_cast<void*>(elements.data()), dtype,
                                           {1, num_tokens, 1, kHeadDim});
  return PagedKVCacheManager::from_tensors(std::array{keys}, std::array{keys},
                                           {.num_pages = 1,
                                            .page_size = num_tokens,
                                            .num_heads = 1,
                                            .head_dim = kHeadDim,
                                            .dtype = dtype});
}

TEST_P(InstructionSet, ReadsEvery16BitFloat) {
  std::vector<std::uint16_t> elements(65'536 + kHeadDim - 65'536 % kHeadDim);
  std::iota(elements.begin(), elements.end(), std::uint16_t{0});
  const auto num_tokens = static_cast<std::int64_t>(elements.size()) / kHeadDim;
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    const auto manager = cache_over(elements, dtype);
    const testing::HostTensor out(DType::kFloat32, {num_tokens, 1, kHeadDim}),
        values(DType::kFloat32, {num_tokens, 1, kHeadDim});
    manager->read_kv({0}, 0, num_tokens, out.view(), values.view());
    for (std::size_t i = 0; i < elements.size(); ++i) {
      const float expected = from_half(elements[i], dtype);
      const float actual = out[static_cast<std::int64_t>(i)];
      if (std::isnan(expected)) {
        ASSERT_TRUE(std::isnan(actual)) << to_string(dtype) << " " << elements[i];
      } else {
        ASSERT_EQ(std::bit_cast<std::uint32_t>(actual), std::bit_cast<std::uint32_t>(expected))
            << to_string(dtype) << " " << elements[i];
      }
    }
  }
}

// Random bits, and around every 16-bit float the values where rounding changes its mind.
std::vector<float> interesting_floats() {
  std::vector<float> floats;
  for (std::uint32_t bits = 0; bits < 65'536; bits += 7) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      const float low = from_half(static_cast<std::uint16_t>(bits), dtype);
      const float high = from_half(static_cast<std::uint16_t>(bits + 1), dtype);
      const float middle = low / 2 + high / 2;
      floats.insert(floats.end(), {low, middle, std::nextafter(middle, low), -middle});
    }
  }
  floats.insert(floats.end(), {65519.0f, 65520.0f, -65520.0f, 0x1p-25f, 0x1.8p-24f, 3.4e38f});
  auto random = testing::random_source(60);
  while (floats.size() < 4000 * kHeadDim) {
    floats.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(random())));
  }
  return floats;
}

TEST_P(InstructionSet, AppendsFloat32RoundedToNearestEven) {
  const std::vector<float> floats = interesting_floats();
  const auto num_tokens = static_cast<std::int32_t>(floats.size() / kHeadDim);
  const auto tokens =
      TensorView::contiguous(floats.data(), DType::kFloat32, {num_tokens, 1, kHeadDim});
  for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    std::vector<std::uint16_t> elements(floats.size());
    const auto manager = cache_over(elements, dtype);
    manager->append_kv(tokens, tokens, FlashInferPackedData({0}, {0, 1}, {num_tokens}),
                       std::array{0, num_tokens});
    for (std::size_t i = 0; i < floats.size(); ++i) {
      if (std::isnan(floats[i])) {
        ASSERT_TRUE(std::isnan(from_half(elements[i], dtype))) << to_string(dtype) << " " << i;
      } else {
        ASSERT_EQ(elements[i], to_half(floats[i], dtype)) << to_string(dtype) << " " << floats[i];
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, InstructionSet, ::testing::ValuesIn(instruction_sets()),
                         [](const auto& set) { return std::string(hwy::TargetName(set.param)); });

}  // namespace
}  // namespace seqattn
