#include "seqattn/sequence_state.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <limits>
#include <string>
#include <tuple>
#include <vector>

#include "random_source.h"
#include "saved_cache.h"
#include "seqattn/batch_attention.h"

// save_sequence and restore_sequence: what comes back.
namespace seqattn {
namespace {

using ::seqattn::testing::bytes_of;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::SavedCache;

KVCacheConfig small(int page_size, DType dtype, KVLayout layout, std::int64_t num_pages = 64) {
  return {.num_pages = num_pages,
          .page_size = page_size,
          .num_heads = 2,
          .head_dim = 4,
          .head_dim_v = 3,
          .num_layers = 2,
          .dtype = dtype,
          .kv_layout = layout};
}

class RoundTrip : public ::testing::TestWithParam<std::tuple<DType, KVLayout, int>> {};

// Every length around every page boundary of both pools.
TEST_P(RoundTrip, KeepsEveryBitWhateverTheOtherPoolsPagesAndLayout) {
  const auto [dtype, layout, page_size] = GetParam();
  auto random = testing::random_source(4001);
  for (const int other_size : {1, 3, 8}) {
    for (const KVLayout other_layout : {KVLayout::kNHD, KVLayout::kHND}) {
      SavedCache from(small(page_size, dtype, layout)), to(small(other_size, dtype, other_layout));
      for (std::int64_t length = 0; length <= 2 * 8 + 1; ++length) {
        from.add(random, length, length);
        const auto state = save_sequence(from.descriptor, length);
        const SequenceStateInfo info = restore_sequence(to.descriptor, 100, state);
        EXPECT_EQ(to.bits(100), from.bits(length)) << length << " tokens";
        EXPECT_EQ(info.num_bytes, static_cast<std::int64_t>(state.size()));
        EXPECT_EQ(info, sequence_state_info(state));
        EXPECT_EQ(to.descriptor.length(100), length);
        EXPECT_EQ(save_sequence(to.descriptor, 100), state) << "the same state again";
        to.descriptor.check_invariants();
        to.descriptor.release({100});
        from.descriptor.release({length});
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(SequenceState, RoundTrip,
                         ::testing::Combine(::testing::Values(DType::kFloat32, DType::kFloat16,
                                                              DType::kBFloat16),
                                            ::testing::Values(KVLayout::kNHD, KVLayout::kHND),
                                            ::testing::Values(1, 4, 16)),
                         [](const auto& tested) {
                           return std::string(to_string(std::get<0>(tested.param))) + "_" +
                                  std::string(to_string(std::get<1>(tested.param))) + "_" +
                                  std::to_string(std::get<2>(tested.param));
                         });

class Conversion : public ::testing::TestWithParam<std::tuple<DType, DType>> {};

// As storing each float in a tensor of the other dtype rounds it, infinities and NaN included.
TEST_P(Conversion, RoundsToNearestEven) {
  const auto [dtype, other] = GetParam();
  auto random = testing::random_source(4002);
  SavedCache from(small(4, dtype, KVLayout::kNHD)), to(small(8, other, KVLayout::kHND));
  from.add(random, 1, 37);
  restore_sequence(to.descriptor, 2, save_sequence(from.descriptor, 1));
  const auto expected = from.tokens(1, DType::kFloat32), got = to.tokens(2, DType::kFloat32);
  for (std::size_t part = 0; part < expected.size(); ++part) {
    HostTensor rounded(other, {1});
    for (std::int64_t i = 0; i < expected[part].size(); ++i) {
      rounded.set(0, expected[part][i]);
      if (std::isnan(expected[part][i])) {
        EXPECT_TRUE(std::isnan(got[part][i]));
      } else {
        EXPECT_EQ(got[part][i], rounded[0]) << "element " << i << " of part " << part;
        EXPECT_EQ(std::signbit(got[part][i]), std::signbit(rounded[0]));
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(
    SequenceState, Conversion,
    ::testing::Combine(::testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16),
                       ::testing::Values(DType::kFloat32, DType::kFloat16, DType::kBFloat16)),
    [](const auto& tested) {
      return std::string(to_string(std::get<0>(tested.param))) + "_to_" +
             std::string(to_string(std::get<1>(tested.param)));
    });

TEST(SequenceState, OverflowsToInfinityInFloat16) {
  SavedCache from(small(4, DType::kBFloat16, KVLayout::kNHD)),
      to(small(4, DType::kFloat16, KVLayout::kNHD));
  from.descriptor.allocate({1}, {1});
  HostTensor keys(DType::kFloat32, {1, 2, 4}), values(DType::kFloat32, {1, 2, 3});
  for (std::int64_t i = 0; i < 8; ++i) keys.set(i, i % 2 == 0 ? 1e6f : -1e6f);
  for (std::int64_t i = 0; i < 6; ++i) values.set(i, 65280);  // fits both
  for (const int layer : {0, 1}) {
    from.manager.write_kv(from.descriptor.pages(1), 0, 1, keys.view(), values.view(), layer);
  }
  restore_sequence(to.descriptor, 1, save_sequence(from.descriptor, 1));
  const auto got = to.tokens(1, DType::kFloat32);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(got[0].values(), (std::vector<float>{kInfinity, -kInfinity, kInfinity, -kInfinity,
                                                 kInfinity, -kInfinity, kInfinity, -kInfinity}));
  EXPECT_EQ(got[3].values(), std::vector<float>(6, 65280));
}

// Records of several tokens, of one, and of one that is larger than a record should be.
TEST(SequenceState, StreamsInRecordsOfBoundedSize) {
  class Watched final : public ByteSink, public ByteSource {
   public:
    void write(std::span<const std::byte> bytes) override {
      most = std::max(most, bytes.size());
      state.insert(state.end(), bytes.begin(), bytes.end());
    }
    std::size_t read(std::span<std::byte> bytes) override {
      most = std::max(most, bytes.size());
      const std::size_t count = std::min(bytes.size(), state.size() - at);
      std::copy_n(state.begin() + static_cast<std::ptrdiff_t>(at), count, bytes.begin());
      at += count;
      return count;
    }
    std::vector<std::byte> state;
    std::size_t at = 0, most = 0;
  };
  auto random = testing::random_source(4003);
  constexpr std::size_t kMiB = std::size_t{1} << 20;
  struct Case {
    int num_heads, head_dim;
    std::int64_t num_tokens;
    std::size_t record;  // bytes of the largest
  };
  for (const Case& c :
       {Case{8, 4096, 40, 4 * kMiB + 8}, Case{8, 16384, 9, 4 * kMiB + 8},
        Case{9, 65536, 2, 9 * kMiB / 2 + 8}, Case{3, 100, 4000, 4 * kMiB - 1504 + 8}}) {
    const KVCacheConfig config{.num_pages = (c.num_tokens + 2) / 3,
                               .page_size = 3,
                               .num_heads = c.num_heads,
                               .head_dim = c.head_dim,
                               .num_layers = 2,
                               .dtype = DType::kFloat32};
    SavedCache from(config), to(config);
    from.add(random, 1, c.num_tokens);
    Watched watched;
    save_sequence(from.descriptor, 1, watched);
    EXPECT_EQ(watched.most, c.record);
    const auto num_bytes = watched.state.size();
    watched.state.insert(watched.state.end(), 99, std::byte{7});  // of somebody else
    watched.most = 0;
    EXPECT_EQ(restore_sequence(to.descriptor, 1, watched).num_bytes,
              static_cast<std::int64_t>(num_bytes));
    EXPECT_EQ(watched.at, num_bytes) << "nothing behind the state is read";
    EXPECT_EQ(watched.most, c.record);
    EXPECT_TRUE(to.bits(1) == from.bits(1));
  }
}

TEST(SequenceState, OfASharedPrefixIsItsOwn) {
  auto random = testing::random_source(4004);
  SavedCache cache(small(4, DType::kFloat16, KVLayout::kNHD));
  cache.add(random, 1, 10);
  cache.descriptor.fork(1, 2, 7);
  const auto state = save_sequence(cache.descriptor, 2);
  const auto expected = cache.bits(2);
  restore_sequence(cache.descriptor, 3, state);
  EXPECT_EQ(cache.bits(3), expected);
  for (const PageId page : cache.descriptor.pages(3)) {
    EXPECT_EQ(cache.manager.ref_count(page), 1);
  }
  cache.descriptor.release({1, 2});
  EXPECT_EQ(cache.bits(3), expected);
  cache.descriptor.allocate({3}, {2});  // it grows like any other
  cache.descriptor.check_invariants();
}

// Attention over a restored sequence, and over what is appended to it later, has the same bits.
TEST(SequenceState, GoesOnAsTheSavedSequenceDoes) {
  auto random = testing::random_source(4005);
  const KVCacheConfig config{
      .num_pages = 40, .page_size = 4, .num_heads = 2, .head_dim = 16, .dtype = DType::kFloat32};
  SavedCache from(config), to(config);
  to.add(random, 5, 9);
  from.descriptor.allocate({1}, {50});
  const auto prompt = testing::random_tensor(random, DType::kFloat32, {50, 2, 16});
  from.manager.write_kv(from.descriptor.pages(1), 0, 50, prompt.view(), prompt.view());
  restore_sequence(to.descriptor, 1, save_sequence(from.descriptor, 1));
  const auto kv = testing::random_tensor(random, DType::kFloat32, {1, 2, 16});
  const auto q = testing::random_tensor(random, DType::kFloat32, {1, 4, 16});
  const auto decode = [&](SavedCache& cache) {
    cache.descriptor.allocate_decoding({1});
    BatchAttention attention(cache.manager, {.num_qo_heads = 4});
    attention.plan(cache.descriptor.pack_for_flashinfer({1}), {0, 1});
    attention.append_kv(kv.view(), kv.view());
    const HostTensor out(DType::kFloat32, {1, 4, 16});
    attention.run(q.view(), out.view());
    return out.values();
  };
  EXPECT_EQ(decode(to), decode(from));
}

// The bytes of docs/sequence_state.md, written out by hand: they must stay what they are. The
// header's checksum is what `xxhsum -H3` says of the 96 bytes in front of it.
TEST(SequenceState, HasTheDocumentedBytes) {
  PagedKVCacheManager manager({.num_pages = 2,
                               .page_size = 2,
                               .num_heads = 1,
                               .head_dim = 2,
                               .head_dim_v = 1,
                               .dtype = DType::kBFloat16,
                               .kv_layout = KVLayout::kHND});
  CacheDescriptor descriptor(manager);
  descriptor.allocate({7}, {3});
  HostTensor keys(DType::kBFloat16, {3, 1, 2}), values(DType::kBFloat16, {3, 1, 1});
  for (std::int64_t i = 0; i < 6; ++i) keys.set(i, static_cast<float>(i + 1));
  for (std::int64_t i = 0; i < 3; ++i) values.set(i, -static_cast<float>(i + 1));
  manager.write_kv(descriptor.pages(7), 0, 3, keys.view(), values.view());
  std::vector<int> expected = {
      0x89, 'S',  'E',  'Q',  'K',  'V',  '\r', '\n',              // magic
      1,    0,    0,    0,    2,    0,    0,    0,                 // version, dtype
      1,    0,    0,    0,    1,    0,    0,    0,                 // num_layers, num_heads
      2,    0,    0,    0,    1,    0,    0,    0,                 // head_dim, head_dim_v
      3,    0,    0,    0,    0,    0,    0,    0,                 // length
      3,    0,    0,    0,    0,    0,    0,    0,                 // num_kv_tokens
      0,    0,    0,    0,    0,    0,    0,    0,                 // window
      0,    0,    0,    0,    0,    0,    0,    0,                 // num_sink_tokens
      0,    0,    0,    0,    0,    0,    0,    0,                 // dropped_to
      0,    0,    0,    0,    0,    0,    0,    0,                 // num_dropped
      0,    0,    0,    0,    0,    0,    0,    0,                 // compacted_to
      0,    0,    0,    0,    0,    0,    0,    0,                 // num_in_front
      0x37, 0x0a, 0x74, 0x82, 0xe4, 0xf6, 0x28, 0xbb,              // checksum
      0x80, 0x3f, 0x00, 0x40, 0x40, 0x40, 0x80, 0x40, 0xa0, 0x40,  // keys
      0xc0, 0x40,                                                  //
      0x80, 0xbf, 0x00, 0xc0, 0x40, 0xc0,                          // values
      0x1c, 0x76, 0x68, 0x45, 0xd3, 0x4d, 0xa0, 0x63};             // checksum
  std::vector<int> got;
  for (const std::byte byte : save_sequence(descriptor, 7)) got.push_back(static_cast<int>(byte));
  EXPECT_EQ(got, expected);
}

}  // namespace
}  // namespace seqattn
