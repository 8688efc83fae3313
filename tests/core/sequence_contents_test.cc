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

// Random growth, forks, truncations and releases over real storage. Tokens are numbered as they are
// appended; whatever happens to others, every sequence holds the tokens that it was given.
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
      switch (source_.below(8)) {
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
    std::vector<std::int32_t> indptr = {0};
    const std::int64_t first_token = next_token_;
    for (std::size_t i = 0; i < ids.size(); ++i) {
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(lengths[i]));
      for (std::int64_t j = 0; j < lengths[i]; ++j) tokens_[ids[i]].push_back(next_token_++);
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
    const auto& all = tokens_.at(parent);
    const auto size = static_cast<std::int64_t>(all.size());
    const std::int64_t n = source_.one_in(2) ? size : source_.below(static_cast<int>(size) + 1);
    descriptor().fork(parent, child, n);
    tokens_[child] = {all.begin(), all.begin() + n};
  }

  void truncate() {
    const SeqId id = any_id();
    if (!tokens_.contains(id)) return;
    auto& all = tokens_.at(id);
    const int n = source_.below(static_cast<int>(all.size()) + 1);
    descriptor().truncate(id, n);
    all.resize(static_cast<std::size_t>(n));
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
    for (const auto& [id, expected] : tokens_) {
      const auto n = static_cast<std::int64_t>(expected.size());
      ASSERT_EQ(descriptor().length(id), n);
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
  std::map<SeqId, std::vector<std::int64_t>> tokens_;
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
  EXPECT_GT(num_copies, 1'000);
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
