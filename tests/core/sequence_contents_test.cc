#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <deque>
#include <iterator>
#include <map>
#include <set>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "byte_source.h"
#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// Random growth, forks, truncations, windows, trees, `keep` and releases over real storage. Tokens
// are numbered as they are appended; whatever happens to others, every sequence holds the tokens
// that it was given.
namespace seqattn {
namespace {

using ::seqattn::testing::ByteSource;
using ::seqattn::testing::HostTensor;

constexpr int kLayers = 2, kHeads = 2, kHeadDim = 3, kHeadDimV = 1;

class Contents {
 public:
  Contents(std::span<const std::uint8_t> bytes, KVLayout layout, bool copies_by_caller)
      : source_(bytes),
        manager_({.num_pages = 4 + source_.below(20),
                  .page_size = 1 + source_.below(5),
                  .num_heads = kHeads,
                  .head_dim = kHeadDim,
                  .head_dim_v = kHeadDimV,
                  .num_layers = kLayers,
                  .dtype = DType::kFloat32,
                  .kv_layout = layout}),
        copies_by_caller_(copies_by_caller) {}

  void run() {
    while (!source_.empty() && !::testing::Test::HasFailure()) {
      switch (source_.below(11)) {
        case 0:
          grow(3 * manager_.pool().page_size());
          break;
        case 1:
        case 2:
        case 3:
          grow(1);
          break;
        case 4:
        case 5:
          fork();
          break;
        case 6:
          truncate();
          break;
        case 7:
          set_window();
          break;
        case 8:
          grow_by_a_tree();
          break;
        case 9:
          keep();
          break;
        default:
          release();
      }
      remember_a_batch();
      expect_contents();
      expect_stale_batches_to_be_noticed();
    }
    descriptor().check_invariants();
  }

  std::int64_t num_copies() const { return num_copies_; }

 private:
  CacheDescriptor& descriptor() { return copies_by_caller_ ? over_pool_ : over_manager_; }
  SeqId any_id() { return source_.below(6); }

  // Grows a few sequences by up to that many tokens each and appends to all layers.
  void grow(int most) {
    std::set<SeqId> unique;
    for (int n = 1 + source_.below(4); n > 0; --n) unique.insert(any_id());
    const std::vector<SeqId> ids(unique.begin(), unique.end());
    std::vector<std::int64_t> lengths;
    for (std::size_t i = 0; i < ids.size(); ++i) lengths.push_back(1 + source_.below(most));
    const Admission admission = descriptor().try_allocate(ids, lengths);
    if (!admission) return;
    num_copies_ += static_cast<std::int64_t>(admission.copies.size());
    if (copies_by_caller_) manager_.copy_pages(admission.copies);
    const std::int64_t first_token = next_token_;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      for (std::int64_t j = 0; j < lengths[i]; ++j) tokens_[ids[i]].push_back(next_token_++);
    }
    append(ids, lengths, first_token);
  }

  // Tokens numbered from first_token on.
  void append(const std::vector<SeqId>& ids, const std::vector<std::int64_t>& lengths,
              std::int64_t first_token) {
    std::vector<std::int32_t> indptr = {0};
    for (const std::int64_t n : lengths) {
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(n));
    }
    const auto packed = descriptor().pack_for_flashinfer(ids);
    for (int layer = 0; layer < kLayers; ++layer) {
      HostTensor keys(DType::kFloat32, {indptr.back(), kHeads, kHeadDim});
      HostTensor values(DType::kFloat32, {indptr.back(), kHeads, kHeadDimV});
      for (std::int64_t i = 0; i < keys.size(); ++i) {
        keys.set(i, element(first_token + i / (kHeads * kHeadDim), layer, i % (kHeads * kHeadDim)));
      }
      for (std::int64_t i = 0; i < values.size(); ++i) {
        values.set(
            i, -element(first_token + i / (kHeads * kHeadDimV), layer, i % (kHeads * kHeadDimV)));
      }
      manager_.append_kv(keys.view(), values.view(), packed, indptr, layer);
    }
  }

  void fork() {
    const SeqId parent = any_id(), child = any_id();
    if (!tokens_.contains(parent) || parent == child) return;
    EXPECT_EQ(descriptor().release({child}), tokens_.erase(child));
    const std::int64_t n = source_.one_in(2) ? descriptor().length(parent) : any_end(parent);
    const std::int64_t offset = offset_of(parent);
    try {
      descriptor().fork(parent, child, n);
    } catch (const InvalidArgumentError&) {
      return;  // what it would see was dropped
    }
    const auto& all = tokens_.at(parent);
    tokens_[child] = {all.begin(), all.begin() + (n - offset)};
  }

  void truncate() {
    const SeqId id = any_id();
    if (!tokens_.contains(id)) return;
    const std::int64_t n = any_end(id), offset = offset_of(id);
    try {
      descriptor().truncate(id, n);
    } catch (const InvalidArgumentError&) {
      return;
    }
    tokens_.at(id).resize(static_cast<std::size_t>(n - offset));
  }

  void set_window() {
    const SeqId id = any_id();
    if (!tokens_.contains(id)) return;
    try {
      descriptor().set_window(
          id, {.window = 1 + source_.below(12), .num_sink_tokens = source_.below(9)});
    } catch (const InvalidArgumentError&) {
    }
  }

  void grow_by_a_tree() {
    const SeqId id = any_id();
    if (!tokens_.contains(id)) return;
    std::vector<std::int32_t> parents(1 + static_cast<std::size_t>(source_.below(7)));
    for (std::size_t i = 0; i < parents.size(); ++i) {
      parents[i] = source_.below(static_cast<int>(i) + 1) - 1;
    }
    try {
      const auto copies = descriptor().allocate_tree(id, parents);
      if (copies_by_caller_) manager_.copy_pages(copies);
    } catch (const NoPageError&) {
      return;
    }
    const std::int64_t first_token = next_token_;
    next_token_ += static_cast<std::int64_t>(parents.size());
    append({id}, {static_cast<std::int64_t>(parents.size())}, first_token);
    std::vector<std::int32_t> path;
    for (auto i =
             static_cast<std::int32_t>(source_.below(static_cast<int>(parents.size()) + 1)) - 1;
         i >= 0; i = parents[static_cast<std::size_t>(i)]) {
      path.insert(path.begin(), i);
    }
    // The last page shared, where there are tokens in front: then the path moves to another one.
    const SeqId sharer = 77;
    if (source_.one_in(2)) descriptor().fork(id, sharer);
    try {
      const auto moves = descriptor().commit_tree(id, path);
      if (copies_by_caller_) manager_.move_tokens(moves);
      for (const std::int32_t i : path) tokens_[id].push_back(first_token + i);
    } catch (const NoPageError&) {
      descriptor().truncate(id, descriptor().length(id));
    }
    descriptor().release({sharer});
  }

  void keep() {
    const SeqId id = any_id();
    if (!tokens_.contains(id)) return;
    const std::vector<std::int64_t> held = held_tokens(id);
    const auto [window, num_sinks] = descriptor().window(id);
    const auto num_held = static_cast<std::int64_t>(held.size());
    std::vector<std::int64_t> slots, kept;
    for (std::int64_t slot = 0; slot < num_held; ++slot) {
      const bool is_alive = window == 0 || slot < num_sinks || slot > num_held - window;
      if (!is_alive || source_.one_in(3)) continue;
      slots.push_back(slot);
      kept.push_back(held[static_cast<std::size_t>(slot)]);
    }
    try {
      const auto moves = descriptor().keep(id, slots);
      if (copies_by_caller_) manager_.move_tokens(moves);
      if (slots.size() < held.size()) tokens_[id] = kept;
    } catch (const NoPageError&) {
    }
  }

  // Positions less tokens_'s entries.
  std::int64_t offset_of(SeqId id) {
    return descriptor().length(id) - static_cast<std::int64_t>(tokens_.at(id).size());
  }
  std::int64_t any_end(SeqId id) {
    return offset_of(id) + source_.below(static_cast<int>(tokens_.at(id).size()) + 1);
  }

  // What the slots of a sequence hold: all its tokens but those that its window has dropped.
  std::vector<std::int64_t> held_tokens(SeqId id) {
    const SequenceData& data = descriptor().sequence(id);
    std::vector<std::int64_t> held = tokens_.at(id);
    const std::int64_t missing = data.length - descriptor().num_kv_tokens(id);
    const auto gap = held.begin() + (data.dropped_to == 0 ? 0 : data.dropped_to - missing);
    held.erase(gap, gap + data.num_dropped);
    return held;
  }

  void release() {
    const SeqId id = any_id();
    EXPECT_EQ(descriptor().release({id}), tokens_.erase(id));
  }

  // The number that an element of a token holds, a different one for each.
  static float element(std::int64_t token, int layer, std::int64_t i) {
    return static_cast<float>(token * 16 + layer * 8 + i + 1);
  }

  void expect_contents() {
    for (const auto& [id, tokens] : tokens_) {
      const std::vector<std::int64_t> expected = held_tokens(id);
      const auto n = static_cast<std::int64_t>(expected.size());
      ASSERT_EQ(descriptor().num_kv_tokens(id), n);
      for (int layer = 0; layer < kLayers; ++layer) {
        const HostTensor keys(DType::kFloat32, {n, kHeads, kHeadDim});
        const HostTensor values(DType::kFloat32, {n, kHeads, kHeadDimV});
        manager_.read_kv(descriptor().pages(id), 0, n, keys.view(), values.view(), layer);
        const auto token = [&all = expected](std::int64_t t) {
          return all[static_cast<std::size_t>(t)];
        };
        for (std::int64_t i = 0; i < keys.size(); ++i) {
          ASSERT_EQ(keys[i], element(token(i / 6), layer, i % 6)) << "sequence " << id;
        }
        for (std::int64_t i = 0; i < values.size(); ++i) {
          ASSERT_EQ(values[i], -element(token(i / 2), layer, i % 2)) << "sequence " << id;
        }
      }
    }
  }

  // Keeps a batch over a few sequences, to be used when it has become stale.
  void remember_a_batch() {
    std::vector<SeqId> ids;
    for (const auto& [id, tokens] : tokens_) {
      if (source_.one_in(2)) ids.push_back(id);
    }
    batches_.push_back({descriptor().pack_for_flashinfer(ids), {}});
    for (const PageId page : batches_.back().packed.kv_page_indices()) {
      batches_.back().generations.push_back(manager_.pool().generation(page));
    }
    if (batches_.size() > 6) batches_.pop_front();
  }

  // A batch is refused exactly when one of its pages is free by now, or in debug builds was in
  // between, even for no new tokens.
  void expect_stale_batches_to_be_noticed() {
    const HostTensor keys(DType::kFloat32, {0, kHeads, kHeadDim});
    const HostTensor values(DType::kFloat32, {0, kHeads, kHeadDimV});
    for (const auto& [batch, generations] : batches_) {
      const auto pages = batch.kv_page_indices();
      bool is_stale = false;
      for (std::size_t i = 0; i < pages.size(); ++i) {
        is_stale |= manager_.ref_count(pages[i]) == 0 ||
                    manager_.pool().generation(pages[i]) != generations[i];
      }
      const std::vector<std::int32_t> indptr(static_cast<std::size_t>(batch.batch_size()) + 1);
      bool is_refused = false;
      try {
        manager_.append_kv(keys.view(), values.view(), batch, indptr);
      } catch (const InvalidArgumentError&) {
        is_refused = true;
      }
      ASSERT_EQ(is_refused, is_stale);
    }
  }

  ByteSource source_;
  PagedKVCacheManager manager_;
  CacheDescriptor over_manager_{manager_};
  CacheDescriptor over_pool_{manager_.pool()};
  bool copies_by_caller_;
  std::map<SeqId, std::vector<std::int64_t>> tokens_;  // since the start, or since `keep`
  std::int64_t next_token_ = 0;
  std::int64_t num_copies_ = 0;
  struct Batch {
    FlashInferPackedData packed;
    std::vector<std::uint32_t> generations;  // of its pages when it was packed
  };
  std::deque<Batch> batches_;
};

class SequenceContents : public ::testing::TestWithParam<std::tuple<KVLayout, bool>> {};

TEST_P(SequenceContents, AreWhatWasAppended) {
  const auto [layout, copies_by_caller] = GetParam();
  auto random = testing::random_source(110 + 2 * static_cast<std::uint64_t>(layout) +
                                       static_cast<std::uint64_t>(copies_by_caller));
  std::int64_t num_copies = 0;
  for (int run = 0; run < 200 && !HasFailure(); ++run) {
    std::vector<std::uint8_t> bytes(1'500);
    for (auto& byte : bytes) byte = static_cast<std::uint8_t>(random() >> 32);
    Contents contents(bytes, layout, copies_by_caller);
    contents.run();
    num_copies += contents.num_copies();
  }
  EXPECT_GT(num_copies, 700);
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
