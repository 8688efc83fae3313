#include <gtest/gtest.h>

#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "conformance_suite.h"
#include "living_sequences.h"

// What `keep` leaves is a sequence like any other.
namespace seqattn::testing {
namespace {

class KeptTokens : public ConformanceSuite {
 protected:
  LivingSequences sequences(SlidingWindow window = {}) {
    const AttentionCase c = attention_case();
    return {c, device(), 1500 / c.page_size, random, window};
  }
  // Of the slots that are alive, about this share.
  std::vector<std::int64_t> some_slots(LivingSequences& world, SeqId id, double share) {
    const SequenceData& data = world.descriptor().sequence(id);
    const std::int64_t held = world.descriptor().num_kv_tokens(id);
    std::bernoulli_distribution is_kept(share);
    std::vector<std::int64_t> slots;
    for (std::int64_t slot = 0; slot < held; ++slot) {
      const auto [window, num_sinks] = data.window;
      const bool is_alive = window == 0 || slot < num_sinks || slot > held - window;
      if (is_alive && is_kept(random)) slots.push_back(slot);
    }
    return slots;
  }
};

TEST_P(KeptTokens, AreAttendedTo) {
  for (const double share : {0.0, 0.1, 0.5, 0.95, 1.0}) {
    LivingSequences world = sequences();
    world.step({{1, 50}, {2, 7}});
    for (int i = 0; i < 4; ++i) {
      world.keep(1, some_slots(world, 1, share));
      world.step({{1, 1}, {2, 1}});
      world.step({{2, 1}, {1, 9}});
    }
    EXPECT_EQ(world.descriptor().length(1), 90);
  }
}

TEST_P(KeptTokens, OfSequencesThatShare) {
  LivingSequences world = sequences();
  world.step({{1, 30}});
  world.fork(1, 2, 30);
  world.fork(1, 3, 17);
  world.keep(2, some_slots(world, 2, 0.5));
  world.keep(1, some_slots(world, 1, 0.8));
  world.step({{3, 1}, {2, 1}, {1, 1}});
  world.fork(2, 4, 31);
  world.step({{4, 2}, {2, 2, {-1, 0}}, {3, 2}});
  world.commit_tree(2, {0, 1});
  world.step({{4, 2}, {2, 2}, {1, 0, {-1}}});
}

TEST_P(KeptTokens, OfSequencesWithWindows) {
  for (const SlidingWindow window : {SlidingWindow{1, 0}, {5, 2}, {12, 0}, {30, 9}}) {
    LivingSequences world = sequences(window);
    world.step({{1, 40}, {2, 3}});
    for (int i = 0; i < 3; ++i) {
      world.step({{1, 1 + 4 * i}, {2, 1}});
      world.keep(1, some_slots(world, 1, 0.6));
      world.step({{1, 1}, {2, 2}});
      world.step({{1, 6, {-1, 0, -1}}});
      world.commit_tree(1, {0, 1});
    }
    for (int i = 0; i < 15; ++i) world.step({{1, 1}});
  }
}

SEQATTN_INSTANTIATE_CASES(KeptTokens, living_cases());

}  // namespace
}  // namespace seqattn::testing
