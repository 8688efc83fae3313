#include "seqattn/head_id_generator.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <set>

#include "error_text.h"

namespace seqattn {
namespace {

using ::seqattn::testing::error_of;
using ::testing::HasSubstr;

constexpr SeqId kMax = std::numeric_limits<SeqId>::max();
constexpr SeqId kMin = std::numeric_limits<SeqId>::min();

TEST(HeadIDGenerator, NoTwoHeadsShareAnId) {
  for (std::int64_t num_kv_heads = 1; num_kv_heads <= 40; ++num_kv_heads) {
    const HeadIDGenerator generator(num_kv_heads);
    std::set<SeqId> ids;
    for (SeqId seq_id = -20; seq_id < 20; ++seq_id) {
      for (std::int64_t head = 0; head < num_kv_heads; ++head) {
        EXPECT_TRUE(ids.insert(generator.get_head_id(seq_id, head)).second)
            << num_kv_heads << " heads, sequence " << seq_id << ", head " << head;
      }
    }
  }
}

TEST(HeadIDGenerator, PowersOfTwoGiveTheOriginalsIds) {
  for (int shift = 0; shift < 8; ++shift) {
    const HeadIDGenerator generator(std::int64_t{1} << shift);
    for (SeqId seq_id = 0; seq_id < 50; ++seq_id) {
      const std::int64_t head = seq_id % generator.num_kv_heads();
      EXPECT_EQ(generator.get_head_id(seq_id, head), (seq_id << shift) | head);
    }
  }
}

TEST(HeadIDGenerator, RefusesHeadsOutOfRange) {
  const HeadIDGenerator generator(6);
  EXPECT_EQ(generator.num_kv_heads(), 6);
  EXPECT_EQ(error_of([&] { generator.get_head_id(0, 6); }),
            "head_idx: got 6; expected 0 <= head_idx < 6");
  EXPECT_EQ(error_of([&] { generator.get_head_id(0, -1); }),
            "head_idx: got -1; expected 0 <= head_idx < 6");
  EXPECT_EQ(error_of([&] { generator.get_head_id(0, kMax); }),
            "head_idx: got 9223372036854775807; expected 0 <= head_idx < 6");
}

TEST(HeadIDGenerator, RefusesIdsThatDoNotFit) {
  const HeadIDGenerator three(3);
  EXPECT_EQ(three.get_head_id(kMax / 3, 1), kMax);  // 2^63 - 1 leaves 1 when divided by 3
  EXPECT_THAT(error_of([&] { three.get_head_id(kMax / 3, 2); }), HasSubstr("do not fit int64"));
  EXPECT_THAT(error_of([&] { three.get_head_id(kMax / 3 + 1, 0); }), HasSubstr("with 3 KV heads"));
  EXPECT_THAT(error_of([&] { three.get_head_id(kMin, 0); }), HasSubstr("do not fit int64"));
  const HeadIDGenerator one(1);
  EXPECT_EQ(one.get_head_id(kMin, 0), kMin);
  EXPECT_EQ(one.get_head_id(kMax, 0), kMax);
}

TEST(HeadIDGenerator, RefusesToHaveNoHeads) {
  EXPECT_EQ(error_of([] { HeadIDGenerator(0); }), "num_kv_heads: got 0; expected at least 1");
  EXPECT_EQ(error_of([] { HeadIDGenerator(-8); }), "num_kv_heads: got -8; expected at least 1");
}

TEST(HeadIDGenerator, IsPrintable) {
  EXPECT_EQ(HeadIDGenerator(6).to_string(), "HeadIDGenerator(num_kv_heads=6)");
}

}  // namespace
}  // namespace seqattn
