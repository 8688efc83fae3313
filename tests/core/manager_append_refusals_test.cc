#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "seqattn/prefix_cache.h"

// Appends that are refused, each before a byte is written.
namespace seqattn {
namespace {

using ::seqattn::testing::bytes_of;
using ::seqattn::testing::error_of;
using ::seqattn::testing::HostTensor;
using ::seqattn::testing::state_of;
using ::testing::HasSubstr;

class AppendRefusals : public ::testing::Test {
 protected:
  AppendRefusals() { descriptor_.allocate({1, 2}, {6, 3}); }  // pages 0 1, and 2

  HostTensor tokens(std::int64_t n) {
    return testing::random_tensor(random_, DType::kFloat16, {n, 2, 4});
  }

  std::string refusal_of(const std::function<void()>& call) {
    const auto before = state_of(descriptor_);
    const auto keys = bytes_of(manager_.key_cache()), values = bytes_of(manager_.value_cache());
    const std::string message = error_of(call);
    EXPECT_EQ(state_of(descriptor_), before);
    EXPECT_EQ(bytes_of(manager_.key_cache()), keys);
    EXPECT_EQ(bytes_of(manager_.value_cache()), values);
    return message;
  }

  // Appends as many tokens as the indptr says.
  std::string refusal(const FlashInferPackedData& packed, std::vector<std::int32_t> indptr) {
    const HostTensor t = tokens(indptr.empty() ? 0 : std::max(indptr.back(), 0));
    return refusal_of([&] { manager_.append_kv(t.view(), t.view(), packed, indptr); });
  }
  std::string refusal(std::vector<SeqId> ids, std::vector<std::int32_t> indptr) {
    return refusal(descriptor_.pack_for_flashinfer(ids), std::move(indptr));
  }

  std::mt19937_64 random_ = testing::random_source(30);
  PagedKVCacheManager manager_{{.num_pages = 8, .page_size = 4, .num_heads = 2, .head_dim = 4}};
  CacheDescriptor descriptor_{manager_};
};

TEST_F(AppendRefusals, MoreTokensThanTheSequenceHolds) {
  EXPECT_EQ(refusal({1, 2}, {0, 6, 10}),
            "append: got 4 new tokens for row 1 of length 3; expected no more than the length, "
            "which counts them: allocate, then pack, first");
}

TEST_F(AppendRefusals, AnIndptrThatIsNone) {
  EXPECT_EQ(refusal({1, 2}, {0, 6}), "append_indptr: got 2 entries; expected 3");
  EXPECT_EQ(refusal({1, 2}, {}), "append_indptr: got 0 entries; expected 3");
  EXPECT_EQ(refusal({1, 2}, {1, 2, 3}), "append_indptr: starts at 1; expected 0");
  EXPECT_EQ(refusal({1, 2}, {0, 3, 2}),
            "append_indptr: falls from 3 to 2 at entry 2; expected entries that never fall");
  EXPECT_EQ(refusal({1, 2}, {0, -1, 2}),
            "append_indptr: falls from 0 to -1 at entry 1; expected entries that never fall");
}

TEST_F(AppendRefusals, ASharedPage) {
  descriptor_.fork(1, 3);
  EXPECT_EQ(refusal({2, 1}, {0, 1, 2}),
            "append: page 1 has 2 references; expected 1: append before sharing");
  EXPECT_EQ(refusal({3}, {0, 6}),
            "append: page 0 has 2 references; expected 1: append before sharing");
}

// Only pages that are written count.
TEST_F(AppendRefusals, NotASharedPageInFrontOfTheNewTokens) {
  descriptor_.fork(1, 3, 4);
  const HostTensor t = tokens(2);
  manager_.append_kv(t.view(), t.view(), descriptor_.pack_for_flashinfer({1}), std::array{0, 2});
  EXPECT_EQ(testing::element(manager_.key_cache(), {1, 0, 0, 0}), t[0]);
  EXPECT_THAT(refusal({1}, {0, 3}), HasSubstr("page 0 has 2 references"));
}

TEST_F(AppendRefusals, APageThatTwoRowsWrite) {
  EXPECT_EQ(refusal({2, 2}, {0, 1, 2}),
            "append: page 2 would be written twice; expected a row to have its own pages to write");
  EXPECT_THAT(refusal(FlashInferPackedData({5, 6, 5}, {0, 2, 3}, {4, 1}), {0, 5, 6}),
              HasSubstr("page 5 would be written twice"));
  EXPECT_THAT(refusal(FlashInferPackedData({5, 5}, {0, 2}, {4}), {0, 5}),
              HasSubstr("page 5 would be written twice"));
}

TEST_F(AppendRefusals, ABatchOfPagesThatHaveBeenFreed) {
  const auto packed = descriptor_.pack_for_flashinfer({1, 2});
  descriptor_.release({2});
  EXPECT_EQ(refusal(packed, {0, 1, 2}),
            "kv_page_indices: page 2 at entry 2 is free; pack the batch again after a release");
  descriptor_.allocate({1}, {4});
  EXPECT_THAT(refusal(packed, {0, 0, 1}), HasSubstr("page 2 at entry 2 is free"));
}

// One row too many has been packed, with a page that its caller has given away.
TEST_F(AppendRefusals, ABatchPackedOverAStolenPage) {
  manager_.unref({2});
  EXPECT_THAT(refusal({2}, {0, 1}), HasSubstr("page 2 at entry 0 is free"));
}

TEST_F(AppendRefusals, NotABatchThatIsOlderThanTheReleaseOfAnother) {
  const auto packed = descriptor_.pack_for_flashinfer({1});
  descriptor_.release({2});
  const HostTensor t = tokens(1);
  manager_.append_kv(t.view(), t.view(), packed, std::array{0, 1});
  EXPECT_EQ(testing::element(manager_.key_cache(), {1, 1, 0, 0}), t[0]);
}

TEST_F(AppendRefusals, ABatchOfAnotherPool) {
  PagePool other_pool(8, 4);
  CacheDescriptor other(other_pool);
  other.allocate({1}, {3});
  EXPECT_EQ(refusal(other.pack_for_flashinfer({1}), {0, 1}),
            "packed data: packed by a descriptor of another pool; expected one of the pool in use");
}

TEST_F(AppendRefusals, ForeignTablesThatDoNotFitThePool) {
  EXPECT_EQ(refusal(FlashInferPackedData({0, 8}, {0, 2}, {1}), {0, 1}),
            "kv_page_indices: got page 8 at entry 1; expected 0 <= page < 8");
  EXPECT_EQ(refusal(FlashInferPackedData({4}, {0, 1}, {5}), {0, 1}),
            "kv_last_page_len: got 5 for row 0; expected at most page_size, 4");
  descriptor_.fork(2, 3);
  EXPECT_THAT(refusal(FlashInferPackedData({2}, {0, 1}, {3}), {0, 1}),
              HasSubstr("page 2 has 2 references"));
}

// They are another system's, which keeps its own counts: pages need only exist.
TEST_F(AppendRefusals, NotForeignTablesOfPagesThatAreFreeHere) {
  const HostTensor t = tokens(2);
  manager_.append_kv(t.view(), t.view(), FlashInferPackedData({5, 7}, {0, 2}, {1}),
                     std::array{0, 2});
  EXPECT_EQ(testing::element(manager_.key_cache(), {5, 3, 0, 0}), t[0]);
  EXPECT_EQ(testing::element(manager_.key_cache(), {7, 0, 0, 0}), t[8]);
}

TEST_F(AppendRefusals, TensorsOfAnotherShapeTypeStrideOrDevice) {
  const HostTensor good = tokens(2);
  const auto packed = descriptor_.pack_for_flashinfer({1});
  const auto with = [&](const std::function<void(TensorView&)>& change) {
    TensorView bad = good.view();
    change(bad);
    const std::array<std::int32_t, 2> indptr = {0, 2};
    const auto of_values =
        refusal_of([&] { manager_.append_kv(good.view(), bad, packed, indptr); });
    EXPECT_THAT(of_values, ::testing::StartsWith("values: got "));
    return refusal_of([&] { manager_.append_kv(bad, good.view(), packed, indptr); });
  };
  EXPECT_EQ(with([](TensorView& t) { t.shape[0] = 1; }),
            "keys: got float16[1, 2, 4] on cpu; expected float16 or float32 [2, 2, 4] on cpu");
  EXPECT_THAT(with([](TensorView& t) { t.shape[1] = 1; }), HasSubstr("got float16[2, 1, 4]"));
  EXPECT_THAT(with([](TensorView& t) { t.shape[2] = 3; }), HasSubstr("got float16[2, 2, 3]"));
  EXPECT_THAT(with([](TensorView& t) { t.rank = 2; }), HasSubstr("got float16[2, 2]"));
  EXPECT_THAT(with([](TensorView& t) { t = {}; }), HasSubstr("got no tensor"));
  EXPECT_THAT(with([](TensorView& t) { t.dtype = DType::kBFloat16; }), HasSubstr("got bfloat16"));
  EXPECT_THAT(with([](TensorView& t) { t.device = cuda(); }), HasSubstr("on cuda:0; expected"));
  EXPECT_THAT(with([](TensorView& t) { t.strides[2] = 2; }), HasSubstr("contiguous innermost"));
  EXPECT_THAT(with([](TensorView& t) { t.strides[0] = -8; }), HasSubstr("negative strides"));
  EXPECT_THAT(with([](TensorView& t) { t.data = nullptr; }), HasSubstr("null pointer"));
}

// What only a prefix cache holds has one reference, as a page has that a sequence may write.
TEST_F(AppendRefusals, PagesThatOnlyAPrefixCacheHolds) {
  PrefixCache cache(manager_.pool());
  descriptor_.allocate({7}, {8});
  const auto stale = descriptor_.pack_for_flashinfer({7});
  const std::vector<TokenId> ids{1, 2, 3, 4, 5, 6, 7, 8};
  cache.insert(descriptor_, 7, ids);
  descriptor_.release({7});
  EXPECT_EQ(refusal(stale, {0, 2}),
            "append: page 4 is in a prefix cache; expected one that a sequence alone holds: a "
            "batch ends with the release of its sequences, so pack again");

  const PrefixHandle handle = cache.pin(ids);
  const std::vector<PageId> pages(handle.pages().begin(), handle.pages().end());
  const HostTensor t = tokens(1);
  EXPECT_THAT(refusal_of([&] { manager_.write_kv(pages, 0, 1, t.view(), t.view()); }),
              HasSubstr("page 3 is in a prefix cache"));
  EXPECT_THAT(refusal_of([&] {
                manager_.move_tokens(std::array{TokenMove{0, 0, 3, 0}});
              }),
              HasSubstr("move_tokens: page 3 is in a prefix cache"));
  EXPECT_THAT(refusal_of([&] {
                manager_.copy_pages(std::array{PageCopy{0, 4}});
              }),
              HasSubstr("copy_pages: page 4 is in a prefix cache"));
  EXPECT_EQ(refusal_of([&] { descriptor_.adopt(8, pages, 8); }),
            "adopt: page 3 has 1 references for 2 holders, a prefix cache among them; expected one "
            "for each: call ref first, or attach");

  manager_.pool().ref(pages);
  descriptor_.adopt(8, pages, 8);
  cache.check_invariants();
  EXPECT_TRUE(manager_.pool().is_cached(3));
  EXPECT_FALSE(manager_.pool().is_cached(0));
  EXPECT_FALSE(manager_.pool().is_cached(-1));
}

// A page that the cache has given up is like any other.
TEST_F(AppendRefusals, NoPagesThatAPrefixCacheHeldOnce) {
  for (const bool ends : {false, true}) {
    auto cache = std::make_unique<PrefixCache>(manager_.pool());
    const std::vector<TokenId> ids{1, 2, 3, 4};
    descriptor_.allocate({7}, {4});
    cache->insert(descriptor_, 7, ids);
    EXPECT_THAT(refusal({7}, {0, 1}), HasSubstr("2 references"));
    ends ? cache.reset() : cache->clear();
    const HostTensor t = tokens(1);
    EXPECT_NO_THROW(manager_.append_kv(t.view(), t.view(), descriptor_.pack_for_flashinfer({7}),
                                       std::array{0, 1}));
    descriptor_.release({7});
  }
}

TEST_F(AppendRefusals, TensorsInsideTheCache) {
  const HostTensor good = tokens(2);
  const auto packed = descriptor_.pack_for_flashinfer({1});
  TensorView inside = good.view();
  inside.data = manager_.value_cache().data;
  EXPECT_EQ(refusal_of([&] {
              manager_.append_kv(inside, good.view(), packed, std::array{0, 2});
            }),
            "keys: shares memory with the value cache of layer 0; expected a tensor apart from the "
            "cache");
}

TEST_F(AppendRefusals, LayersOutOfRange) {
  const HostTensor t = tokens(1);
  const auto packed = descriptor_.pack_for_flashinfer({1});
  for (const int layer : {-1, 1}) {
    EXPECT_EQ(refusal_of([&] {
                manager_.append_kv(t.view(), t.view(), packed, std::array{0, 1}, layer);
              }),
              "layer: got " + std::to_string(layer) + "; expected 0 <= layer < 1");
  }
}

}  // namespace
}  // namespace seqattn
