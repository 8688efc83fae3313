#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstdint>
#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "error_text.h"
#include "host_tensor.h"
#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"
#include "seqattn/paged_kv_cache_manager.h"

// read_kv and copy_pages, and storage beyond what 32 bits count.
namespace seqattn {
namespace {

using ::seqattn::testing::element;
using ::seqattn::testing::error_of;
using ::seqattn::testing::HostTensor;
using ::testing::HasSubstr;

constexpr std::int64_t kHuge = std::numeric_limits<std::int64_t>::max();

class ReadAndCopy : public ::testing::TestWithParam<KVLayout> {
 protected:
  ReadAndCopy() {
    descriptor_.allocate({1}, {10});
    manager_.append_kv(keys_.view(), values_.view(), descriptor_.pack_for_flashinfer({1}),
                       std::array{0, 10}, 1);
  }

  // Elements of tokens [first, first + count) of one of the tensors that were appended.
  static std::vector<float> part(const HostTensor& tensor, std::int64_t first, std::int64_t count) {
    const std::int64_t width = tensor.size() / 10;
    const std::vector<float> all = tensor.values();
    return {all.begin() + first * width, all.begin() + (first + count) * width};
  }

  std::mt19937_64 random_ = testing::random_source(40);
  PagedKVCacheManager manager_{{.num_pages = 6,
                                .page_size = 4,
                                .num_heads = 2,
                                .head_dim = 4,
                                .head_dim_v = 3,
                                .num_layers = 2,
                                .dtype = DType::kBFloat16,
                                .kv_layout = GetParam()}};
  CacheDescriptor descriptor_{manager_};
  const HostTensor keys_ = testing::random_tensor(random_, DType::kBFloat16, {10, 2, 4});
  const HostTensor values_ = testing::random_tensor(random_, DType::kBFloat16, {10, 2, 3});
};

TEST_P(ReadAndCopy, ReadsAnyPartInTheCachesTypeOrFloat32) {
  for (const DType dtype : {DType::kBFloat16, DType::kFloat32}) {
    for (std::int64_t first = 0; first <= 10; ++first) {
      for (std::int64_t count = 0; first + count <= 10; ++count) {
        const HostTensor keys(dtype, {count, 2, 4}), values(dtype, {count, 2, 3});
        manager_.read_kv(descriptor_.pages(1), first, count, keys.view(), values.view(), 1);
        EXPECT_EQ(keys.values(), part(keys_, first, count));
        EXPECT_EQ(values.values(), part(values_, first, count));
      }
    }
  }
}

TEST_P(ReadAndCopy, ReadsSlotsThatWereNeverWrittenAsZeros) {
  const HostTensor keys(DType::kFloat32, {2, 2, 4}), values(DType::kFloat32, {2, 2, 3});
  manager_.read_kv(descriptor_.pages(1), 10, 2, keys.view(), values.view(), 1);
  EXPECT_THAT(keys.values(), ::testing::Each(0.0f));
  manager_.read_kv(descriptor_.pages(1), 0, 2, keys.view(), values.view(), 0);
  EXPECT_THAT(values.values(), ::testing::Each(0.0f));
}

TEST_P(ReadAndCopy, WritesStridedOutputsWithoutTouchingGaps) {
  const HostTensor wide(DType::kFloat32, {3, 3, 8}), values(DType::kFloat32, {3, 2, 3});
  TensorView keys = wide.view();
  keys.shape = {3, 2, 4};
  manager_.read_kv(descriptor_.pages(1), 2, 3, keys, values.view(), 1);
  std::int64_t num_written = 0;
  for (const float value : wide.values()) num_written += value == value ? 1 : 0;
  EXPECT_EQ(num_written, 3 * 2 * 4);
  for (std::int64_t i = 0; i < 24; ++i) {
    EXPECT_EQ(element(keys, {i / 8, i / 4 % 2, i % 4}), keys_[2 * 8 + i]);
  }
}

TEST_P(ReadAndCopy, CopiesAllLayersInOrder) {
  manager_.allocate(2);
  manager_.copy_pages(std::vector<PageCopy>{{0, 3}, {3, 4}, {1, 3}});
  const HostTensor keys(DType::kBFloat16, {8, 2, 4}), values(DType::kBFloat16, {8, 2, 3});
  manager_.read_kv({4, 3}, 0, 8, keys.view(), values.view(), 1);
  EXPECT_EQ(keys.values(), part(keys_, 0, 8));
  EXPECT_EQ(values.values(), part(values_, 0, 8));
}

TEST_P(ReadAndCopy, ReadRefusesWhatIsNotThere) {
  const HostTensor keys(DType::kFloat32, {2, 2, 4}), values(DType::kFloat32, {2, 2, 3});
  const auto refusal = [&](PageIds pages, std::int64_t first, std::int64_t count, int layer = 0) {
    const auto message =
        error_of([&] { manager_.read_kv(pages, first, count, keys.view(), values.view(), layer); });
    EXPECT_THAT(keys.values(), ::testing::Each(::testing::IsNan()));
    EXPECT_THAT(values.values(), ::testing::Each(::testing::IsNan()));
    return message;
  };
  EXPECT_EQ(refusal({0, 1}, 7, 2),
            "read_kv: got first 7 and count 2; expected a part of the 8 tokens of 2 pages");
  EXPECT_THAT(refusal({0, 1}, -1, 2), HasSubstr("got first -1"));
  EXPECT_THAT(refusal({0, 1}, 0, -2), HasSubstr("count -2"));
  EXPECT_THAT(refusal({0, 1}, kHuge, kHuge), HasSubstr("got first 9223372036854775807"));
  EXPECT_THAT(refusal({}, 0, 2), HasSubstr("the 0 tokens of 0 pages"));
  EXPECT_THAT(refusal({0, 6}, 0, 2), HasSubstr("got page 6; expected 0 <= page < 6"));
  EXPECT_THAT(refusal({-1}, 0, 2), HasSubstr("got page -1"));
  EXPECT_THAT(refusal({0}, 0, 2, 2), HasSubstr("layer: got 2"));
  EXPECT_THAT(refusal({0}, 0, 3), HasSubstr("keys: got float32[2, 2, 4] on cpu"));
}

TEST_P(ReadAndCopy, ReadRefusesOutputsThatCannotBeWritten) {
  const HostTensor keys(DType::kFloat32, {2, 2, 4}), values(DType::kFloat32, {2, 2, 3});
  const auto refusal = [&](const std::function<void(TensorView&)>& change) {
    TensorView bad = values.view();
    change(bad);
    const auto message =
        error_of([&] { manager_.read_kv(descriptor_.pages(1), 0, 2, keys.view(), bad); });
    EXPECT_THAT(keys.values(), ::testing::Each(::testing::IsNan()));
    return message;
  };
  EXPECT_THAT(refusal([](TensorView& t) { t.read_only = true; }), HasSubstr("not a read-only"));
  EXPECT_THAT(refusal([](TensorView& t) { t.strides[0] = 0; }), HasSubstr("share memory"));
  EXPECT_THAT(refusal([](TensorView& t) { t.strides[1] = 2; }), HasSubstr("share memory"));
  EXPECT_THAT(refusal([](TensorView& t) { t.strides[2] = 2; }), HasSubstr("contiguous innermost"));
  EXPECT_THAT(refusal([](TensorView& t) { t.dtype = DType::kFloat16; }), HasSubstr("float16"));
  EXPECT_THAT(refusal([](TensorView& t) { t.device = cuda(2); }), HasSubstr("cuda:2"));
}

TEST_P(ReadAndCopy, ReadRefusesOutputsThatMeetEachOtherOrTheCache) {
  const HostTensor keys(DType::kFloat32, {2, 2, 4}), values(DType::kFloat32, {2, 2, 3});
  const auto before = testing::bytes_of(manager_.key_cache(1));
  const auto refusal = [&](TensorView k, TensorView v) {
    return error_of([&] { manager_.read_kv(descriptor_.pages(1), 0, 2, k, v); });
  };
  TensorView moved = values.view();
  moved.data = keys.view().data;
  EXPECT_EQ(refusal(keys.view(), moved),
            "keys: shares memory with values; expected an output of its own");
  moved.data = manager_.key_cache(1).data;
  EXPECT_EQ(refusal(keys.view(), moved),
            "values: shares memory with the key cache of layer 1; expected a tensor apart from the "
            "cache");
  EXPECT_THAT(keys.values(), ::testing::Each(::testing::IsNan()));
  EXPECT_EQ(testing::bytes_of(manager_.key_cache(1)), before);
}

TEST_P(ReadAndCopy, CopyRefusesAPageThatIsShared) {
  descriptor_.fork(1, 2, 8);  // pages 0 and 1
  manager_.allocate(1);
  const auto before = testing::bytes_of(manager_.key_cache(1));
  const std::array onto_shared{PageCopy{0, 3}, PageCopy{2, 1}};
  EXPECT_EQ(error_of([&] { manager_.copy_pages(onto_shared); }),
            "copy_pages: page 1 has 2 references; expected 1: a shared page is never written");
  EXPECT_EQ(testing::bytes_of(manager_.key_cache(1)), before);
  manager_.copy_pages(std::array{PageCopy{1, 3}, PageCopy{0, 2}});
}

TEST_P(ReadAndCopy, CopyRefusesPagesThatDoNotLive) {
  const auto before = testing::bytes_of(manager_.key_cache(1));
  const auto refusal = [&](PageCopy bad) {
    const std::array copies{PageCopy{0, 1}, bad};
    return error_of([&] { manager_.copy_pages(copies); });
  };
  EXPECT_EQ(refusal({0, 3}), "copy_pages: page 3 is free; expected a page in use");
  EXPECT_EQ(refusal({3, 0}), "copy_pages: page 3 is free; expected a page in use");
  EXPECT_THAT(refusal({0, 6}), HasSubstr("got page 6"));
  EXPECT_THAT(refusal({-1, 0}), HasSubstr("got page -1"));
  EXPECT_EQ(testing::bytes_of(manager_.key_cache(1)), before);
}

INSTANTIATE_TEST_SUITE_P(Layouts, ReadAndCopy, ::testing::Values(KVLayout::kNHD, KVLayout::kHND),
                         [](const auto& layout) { return std::string(to_string(layout.param)); });

// More than 2^31 elements and 2^32 bytes of keys; the system backs only what is written.
TEST(LargeStorage, IsAddressedWith64Bits) {
  auto random = testing::random_source(41);
  PagedKVCacheManager manager({.num_pages = 140'000,
                               .page_size = 16,
                               .num_heads = 8,
                               .head_dim = 128,
                               .head_dim_v = 1,
                               .num_layers = 1});
  ASSERT_GT(manager.key_cache().num_elements(), std::int64_t{1} << 31);
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1}, {16 * 139'997});
  descriptor.allocate({2}, {20});
  const auto keys = testing::random_tensor(random, DType::kFloat16, {20, 8, 128});
  const auto values = testing::random_tensor(random, DType::kFloat16, {20, 8, 1});
  manager.append_kv(keys.view(), values.view(), descriptor.pack_for_flashinfer({2}),
                    std::array{0, 20});
  descriptor.fork(2, 3);
  const auto copies = descriptor.allocate_decoding({3});
  EXPECT_EQ(copies, (std::vector<PageCopy>{{139'998, 139'999}}));
  const HostTensor read_keys(DType::kFloat16, {20, 8, 128}),
      read_values(DType::kFloat16, {20, 8, 1});
  manager.read_kv(descriptor.pages(3), 0, 20, read_keys.view(), read_values.view());
  EXPECT_EQ(read_keys.values(), keys.values());
  EXPECT_EQ(read_values.values(), values.values());
  EXPECT_EQ(element(manager.key_cache(), {139'999, 3, 7, 127}), keys[keys.size() - 1]);
  // 2^32 and 2^31 elements (or bytes) before the last pages nothing was written.
  const HostTensor first(DType::kFloat16, {20, 8, 128}), first_v(DType::kFloat16, {20, 8, 1});
  for (const PageId page : {139'997 - (1 << 17), 139'997 - (1 << 16), 0}) {
    manager.read_kv({page, page + 1}, 0, 20, first.view(), first_v.view());
    EXPECT_THAT(first.values(), ::testing::Each(0.0f));
  }
}

}  // namespace
}  // namespace seqattn
