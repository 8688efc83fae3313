// One captured graph, replayed for every later plan: sequences grow, shrink, come and go. What it
// writes into the cache and what it computes must be, bit for bit, what an object without a
// capacity gives on a cache of its own.
#include <gtest/gtest.h>

#include <cmath>
#include <string>
#include <vector>

#include "graph_twins.h"
#include "random_source.h"

namespace seqattn::testing {
namespace {

constexpr int kSequences = 12;
constexpr std::int64_t kPages = 3000;

struct Replay {
  std::string name;
  TwinShape shape;
  int max_q_len = 1;
  int window_left = -1;
};

class CudaGraphReplay : public ::testing::TestWithParam<Replay> {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
  }
  // Ids that take part in the next step, and by how many tokens each grows.
  void choose(int step) {
    ids.clear();
    lengths.clear();
    indptr = {0};
    if (step % 9 == 8) return;  // an empty batch
    for (SeqId id = 0; id < kSequences; ++id) {
      if (!graph_side->sequences.contains(id) || random() % 4 == 0) continue;
      ids.push_back(id);
      lengths.push_back(static_cast<std::int64_t>(random() % (GetParam().max_q_len + 1)));
      indptr.push_back(indptr.back() + static_cast<std::int32_t>(lengths.back()));
    }
  }
  // Ends some sequences, cuts some, starts some.
  void change(const OwnStream& stream) {
    for (SeqId id = 0; id < kSequences; ++id) {
      const bool exists = graph_side->sequences.contains(id);
      const auto roll = random() % 16;
      if (exists && roll == 0) {
        for (Twin* twin : twins()) twin->sequences.release({id});
      } else if (exists && roll == 1) {
        const std::int64_t keep = graph_side->sequences.length(id) / 2;
        for (Twin* twin : twins()) twin->sequences.truncate(id, keep);
      } else if (!exists && roll < 8) {
        const auto tokens = static_cast<std::int64_t>(1 + random() % (1u << random() % 12));
        const TwinShape& shape = GetParam().shape;
        Tensor keys(cuda(0), DType::kFloat32, {tokens, shape.num_kv_heads, shape.head_dim});
        Tensor values =
            Tensor(cuda(0), DType::kFloat32, {tokens, shape.num_kv_heads, shape.head_dim});
        for (Tensor* tensor : {&keys, &values}) fill_with_normals(*tensor, random);
        for (Twin* twin : twins()) twin->start(id, keys, values, stream);
        stream.wait();
      }
    }
  }
  std::vector<Twin*> twins() { return {graph_side.get(), eager_side.get()}; }

  std::mt19937_64 random = random_source(5500);
  std::unique_ptr<Twin> graph_side, eager_side;
  std::vector<SeqId> ids;
  std::vector<std::int64_t> lengths;
  std::vector<std::int32_t> indptr;
};

void expect_same(const Tensor& graph, const Tensor& eager, std::int64_t num_tokens,
                 const std::string& what) {
  const auto got = graph.read(), want = eager.read();
  const auto used = static_cast<std::size_t>(num_tokens * graph.view().strides[0]);
  for (std::size_t i = 0; i < got.size(); ++i) {
    const bool good = i < used ? got[i] == want[i] : std::isnan(got[i]);
    if (good) continue;
    ADD_FAILURE() << what << ", element " << i << " of " << used << " in use: the graph gives "
                  << got[i] << ", without it " << want[i];
    return;
  }
}

TEST_P(CudaGraphReplay, FollowsEveryLaterPlan) {
  const Replay& c = GetParam();
  graph_side = std::make_unique<Twin>(c.shape, kPages, 7);
  eager_side = std::make_unique<Twin>(c.shape, kPages, 0);
  const std::int64_t most = kSequences * c.max_q_len;
  StepTensors tensors(c.shape, most), expected(c.shape, most);
  AttentionOptions options = c.shape.options();
  options.window_left = c.window_left;
  BatchAttention attention(graph_side->manager, options,
                           {.max_sequences = kSequences,
                            .max_q_tokens = most,
                            .max_q_len = c.max_q_len,
                            .max_pages = kPages});
  BatchAttention eager(eager_side->manager, options);
  const OwnStream stream;
  attention.plan(graph_side->sequences.pack_for_flashinfer({}), indptr = {0}, {}, stream.get());
  const CapturedGraph graph(stream, [&] {
    for (int layer = 0; layer < kTwinLayers; ++layer) {
      const auto i = static_cast<std::size_t>(layer);
      attention.append_kv(tensors.keys[i].view(), tensors.values[i].view(), layer, stream.get());
      attention.run(tensors.q[i].view(), tensors.out[i].view(), {.lse = tensors.lse[i].view()},
                    layer, stream.get());
    }
  });

  for (int step = 0; step < 60; ++step) {
    change(stream);
    choose(step);
    for (Twin* twin : twins()) twin->sequences.allocate(ids, lengths, stream.get());
    const std::int64_t num_tokens = indptr.back();
    tensors.refill(num_tokens, random);
    // By turns packed, and straight from the sequences, whose tables may stay on the device.
    if (step % 7 < 5) {
      attention.plan_sequences(graph_side->sequences, ids, indptr, stream.get());
    } else {
      attention.plan(graph_side->sequences.pack_for_flashinfer(ids), indptr, {}, stream.get());
    }
    graph.launch(stream);

    if (step % 11 < 4) {
      eager.plan_sequences(eager_side->sequences, ids, indptr, stream.get());
    } else {
      eager.plan(eager_side->sequences.pack_for_flashinfer(ids), indptr, {}, stream.get());
    }
    for (std::size_t i = 0; i < kTwinLayers; ++i) {
      const auto first = [&](const Tensor& t) { return first_tokens(t.view(), num_tokens); };
      fill_with_nan(expected.out[i].view());
      eager.append_kv(first(tensors.keys[i]), first(tensors.values[i]), static_cast<int>(i),
                      stream.get());
      eager.run(first(tensors.q[i]), first(expected.out[i]), {.lse = first(expected.lse[i])},
                static_cast<int>(i), stream.get());
    }
    stream.wait();
    for (std::size_t i = 0; i < kTwinLayers; ++i) {
      const std::string where = "step " + std::to_string(step) + ", layer " + std::to_string(i);
      expect_same(tensors.out[i], expected.out[i], num_tokens, where + ", out");
      expect_same(tensors.lse[i], expected.lse[i], num_tokens, where + ", lse");
    }
    if (HasFailure()) return;
  }
}

INSTANTIATE_TEST_SUITE_P(
    , CudaGraphReplay,
    ::testing::Values(Replay{.name = "Decode", .shape = {}, .max_q_len = 1},
                      Replay{.name = "ShortQueries", .shape = {}, .max_q_len = 5},
                      Replay{.name = "ManyTiles",
                             .shape = {.dtype = DType::kBFloat16, .num_qo_heads = 8},
                             .max_q_len = 32},
                      Replay{.name = "Window", .shape = {}, .max_q_len = 3, .window_left = 500},
                      Replay{.name = "OneKvHead",
                             .shape = {.num_qo_heads = 8, .num_kv_heads = 1, .head_dim = 64},
                             .max_q_len = 2},
                      Replay{.name = "Float8",
                             .shape = {.dtype = DType::kBFloat16, .is_float8 = true},
                             .max_q_len = 2},
                      Replay{.name = "HeadDim256",
                             .shape = {.dtype = DType::kBFloat16, .head_dim = 256},
                             .max_q_len = 4}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace seqattn::testing
