#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <vector>

#include "conformance_suite.h"
#include "living_sequences.h"

// Trees of draft tokens: each sees its path alone, and what is committed is as if it had been
// appended.
namespace seqattn::testing {
namespace {

using Parents = std::vector<std::int32_t>;

Parents random_tree(std::mt19937_64& random) {
  Parents parents(1 + random() % 20);
  for (std::size_t i = 0; i < parents.size(); ++i) {
    parents[i] = static_cast<std::int32_t>(random() % (i + 1)) - 1;
  }
  return parents;
}

// From some token up to the root.
std::vector<std::int32_t> random_path(const Parents& parents, std::mt19937_64& random) {
  std::vector<std::int32_t> path;
  for (auto i = static_cast<std::int32_t>(random() % (parents.size() + 1)) - 1; i >= 0;
       i = parents[static_cast<std::size_t>(i)]) {
    path.insert(path.begin(), i);
  }
  return path;
}

class Trees : public ConformanceSuite {
 protected:
  LivingSequences sequences(SlidingWindow window = {}) {
    const AttentionCase c = attention_case();
    return {c, device(), 1500 / c.page_size, random, window};
  }
};

TEST_P(Trees, OfChains) {
  LivingSequences world = sequences();
  world.step({{1, 6}, {2, 0}});
  for (const std::int32_t accepted : {0, 1, 3, 5}) {
    world.step({{1, 0, {-1, 0, 1, 2, 3}}, {2, 1, {-1, 0}}});
    std::vector<std::int32_t> path;
    for (std::int32_t i = 0; i < accepted; ++i) path.push_back(i);
    world.commit_tree(1, path);
    world.commit_tree(2, {});
    world.step({{2, 1}, {1, 1}});
  }
}

TEST_P(Trees, ThatAreWide) {
  LivingSequences world = sequences();
  world.step({{1, 11}});
  const Parents wide(60, -1);
  world.step({{1, 0, wide}});
  world.commit_tree(1, {41});
  Parents bushy(100);
  for (std::int32_t i = 0; i < 100; ++i) bushy[static_cast<std::size_t>(i)] = (i + 5) / 6 - 1;
  world.step({{1, 2, bushy}});
  world.commit_tree(1, {0, 5, 34});
  world.step({{1, 3}});
}

TEST_P(Trees, OnSequencesThatFork) {
  LivingSequences world = sequences();
  world.step({{1, 9}});
  world.fork(1, 2, 9);
  world.fork(1, 3, 6);
  world.step({{1, 0, {-1, -1, 1, 0, 2}}, {2, 0, {-1, 0, -1}}, {3, 2, {-1}}});
  world.fork(1, 4, 9);  // the last page, which holds draft tokens too, is shared
  world.commit_tree(1, {1, 2, 4});
  world.commit_tree(2, {2});
  world.commit_tree(3, {0});
  world.step({{4, 1}, {3, 1}, {2, 1}, {1, 1}});
  world.fork(1, 5, 11);
  world.step({{5, 3, {-1, 0}}, {1, 1}});
  world.truncate(5, world.descriptor().length(5));
  world.step({{5, 1}, {1, 1}});
}

// A token's window counts from the position that its depth gives it.
TEST_P(Trees, OnSequencesWithWindows) {
  for (const SlidingWindow window : {SlidingWindow{1, 0}, {3, 2}, {6, 1}, {30, 5}, {2, 50}}) {
    LivingSequences world = sequences(window);
    for (int i = 0; i < 12; ++i) {
      const Parents parents = random_tree(random);
      world.step({{1, static_cast<std::int64_t>(random() % 4), parents}, {2, 1}});
      world.commit_tree(1, random_path(parents, random));
    }
    world.step({{1, 5}, {2, 1}});
  }
}

TEST_P(Trees, UnderAMask) {
  LivingSequences world = sequences();
  world.step({{1, 13, {-1, 0, 0, 1, -1, 4}}, {2, 4}, {3, 0, {-1, 0}}}, 0.7);
}

TEST_P(Trees, OfManyShapesInOneBatch) {
  LivingSequences world = sequences();
  for (int i = 0; i < 8; ++i) {
    std::vector<LivingSequences::Request> requests;
    for (SeqId id = 0; id < 5; ++id) {
      requests.push_back({id, static_cast<std::int64_t>(random() % 5), random_tree(random)});
    }
    world.step(requests);
    for (const auto& [id, num_tokens, parents] : requests) {
      world.commit_tree(id, random_path(parents, random));
    }
  }
}

// Of a sequence whose keys are split.
TEST_P(Trees, OnALongSequence) {
  LivingSequences world = sequences();
  world.append_only(1, 1200);
  world.step({{1, 0, {-1, 0}}});
  world.commit_tree(1, {0});
  world.step({{1, 0, {-1, 0, -1, 2, 2, 3, 3, 0, 1}}});
}

SEQATTN_INSTANTIATE_CASES(Trees, living_cases());

}  // namespace
}  // namespace seqattn::testing
