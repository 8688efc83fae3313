// Attention on a GPU beside the CPU backend, which the oracle has checked: the same batches through
// the same calls, both caches filled by append.
#include <gtest/gtest.h>

#include <cmath>
#include <optional>
#include <string>

#include "device_tensor.h"
#include "random_source.h"
#include "seqattn/seqattn.h"

namespace seqattn::testing {
namespace {

struct Case {
  std::string name;
  DType dtype = DType::kFloat16;
  int num_qo_heads = 8;
  int num_kv_heads = 2;
  int head_dim = 128;
  int page_size = 16;
  KVLayout kv_layout = KVLayout::kNHD;
  AttentionOptions options = {};
  bool mask = false;
  bool sinks = false;
  bool float_out = false;
  // {queries, keys} of each row.
  std::vector<std::pair<int, int>> rows = {{1, 1},   {1, 700}, {1, 5000}, {7, 300},
                                           {40, 40}, {0, 20},  {0, 0}};
};

// One device's manager, filled with the rows' keys and values.
struct Side {
  PagedKVCacheManager manager;
  CacheDescriptor sequences;

  Side(const Case& c, Device device, std::int64_t num_pages)
      : manager({.num_pages = num_pages,
                 .page_size = c.page_size,
                 .num_heads = c.num_kv_heads,
                 .head_dim = c.head_dim,
                 .dtype = c.dtype,
                 .device = device,
                 .kv_layout = c.kv_layout}),
        sequences(manager) {}
};

class CudaAttention : public ::testing::TestWithParam<Case> {};

void expect_close(const char* what, const std::vector<float>& got,
                  const std::vector<float>& expected, double tolerance) {
  ASSERT_EQ(got.size(), expected.size());
  for (std::size_t i = 0; i < got.size(); ++i) {
    if (got[i] == expected[i]) continue;
    const double error = std::fabs(static_cast<double>(got[i]) - expected[i]);
    if (error <= tolerance * (1 + std::fabs(expected[i]))) continue;
    ADD_FAILURE() << what << " element " << i << " of " << got.size() << ": got " << got[i]
                  << ", the CPU says " << expected[i];
    return;
  }
}

TEST_P(CudaAttention, GivesWhatTheCpuGives) {
  SEQATTN_NEEDS_GPU();
  const Case& c = GetParam();
  auto random = random_source(31);
  std::vector<SeqId> ids;
  std::vector<std::int64_t> lengths;
  std::vector<std::int32_t> kv_indptr{0}, qo_indptr{0};
  std::int64_t num_pages = 3, mask_size = 0;
  for (const auto& [q_len, kv_len] : c.rows) {
    ids.push_back(static_cast<SeqId>(ids.size()));
    lengths.push_back(kv_len);
    kv_indptr.push_back(kv_indptr.back() + kv_len);
    qo_indptr.push_back(qo_indptr.back() + q_len);
    num_pages += kv_len / c.page_size + 1;
    mask_size += static_cast<std::int64_t>(q_len) * kv_len;
  }
  const std::int64_t num_kv = kv_indptr.back(), num_q = qo_indptr.back();
  Mirror k(DType::kFloat32, {num_kv, c.num_kv_heads, c.head_dim});
  Mirror v(DType::kFloat32, {num_kv, c.num_kv_heads, c.head_dim});
  Mirror q(c.dtype, {num_q, c.num_qo_heads, c.head_dim});
  Mirror out(c.float_out ? DType::kFloat32 : c.dtype, {num_q, c.num_qo_heads, c.head_dim});
  Mirror lse(DType::kFloat32, {num_q, c.num_qo_heads});
  Mirror sinks(DType::kFloat32, {c.num_qo_heads});
  for (Mirror* tensor : {&k, &v, &q, &sinks}) tensor->randomise(random);
  std::vector<std::uint8_t> mask;
  if (c.mask) {
    for (std::int64_t i = 0; i < mask_size; ++i) mask.push_back(random() % 4 != 0);
  }

  for (const Device device : {cpu(), cuda(0)}) {
    const bool on_device = device.type == DeviceType::kCUDA;
    const auto view = [&](Mirror& tensor) { return on_device ? tensor.device() : tensor.host(); };
    Side side(c, device, num_pages);
    side.sequences.allocate(ids, lengths);
    const auto packed = side.sequences.pack_for_flashinfer(ids);
    side.manager.append_kv(view(k), view(v), packed, kv_indptr);
    AttentionOptions options = c.options;
    options.num_qo_heads = c.num_qo_heads;
    BatchAttention attention(side.manager, options);
    attention.plan(packed, qo_indptr, {.mask = mask});
    RunOptions run{.lse = view(lse)};
    if (c.sinks) run.sink_logits = view(sinks);
    attention.run(view(q), view(out), run);
    if (on_device) {
      check(cudaDeviceSynchronize());
      RecordProperty("kernel", std::string(attention.kernel_name()));
    }
  }
  const double epsilon = c.dtype == DType::kFloat16 ? 0x1p-11 : 0x1p-8;
  expect_close("lse", lse.fetch(), lse.on_host(), 2e-3);
  expect_close("out", out.fetch(), out.on_host(), 3 * epsilon);
}

std::vector<Case> cases() {
  std::vector<Case> list;
  const auto add = [&list](const std::string& name, auto change) {
    for (const DType dtype : {DType::kFloat16, DType::kBFloat16}) {
      Case c;
      c.dtype = dtype;
      change(c);
      c.name = name + "_" + std::string(to_string(dtype));
      list.push_back(c);
    }
  };
  for (const int head_dim : {64, 128, 256}) {
    const std::string dim = std::to_string(head_dim);
    const auto set = [head_dim](Case& c) {
      c.head_dim = head_dim;
      c.rows.insert(c.rows.end(), {{300, 300}, {600, 900}, {33, 2000}});
    };
    add("causal_" + dim, set);
    add("all_keys_" + dim, [&](Case& c) { set(c), c.options.causal = false; });
    add("window_" + dim, [&](Case& c) { set(c), c.options.window_left = 100; });
    add("soft_cap_" + dim, [&](Case& c) { set(c), c.options.logits_soft_cap = 5; });
    add("window_all_keys_" + dim,
        [&](Case& c) { set(c), c.options.causal = false, c.options.window_left = 100; });
    add("mask_" + dim, [&](Case& c) { set(c), c.mask = true; });
    add("mask_window_" + dim, [&](Case& c) { set(c), c.mask = true, c.options.window_left = 50; });
    add("sinks_" + dim, [&](Case& c) { set(c), c.sinks = true; });
    add("float_out_" + dim, [&](Case& c) { set(c), c.float_out = true; });
    add("hnd_" + dim, [&](Case& c) { set(c), c.kv_layout = KVLayout::kHND; });
  }
  for (const int group : {1, 3, 5, 7, 16, 71}) {
    add("group_" + std::to_string(group), [&](Case& c) { c.num_qo_heads = 2 * group; });
  }
  for (const int page_size : {1, 5, 64}) {
    add("page_" + std::to_string(page_size), [&](Case& c) { c.page_size = page_size; });
  }
  add("one_kv_head", [](Case& c) { c.num_kv_heads = 1, c.rows = {{1, 20000}, {4, 9000}}; });
  add("very_long", [](Case& c) { c.rows = {{1, 70000}, {1, 3}}; });
  add("many_heads", [](Case& c) {
    c.num_qo_heads = 32, c.num_kv_heads = 8, c.rows = {{512, 2048}, {512, 512}, {1, 4096}};
  });
  return list;
}

INSTANTIATE_TEST_SUITE_P(Cases, CudaAttention, ::testing::ValuesIn(cases()),
                         [](const auto& test) { return test.param.name; });

// One captured graph serves every later plan within the capacity.
TEST(CudaGraph, ReplaysLaterPlans) {
  SEQATTN_NEEDS_GPU();
  auto random = random_source(32);
  constexpr int kSequences = 6, kHeads = 8, kKvHeads = 2, kDim = 128;
  PagedKVCacheManager manager({.num_pages = 2000,
                               .num_heads = kKvHeads,
                               .head_dim = kDim,
                               .dtype = DType::kBFloat16,
                               .device = cuda(0)});
  CacheDescriptor sequences(manager);
  const AttentionOptions options{.num_qo_heads = kHeads};
  BatchAttention captured(
      manager, options,
      {.max_sequences = kSequences, .max_q_tokens = kSequences, .max_q_len = 1, .max_pages = 2000});
  BatchAttention eager(manager, options);
  Mirror k(DType::kBFloat16, {kSequences, kKvHeads, kDim}),
      v(DType::kBFloat16, {kSequences, kKvHeads, kDim});
  Mirror q(DType::kBFloat16, {kSequences, kHeads, kDim});
  Mirror out(DType::kBFloat16, {kSequences, kHeads, kDim}),
      expected(DType::kBFloat16, {kSequences, kHeads, kDim});
  cudaStream_t stream = nullptr;
  check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const Stream on{stream};

  captured.plan(sequences.pack_for_flashinfer({}), std::vector<std::int32_t>{0}, {}, on);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t exec = nullptr;
  check(cudaStreamSynchronize(stream));
  check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  captured.append_kv(k.device(), v.device(), 0, on);
  captured.run(q.device(), out.device(), {}, 0, on);
  check(cudaStreamEndCapture(stream, &graph));
  check(cudaGraphInstantiate(&exec, graph, 0));

  for (int step = 0; step < 40; ++step) {
    std::vector<SeqId> ids;
    for (SeqId id = 0; id < kSequences; ++id) {
      if (random() % 5 == 0) sequences.release({id});
      if (step % 7 == 6 || random() % 4 == 0) continue;
      sequences.allocate(
          {id}, {sequences.contains(id) ? 1 : 1 + static_cast<std::int64_t>(random() % 3000)});
      ids.push_back(id);
    }
    std::vector<std::int32_t> indptr{0};
    for (std::size_t i = 0; i < ids.size(); ++i) indptr.push_back(indptr.back() + 1);
    const auto rows = static_cast<std::int64_t>(ids.size());
    for (Mirror* tensor : {&k, &v, &q}) tensor->randomise(random);
    out.poison();
    const auto packed = sequences.pack_for_flashinfer(ids);
    captured.plan(packed, indptr, {}, on);
    check(cudaGraphLaunch(exec, stream));
    check(cudaStreamSynchronize(stream));
    if (rows == 0) continue;
    expected.poison();
    const auto first = [rows](TensorView view) {
      view.shape[0] = rows;
      return view;
    };
    eager.plan(packed, indptr, {}, on);
    eager.run(first(q.device()), first(expected.device()), {}, 0, on);
    check(cudaStreamSynchronize(stream));
    const auto got = out.fetch(), want = expected.fetch();
    for (std::size_t i = 0; i < got.size(); ++i) {
      const bool written = i < static_cast<std::size_t>(rows) * kHeads * kDim;
      ASSERT_TRUE(written ? got[i] == want[i] : std::isnan(got[i]))
          << "step " << step << " element " << i;
    }
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

}  // namespace
}  // namespace seqattn::testing
