// What would break a captured graph is an error while it is captured, not a stale replay; and an
// error leaves the capture as it was.
#include <gmock/gmock.h>

#include <array>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "error_text.h"
#include "gpu_case.h"
#include "gpu_support.h"
#include "random_source.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/error.h"

namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

class CudaGraphErrors : public GpuTest {
 protected:
  static constexpr std::int64_t kTokens = 4;  // the capacity
  void set_up() override {
    own_stream = std::make_unique<OwnStream>();
    manager = std::make_unique<PagedKVCacheManager>(
        KVCacheConfig{.num_pages = 64, .num_heads = 2, .head_dim = 128, .device = cuda(0)});
    sequences = std::make_unique<CacheDescriptor>(*manager);
    sequences->allocate({1, 2, 3}, {20, 30, 40});
    packed = sequences->pack_for_flashinfer({1, 2, 3});
  }
  std::unique_ptr<BatchAttention> attention(const PlanCapacity& given,
                                            AttentionOptions options = {.num_qo_heads = 8}) {
    return std::make_unique<BatchAttention>(*manager, options, given);
  }
  std::unique_ptr<BatchAttention> planned(const PlanCapacity& given) {
    auto object = attention(given);
    object->plan(packed, indptr, {}, on());
    own_stream->wait();
    return object;
  }
  Stream on() const { return own_stream->get(); }
  static Tensor tokens(int heads, std::int64_t rows) {
    return {cuda(0), DType::kFloat16, {rows, heads, 128}};
  }
  // The message of the Exception that the call throws while the stream is captured.
  template <class Exception>
  std::string error_under_capture(const std::function<void()>& call) {
    std::string text;
    const CapturedGraph graph(*own_stream, [&] { text = error_of<Exception>(call); });
    return text;  // the capture ended well
  }

  std::unique_ptr<PagedKVCacheManager> manager;
  std::unique_ptr<CacheDescriptor> sequences;
  FlashInferPackedData packed;
  const std::vector<std::int32_t> indptr{0, 1, 2, 3};
  const PlanCapacity capacity{.max_sequences = 4, .max_q_tokens = kTokens, .max_pages = 64};
  std::unique_ptr<OwnStream> own_stream;
};

TEST_F(CudaGraphErrors, PlanWantsToBeOutside) {
  const auto object = planned(capacity);
  EXPECT_THAT(
      error_under_capture<UnsupportedError>([&] { object->plan(packed, indptr, {}, on()); }),
      AllOf(HasSubstr("plan"), HasSubstr("captured"), HasSubstr("outside")));
  // The plan before still stands.
  const Tensor q = tokens(8, 3), out = tokens(8, 3);
  object->run(q.view(), out.view(), {}, 0, on());
  own_stream->wait();
}

TEST_F(CudaGraphErrors, AnObjectWithoutACapacityIsRefused) {
  const auto object = planned({});
  const Tensor q = tokens(8, 3), out = tokens(8, 3), k = tokens(2, 3);
  EXPECT_THAT(error_under_capture<UnsupportedError>(
                  [&] { object->run(q.view(), out.view(), {}, 0, on()); }),
              AllOf(HasSubstr("run"), HasSubstr("captured"), HasSubstr("capacity")));
  EXPECT_THAT(error_under_capture<UnsupportedError>(
                  [&] { object->append_kv(k.view(), k.view(), 0, on()); }),
              AllOf(HasSubstr("append_kv"), HasSubstr("captured"), HasSubstr("capacity")));
}

TEST_F(CudaGraphErrors, TensorsMustHaveTheRowsOfTheCapacity) {
  const auto object = planned(capacity);
  const Tensor q = tokens(8, 3), out = tokens(8, 3), k = tokens(2, 3);
  EXPECT_THAT(error_under_capture<InvalidArgumentError>(
                  [&] { object->run(q.view(), out.view(), {}, 0, on()); }),
              AllOf(HasSubstr("run"), HasSubstr("3 tokens"), HasSubstr("expected 4")));
  EXPECT_THAT(error_under_capture<InvalidArgumentError>(
                  [&] { object->append_kv(k.view(), k.view(), 0, on()); }),
              AllOf(HasSubstr("append_kv"), HasSubstr("3 tokens"), HasSubstr("expected 4")));
}

TEST_F(CudaGraphErrors, CallsThatUploadTheirTablesAreRefused) {
  const Tensor k = tokens(2, 3), v = tokens(2, 3);
  EXPECT_THAT(error_under_capture<UnsupportedError>(
                  [&] { manager->append_kv(k.view(), v.view(), packed, indptr, 0, on()); }),
              AllOf(HasSubstr("captured"), HasSubstr("BatchAttention")));
  EXPECT_THAT(error_under_capture<UnsupportedError>([&] {
                manager->read_kv(sequences->pages(1), 0, 3, k.view(), v.view(), 0, on());
              }),
              HasSubstr("captured"));
  const PageCopy copy{sequences->pages(1)[0], sequences->pages(2)[0]};
  EXPECT_THAT(error_under_capture<UnsupportedError>(
                  [&] { manager->copy_pages(std::span(&copy, 1), on()); }),
              HasSubstr("copy_pages"));
  // Growing a shared page copies it; refused, the descriptor is as it was.
  sequences->fork(1, 9);
  const auto error =
      error_under_capture<UnsupportedError>([&] { sequences->allocate_decoding({9}, on()); });
  EXPECT_THAT(error, HasSubstr("copy_pages"));
  EXPECT_EQ(sequences->length(9), 20);
  sequences->check_invariants();
}

TEST_F(CudaGraphErrors, LongRowsAndMasksNeedAnObjectWithoutACapacity) {
  const auto object = attention({.max_sequences = 4, .max_q_tokens = 99, .max_pages = 64});
  EXPECT_THAT(error_of<UnsupportedError>([&] {
                object->plan(packed, std::vector<std::int32_t>{0, 1, 2, 35}, {}, on());
              }),
              AllOf(HasSubstr("row 2"), HasSubstr("33 queries"), HasSubstr("up to 32")));
  const std::vector<std::uint8_t> mask(20 + 30 + 40, 1);
  EXPECT_THAT(
      error_of<UnsupportedError>([&] { object->plan(packed, indptr, {.mask = mask}, on()); }),
      HasSubstr("mask"));
}

// A replayed append writes without a call that could refuse it: plan does.
TEST_F(CudaGraphErrors, PlansThatACapturedAppendMustNotWriteAreRefused) {
  const auto object = planned(capacity), other = planned(capacity);
  const Tensor k = tokens(2, kTokens), v = tokens(2, kTokens);
  const CapturedGraph graph(*own_stream, [&] { object->append_kv(k.view(), v.view(), 0, on()); });
  sequences->fork(1, 9);  // shares the page that its next token would go to
  const auto shared = sequences->pack_for_flashinfer({9, 2, 3});
  EXPECT_NO_THROW(other->plan(shared, indptr, {}, on()));
  EXPECT_THAT(error_of([&] { object->plan(shared, indptr, {}, on()); }),
              HasSubstr("append before sharing"));
  sequences->release({9});
  EXPECT_NO_THROW(object->plan(sequences->pack_for_flashinfer({1, 2, 3}), indptr, {}, on()));
  graph.launch(*own_stream);
  own_stream->wait();
}

TEST_F(CudaGraphErrors, SequencesWithAWindowOrATreeNeedAnObjectWithoutACapacity) {
  const auto object = planned(capacity), without = attention({});
  const auto expect_refused = [&](const std::vector<std::int32_t>& q_indptr, const char* word) {
    const auto batch = sequences->pack_for_flashinfer({1, 2, 3});
    EXPECT_THAT(error_of<UnsupportedError>([&] { object->plan(batch, q_indptr, {}, on()); }),
                AllOf(HasSubstr(word), HasSubstr("without a capacity")));
    EXPECT_NO_THROW(without->plan(batch, q_indptr, {}, on()));
  };
  sequences->set_window(2, {.window = 16, .num_sink_tokens = 4});
  expect_refused(indptr, "a window");
  sequences->set_window(2, {});
  sequences->allocate_tree(3, {-1, 0});
  expect_refused({0, 1, 2, 4}, "a tree");
  sequences->truncate(3, 40);
  EXPECT_NO_THROW(object->plan(sequences->pack_for_flashinfer({1, 2, 3}), indptr, {}, on()));
  own_stream->wait();
}

TEST_F(CudaGraphErrors, ACapacityNamesAllThatSizesAGraph) {
  EXPECT_THAT(error_of([&] { attention({.max_q_tokens = 4, .max_pages = 64}); }),
              AllOf(HasSubstr("max_sequences 0"), HasSubstr("expected all three")));
  EXPECT_THAT(error_of([&] { attention({.max_sequences = 4, .max_pages = 64}); }),
              HasSubstr("max_q_tokens 0"));
  EXPECT_THAT(error_of([&] { attention({.max_sequences = 4, .max_q_tokens = 4}); }),
              HasSubstr("max_pages 0"));
  PlanCapacity too_long = capacity;
  too_long.max_q_len = 33;
  EXPECT_THAT(error_of<UnsupportedError>([&] { attention(too_long); }),
              AllOf(HasSubstr("max_q_len 33"), HasSubstr("up to 32")));
}

// A plan that is refused leaves the one before, and the graph that replays it.
TEST_F(CudaGraphErrors, ARefusedPlanLeavesTheGraphAsItWas) {
  const auto object = planned(capacity);
  const Tensor q = tokens(8, kTokens), out = tokens(8, kTokens);
  Tensor writer = q;
  std::vector<double> queries(static_cast<std::size_t>(q.view().num_elements()), 0.5);
  writer.write(queries);
  const CapturedGraph graph(*own_stream, [&] { object->run(q.view(), out.view(), {}, 0, on()); });
  graph.launch(*own_stream);
  own_stream->wait();
  const auto before = out.bytes();
  sequences->allocate({4, 5}, {10, 10});
  EXPECT_THROW(object->plan(sequences->pack_for_flashinfer({1, 2, 3, 4, 5}),
                            std::vector<std::int32_t>{0, 1, 2, 3, 4, 4}, {}, on()),
               InvalidArgumentError);
  fill_with_nan(out.view());
  graph.launch(*own_stream);
  own_stream->wait();
  EXPECT_TRUE(out.bytes() == before);
}

}  // namespace
}  // namespace seqattn::testing
