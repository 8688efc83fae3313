#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <vector>

#include "conformance_suite.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"
#include "tensor.h"

// The appends that a planned batch refuses, having written nothing.
namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class RefusedAppends : public DeviceSuite {
 protected:
  void prepare() override {
    c.kv_dtype = DType::kFloat16;
    c.head_dim_v = 20;
    manager = std::make_unique<PagedKVCacheManager>(c.cache_config(8, device()));
    descriptor = std::make_unique<CacheDescriptor>(*manager);
    descriptor->allocate({1, 2}, {6, 3});
    attention = std::make_unique<BatchAttention>(*manager, c.options());
    plan({1, 2}, {0, 6, 9});
  }
  void plan(const std::vector<SeqId>& ids, const std::vector<std::int32_t>& indptr) {
    attention->plan(descriptor->pack_for_flashinfer(ids), indptr);
  }
  Tensor tokens(std::int64_t count, int dim, DType dtype = DType::kFloat32) {
    Tensor tensor(device(), dtype, {count, c.num_kv_heads, dim});
    tensor.write(std::vector<double>(static_cast<std::size_t>(tensor.view().num_elements()), 1.5));
    return tensor;
  }
  std::vector<std::byte> cache_bytes() const {
    const TensorView keys = manager->key_cache(), values = manager->value_cache();
    auto bytes = copy_to_host(device(), keys.data, keys.num_elements() * size_of(keys.dtype));
    const auto more =
        copy_to_host(device(), values.data, values.num_elements() * size_of(values.dtype));
    bytes.insert(bytes.end(), more.begin(), more.end());
    return bytes;
  }
  std::string refusal(const TensorView& keys, const TensorView& values, int layer = 0) {
    const auto before = cache_bytes();
    const std::string error = error_of([&] { attention->append_kv(keys, values, layer); });
    EXPECT_TRUE(cache_bytes() == before) << "a refused append writes nothing";
    return error;
  }
  // Of new tokens that are as many as the planned queries, and right in themselves.
  std::string refusal() {
    const std::int64_t count = attention->num_q_tokens();
    return refusal(tokens(count, c.head_dim).view(), tokens(count, c.dim_v()).view());
  }

  AttentionCase c;
  std::unique_ptr<PagedKVCacheManager> manager;
  std::unique_ptr<CacheDescriptor> descriptor;
  std::unique_ptr<BatchAttention> attention;
};

TEST_P(RefusedAppends, HaveAnotherNumberOfTokens) {
  const Tensor keys = tokens(9, c.head_dim), values = tokens(9, c.dim_v());
  for (const std::int64_t count : {0, 8, 10}) {
    EXPECT_THAT(refusal(tokens(count, c.head_dim).view(), values.view()),
                AllOf(StartsWith("keys: got float32[" + std::to_string(count) + ", 2, 32]"),
                      HasSubstr("expected float16 or float32 [9, 2, 32]")));
    EXPECT_THAT(refusal(keys.view(), tokens(count, c.dim_v()).view()),
                AllOf(StartsWith("values: got float32[" + std::to_string(count) + ", 2, 20]"),
                      HasSubstr("expected float16 or float32 [9, 2, 20]")));
  }
  attention->append_kv(keys.view(), values.view());
}

TEST_P(RefusedAppends, HaveAnotherWidthTypeDeviceOrStride) {
  const Tensor keys = tokens(9, c.head_dim), values = tokens(9, c.dim_v());
  EXPECT_THAT(refusal(values.view(), keys.view()), StartsWith("keys: got float32[9, 2, 20]"));
  EXPECT_THAT(refusal(tokens(9, c.head_dim, DType::kBFloat16).view(), values.view()),
              StartsWith("keys: got bfloat16[9, 2, 32]"));
  TensorView elsewhere = values.view();
  elsewhere.device = device() == cpu() ? cuda(3) : cpu();
  EXPECT_THAT(refusal(keys.view(), elsewhere), HasSubstr("20] on " + to_string(elsewhere.device)));
  TensorView spread = keys.view();
  spread.strides[2] = 2;
  EXPECT_THAT(refusal(spread, values.view()), HasSubstr("contiguous innermost dimension"));
  TensorView nowhere = values.view();
  nowhere.data = nullptr;
  EXPECT_THAT(refusal(keys.view(), nowhere), HasSubstr("not a null pointer"));
}

TEST_P(RefusedAppends, ReadFromTheCache) {
  const Tensor keys = tokens(9, c.head_dim), values = tokens(9, c.dim_v());
  const auto in = [&](const TensorView& cache, int dim) {
    return TensorView::contiguous(cache.data, DType::kFloat16, {9, c.num_kv_heads, dim}, device());
  };
  EXPECT_THAT(refusal(in(manager->value_cache(), c.head_dim), values.view()),
              StartsWith("keys: shares memory with the value cache of layer 0; expected"));
  EXPECT_THAT(refusal(keys.view(), in(manager->key_cache(), c.dim_v())),
              StartsWith("values: shares memory with the key cache of layer 0; expected"));
}

TEST_P(RefusedAppends, NameALayerThatTheCacheDoesNotHave) {
  const Tensor keys = tokens(9, c.head_dim), values = tokens(9, c.dim_v());
  for (const int layer : {-1, 1}) {
    EXPECT_THAT(refusal(keys.view(), values.view(), layer),
                StartsWith("layer: got " + std::to_string(layer)));
  }
}

TEST_P(RefusedAppends, WouldWriteASharedPage) {
  descriptor->fork(1, 3);
  EXPECT_THAT(refusal(), AllOf(HasSubstr("page 0 has 2 references"), HasSubstr("before sharing")));
  plan({3, 2}, {0, 1, 4});
  EXPECT_THAT(refusal(), HasSubstr("page 1 has 2 references"));
  descriptor->allocate({3}, {1});  // takes a page of its own
  plan({3, 2}, {0, 1, 4});
  attention->append_kv(tokens(4, c.head_dim).view(), tokens(4, c.dim_v()).view());
}

TEST_P(RefusedAppends, WouldWriteOnePageTwice) {
  plan({1, 2, 1}, {0, 1, 2, 3});
  EXPECT_THAT(refusal(), HasSubstr("page 1 would be written twice"));
  attention->plan({{5, 5}, {0, 1, 2}, {1, 2}}, std::vector<std::int32_t>{0, 1, 2});
  EXPECT_THAT(refusal(), HasSubstr("page 5 would be written twice"));
}

TEST_P(RefusedAppends, BringMoreTokensThanTheRowHas) {
  c.causal = false;
  attention = std::make_unique<BatchAttention>(*manager, c.options());
  plan({1, 2}, {0, 3, 7});
  EXPECT_THAT(refusal(), AllOf(HasSubstr("4 new tokens for row 1 of length 3"),
                               HasSubstr("allocate, then pack, first")));
  descriptor->allocate({4}, {0});
  plan({4}, {0, 2});
  EXPECT_THAT(refusal(), HasSubstr("2 new tokens for row 0 of length 0"));
}

TEST_P(RefusedAppends, DoNotIncludeRowsWithoutNewTokens) {
  descriptor->fork(1, 3);
  plan({1, 2, 3, 1}, {0, 0, 3, 3, 3});
  attention->append_kv(tokens(3, c.head_dim).view(), tokens(3, c.dim_v()).view());
  plan({1, 3}, {0, 0, 0});
  attention->append_kv(tokens(0, c.head_dim).view(), tokens(0, c.dim_v()).view());
}

SEQATTN_INSTANTIATE_DEVICES(RefusedAppends);

}  // namespace
}  // namespace seqattn::testing
