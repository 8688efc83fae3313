#include "sequence_contents.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "random_source.h"

// Random growth, forks, truncations, windows, trees, `keep`, releases, prefix caches and saved
// states over real storage, in two managers of their own page sizes and layouts.
namespace seqattn {
namespace {

class SequenceContents : public ::testing::TestWithParam<std::tuple<KVLayout, bool>> {};

TEST_P(SequenceContents, AreWhatWasAppended) {
  const auto [layout, copies_by_caller] = GetParam();
  const KVLayout other = layout == KVLayout::kNHD ? KVLayout::kHND : KVLayout::kNHD;
  auto random = testing::random_source(110 + 2 * static_cast<std::uint64_t>(layout) +
                                       static_cast<std::uint64_t>(copies_by_caller));
  testing::SharedContents shared;
  for (int run = 0; run < 150 && !HasFailure(); ++run) {
    std::vector<std::uint8_t> bytes(2'000);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random() >> 32);
    testing::ByteSource source(bytes);
    testing::Contents here(source, shared, layout, copies_by_caller);
    testing::Contents elsewhere(source, shared, other, copies_by_caller);
    while (!source.empty() && !HasFailure()) (source.one_in(4) ? elsewhere : here).step();
    if (HasFailure()) break;
    here.finish();
    elsewhere.finish();
  }
  EXPECT_GT(shared.num_copies, 250);
  EXPECT_GT(shared.num_found, 150);
  EXPECT_GT(shared.num_reclaimed, 80);
  EXPECT_GT(shared.num_restored_elsewhere, 80);
  EXPECT_GT(shared.num_refused_states, 50);
}

INSTANTIATE_TEST_SUITE_P(All, SequenceContents,
                         ::testing::Combine(::testing::Values(KVLayout::kNHD, KVLayout::kHND),
                                            ::testing::Bool()),
                         [](const auto& instance) {
                           return std::string(to_string(std::get<0>(instance.param))) +
                                  (std::get<1>(instance.param) ? "CopiesByTheCaller"
                                                               : "CopiesByTheDescriptor");
                         });

}  // namespace
}  // namespace seqattn
