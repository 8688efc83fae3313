#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "conformance.h"
#include "conformance_suite.h"
#include "error_text.h"
#include "seqattn/cache_descriptor.h"

// The tensors that a run refuses, and what it leaves behind: nothing.
namespace seqattn::testing {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::StartsWith;

class RefusedRuns : public DeviceSuite {
 protected:
  struct Call {
    TensorView q, out;
    RunOptions options;
    int layer = 0;
  };

  void prepare() override {
    c.kv_dtype = DType::kFloat16;
    c.head_dim_v = 24;
    c.sinks = true;
    rows = random_rows(c, random);
    batch = std::make_unique<PagedBatch>(c, rows, device(), random);
    attention = std::make_unique<BatchAttention>(batch->manager(), c.options());
    attention->plan(batch->packed(), qo_indptr_of(rows));
  }

  // The message that a good call, changed like this, is refused with. Its outputs stay as they
  // were, and the good call still works afterwards.
  std::string refusal(const std::function<void(Call&)>& change) {
    CallTensors tensors(c, rows, device());
    const auto out = tensors.out.bytes(), lse = tensors.lse.bytes(), q = tensors.q.bytes();
    const auto keys = batch->key_bytes(), values = batch->value_bytes();
    Call call{tensors.q.view(), tensors.out.view(), tensors.run_options()};
    change(call);
    const auto error =
        error_of([&] { attention->run(call.q, call.out, call.options, call.layer); });
    EXPECT_TRUE(out == tensors.out.bytes() && lse == tensors.lse.bytes());
    EXPECT_TRUE(q == tensors.q.bytes() && keys == batch->key_bytes() &&
                values == batch->value_bytes());
    attention->run(tensors.q.view(), tensors.out.view(), tensors.run_options());
    expect_reference(c, rows, tensors);
    return error;
  }
  // The same for a tensor of the call that is changed in some way.
  std::string refusal(TensorView Call::*tensor, const std::function<void(TensorView&)>& change) {
    return refusal([&](Call& call) { change(call.*tensor); });
  }
  std::string refusal(TensorView RunOptions::*tensor,
                      const std::function<void(TensorView&)>& change) {
    return refusal([&](Call& call) { change(call.options.*tensor); });
  }

  AttentionCase c;
  std::vector<ref::Row> rows;
  std::unique_ptr<PagedBatch> batch;
  std::unique_ptr<BatchAttention> attention;
};

TEST_P(RefusedRuns, HaveTensorsOfAnotherShape) {
  for (int axis = 0; axis < 3; ++axis) {
    for (const int change : {-1, 1}) {
      const auto resize = [&](TensorView& view) {
        view.shape[static_cast<std::size_t>(axis)] += change;
      };
      EXPECT_THAT(refusal(&Call::q, resize),
                  AllOf(StartsWith("q: got float32["),
                        HasSubstr("expected float16 or float32 [17, 4, 32] on")));
      EXPECT_THAT(refusal(&Call::out, resize),
                  AllOf(StartsWith("out: got float32["),
                        HasSubstr("expected float16 or float32 [17, 4, 24] on")));
      if (axis == 2) continue;
      EXPECT_THAT(refusal(&RunOptions::lse, resize),
                  AllOf(StartsWith("lse: got float32["), HasSubstr("expected float32 [17, 4] on")));
    }
  }
  EXPECT_THAT(
      refusal(&RunOptions::sink_logits, [](TensorView& view) { view.shape[0] = 2; }),
      AllOf(StartsWith("sink_logits: got float32[2]"), HasSubstr("expected float32 [4] on")));
}

TEST_P(RefusedRuns, HaveTensorsOfAnotherRank) {
  const auto flatten = [](TensorView& view) { --view.rank; };
  EXPECT_THAT(refusal(&Call::q, flatten), StartsWith("q: got float32[17, 4]"));
  EXPECT_THAT(refusal(&Call::out, flatten), StartsWith("out: got float32[17, 4]"));
  EXPECT_THAT(refusal(&RunOptions::lse, flatten), StartsWith("lse: got float32[17]"));
  EXPECT_THAT(refusal(&RunOptions::sink_logits,
                      [](TensorView& view) {
                        view = TensorView::contiguous(view.data, view.dtype, {4, 1}, view.device);
                      }),
              StartsWith("sink_logits: got float32[4, 1]"));
}

TEST_P(RefusedRuns, LackATensor) {
  const auto remove = [](TensorView& view) { view = {}; };
  EXPECT_THAT(refusal(&Call::q, remove), StartsWith("q: got no tensor; expected"));
  EXPECT_THAT(refusal(&Call::out, remove), StartsWith("out: got no tensor; expected"));
}

TEST_P(RefusedRuns, HaveTensorsOfAnotherType) {
  const auto retype = [](DType dtype) { return [dtype](TensorView& view) { view.dtype = dtype; }; };
  EXPECT_THAT(refusal(&Call::q, retype(DType::kBFloat16)),
              AllOf(StartsWith("q: got bfloat16["), HasSubstr("expected float16 or float32 ")));
  EXPECT_THAT(refusal(&Call::out, retype(DType::kBFloat16)),
              AllOf(StartsWith("out: got bfloat16["), HasSubstr("expected float16 or float32 ")));
  EXPECT_THAT(refusal(&RunOptions::lse, retype(DType::kFloat16)),
              AllOf(StartsWith("lse: got float16["), HasSubstr("expected float32 [")));
  EXPECT_THAT(refusal(&RunOptions::sink_logits, retype(DType::kFloat16)),
              AllOf(StartsWith("sink_logits: got float16["), HasSubstr("expected float32 [")));
}

TEST_P(RefusedRuns, HaveTensorsOnAnotherDevice) {
  const auto move = [this](TensorView& view) { view.device = device() == cpu() ? cuda(0) : cpu(); };
  for (const auto tensor : {&Call::q, &Call::out}) {
    EXPECT_THAT(refusal(tensor, move),
                AllOf(HasSubstr("] on "), HasSubstr("] on " + to_string(device()))));
  }
  for (const auto tensor : {&RunOptions::lse, &RunOptions::sink_logits}) {
    EXPECT_THAT(refusal(tensor, move), HasSubstr("] on " + to_string(device())));
  }
}

TEST_P(RefusedRuns, HaveTensorsWithoutMemory) {
  const auto drop = [](TensorView& view) { view.data = nullptr; };
  for (const auto tensor : {&Call::q, &Call::out}) {
    EXPECT_THAT(refusal(tensor, drop), HasSubstr("not a null pointer"));
  }
  for (const auto tensor : {&RunOptions::lse, &RunOptions::sink_logits}) {
    EXPECT_THAT(refusal(tensor, drop), HasSubstr("not a null pointer"));
  }
}

TEST_P(RefusedRuns, HaveElementsThatAreApartOrInReverse) {
  const auto spread = [](TensorView& view) {
    view.strides[static_cast<std::size_t>(view.rank) - 1] = 2;
  };
  const auto reverse = [](TensorView& view) { view.strides[0] = -view.strides[0]; };
  for (const auto tensor : {&Call::q, &Call::out}) {
    EXPECT_THAT(refusal(tensor, spread),
                AllOf(HasSubstr("with strides ["), HasSubstr("contiguous innermost dimension")));
    EXPECT_THAT(refusal(tensor, reverse), HasSubstr("without negative strides"));
  }
  EXPECT_THAT(refusal(&RunOptions::lse, spread), HasSubstr("contiguous innermost dimension"));
  EXPECT_THAT(refusal(&RunOptions::lse, reverse), HasSubstr("without negative strides"));
  EXPECT_THAT(refusal(&RunOptions::sink_logits, spread), HasSubstr("contiguous innermost"));
}

TEST_P(RefusedRuns, HaveOutputsThatMayNotBeWritten) {
  const auto lock = [](TensorView& view) { view.read_only = true; };
  EXPECT_THAT(refusal(&Call::out, lock),
              AllOf(StartsWith("out: got"), HasSubstr("not a read-only tensor")));
  EXPECT_THAT(refusal(&RunOptions::lse, lock),
              AllOf(StartsWith("lse: got"), HasSubstr("not a read-only tensor")));
}

TEST_P(RefusedRuns, HaveOutputsWhoseElementsShareMemory) {
  const auto fold = [](TensorView& view) { view.strides[0] = 1; };
  const auto repeat = [](TensorView& view) { view.strides[1] = 0; };
  for (const auto& change :
       {std::function<void(TensorView&)>(fold), std::function<void(TensorView&)>(repeat)}) {
    EXPECT_THAT(refusal(&Call::out, change), HasSubstr("do not share memory"));
  }
  EXPECT_THAT(refusal(&RunOptions::lse, fold), HasSubstr("do not share memory"));
}

// The smaller of the two is moved into the other, so that it meets nothing else.
TEST_P(RefusedRuns, WouldWriteWhereSomethingElseLies) {
  const auto meets = [&](const std::function<void(Call&)>& change, const char* output,
                         const char* other) {
    EXPECT_THAT(refusal(change),
                StartsWith(std::string(output) + ": shares memory with " + other + ";"));
  };
  meets([](Call& call) { call.out.data = call.q.data; }, "out", "q");
  meets([](Call& call) { call.options.lse.data = call.out.data; }, "out", "lse");
  meets([](Call& call) { call.options.lse.data = call.q.data; }, "lse", "q");
  meets([](Call& call) { call.options.sink_logits.data = call.out.data; }, "out", "sink_logits");
  meets([](Call& call) { call.options.sink_logits.data = call.options.lse.data; }, "lse",
        "sink_logits");
}

TEST_P(RefusedRuns, NameALayerThatTheCacheDoesNotHave) {
  for (const int layer : {-1, 1, 1 << 30}) {
    EXPECT_THAT(refusal([layer](Call& call) { call.layer = layer; }),
                StartsWith("layer: got " + std::to_string(layer) + "; expected 0 <= layer < 1"));
  }
}

// The layer that runs and the others; each holds more than an output does.
TEST_P(RefusedRuns, WouldWriteToTheCache) {
  KVCacheConfig config = c.cache_config(64, device());
  config.num_layers = 3;
  PagedKVCacheManager manager(config);
  CacheDescriptor descriptor(manager);
  descriptor.allocate({1}, {5});
  BatchAttention over_layers(manager, c.options());
  over_layers.plan(descriptor.pack_for_flashinfer({1}), std::vector<std::int32_t>{0, 5});
  const Tensor q(device(), DType::kFloat32, {5, c.num_qo_heads, c.head_dim});
  const Tensor elsewhere(device(), DType::kFloat16, {5, c.num_qo_heads, c.dim_v()});
  for (int layer = 0; layer < 3; ++layer) {
    const auto expect_refusal = [&](const TensorView& cache, const std::string& kind) {
      const std::string met =
          ": shares memory with the " + kind + " cache of layer " + std::to_string(layer) + ";";
      TensorView out = elsewhere.view();
      out.data = cache.data;
      EXPECT_THAT(error_of([&] { over_layers.run(q.view(), out, {}, 1); }),
                  StartsWith("out" + met));
      RunOptions options;
      options.lse =
          TensorView::contiguous(cache.data, DType::kFloat32, {5, c.num_qo_heads}, device());
      EXPECT_THAT(error_of([&] { over_layers.run(q.view(), elsewhere.view(), options, 1); }),
                  StartsWith("lse" + met));
    };
    expect_refusal(manager.key_cache(layer), "key");
    expect_refusal(manager.value_cache(layer), "value");
  }
}

// Inputs may be anything that can be read.
TEST_P(RefusedRuns, DoNotIncludeReadOnlyOrRepeatedInputs) {
  CallTensors tensors(c, rows, device());
  TensorView q = tensors.q.read_only_view();
  q.strides[0] = q.strides[1] = 0;  // the same query everywhere
  attention->run(q, tensors.out.view(), tensors.run_options());
  const auto query = std::vector<double>(rows[0].q.begin(), rows[0].q.begin() + c.head_dim);
  auto same = rows;
  for (ref::Row& row : same) {
    for (std::size_t i = 0; i < row.q.size(); ++i) row.q[i] = query[i % query.size()];
  }
  expect_reference(c, same, tensors);
}

SEQATTN_INSTANTIATE_DEVICES(RefusedRuns);

}  // namespace
}  // namespace seqattn::testing
