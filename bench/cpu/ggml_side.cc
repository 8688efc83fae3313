#include "ggml_side.h"

#include <ggml-cpu.h>
#include <ggml.h>

#include <cmath>
#include <cstring>
#include <stdexcept>

#include "seqattn/half.h"

namespace seqattn::bench {
namespace {

ggml_type type_of(DType dtype) {
  switch (dtype) {
    case DType::kFloat32:
      return GGML_TYPE_F32;
    case DType::kFloat16:
      return GGML_TYPE_F16;
    case DType::kBFloat16:
      return GGML_TYPE_BF16;
    case DType::kFloat8E4M3:
      break;  // ggml has none
  }
  return GGML_TYPE_F32;
}

// [batch, kv_len, heads, dim] as [batch, heads, kv_len, dim].
void by_head(const CpuCase& spec, const Bytes& from, Bytes& to) {
  const std::size_t row = spec.head_dim * static_cast<std::size_t>(size_of(spec.kv_dtype));
  const std::byte* source = from.data();
  for (std::int64_t b = 0; b < spec.batch; ++b) {
    for (std::int64_t t = 0; t < spec.kv_len; ++t) {
      for (std::int64_t h = 0; h < spec.num_kv_heads; ++h, source += row) {
        std::memcpy(to.data() + ((b * spec.num_kv_heads + h) * spec.kv_len + t) * row, source, row);
      }
    }
  }
}

}  // namespace

struct GgmlSide::Graphs {
  CpuCase spec;
  ggml_context* context = nullptr;
  std::vector<Bytes> cache;                                // keys and values of each layer
  std::vector<float> queries;                              // [batch, heads, q_len, dim]
  std::vector<float> result;                               // [batch, q_len, heads, dim]
  std::vector<std::uint16_t> mask;                         // [q_len, kv_len]
  std::vector<std::pair<ggml_cgraph*, ggml_cplan>> plans;  // by layer
  std::vector<std::uint8_t> work;
  ggml_threadpool* threads = nullptr;

  ~Graphs() {
    if (threads != nullptr) ggml_threadpool_free(threads);
    if (context != nullptr) ggml_free(context);
  }
};

GgmlSide::GgmlSide(const CpuCase& spec, const Inputs& inputs, Cache cache)
    : graphs_(std::make_unique<Graphs>()) {
  Graphs& g = *graphs_;
  g.spec = spec;
  const int layers = num_layers(spec);
  const std::size_t graph_bytes = ggml_graph_overhead_custom(8, false);
  g.context = ggml_init({.mem_size = (graph_bytes + 16 * ggml_tensor_overhead()) * (layers + 1),
                         .mem_buffer = nullptr,
                         .no_alloc = true});
  if (g.context == nullptr) throw std::runtime_error("ggml_init failed");

  const std::int64_t dim = spec.head_dim, heads = spec.num_kv_heads;
  g.queries.resize(inputs.queries.size());
  g.result.resize(inputs.queries.size());
  const float* from = inputs.queries.data();
  for (std::int64_t b = 0; b < spec.batch; ++b) {
    for (std::int64_t q = 0; q < spec.q_len; ++q) {
      for (std::int64_t h = 0; h < spec.num_qo_heads; ++h, from += dim) {
        std::copy_n(from, dim, &g.queries[((b * spec.num_qo_heads + h) * spec.q_len + q) * dim]);
      }
    }
  }
  ggml_tensor* const q =
      ggml_new_tensor_4d(g.context, GGML_TYPE_F32, dim, spec.q_len, spec.num_qo_heads, spec.batch);
  q->data = g.queries.data();
  ggml_tensor* mask = nullptr;  // a single query sees everything
  if (!spec.is_decode()) {
    g.mask.resize(static_cast<std::size_t>(spec.q_len * spec.kv_len));
    for (std::int64_t i = 0; i < spec.q_len; ++i) {
      for (std::int64_t t = spec.kv_len - spec.q_len + i + 1; t < spec.kv_len; ++t) {
        g.mask[static_cast<std::size_t>(i * spec.kv_len + t)] = to_float16(-INFINITY);
      }
    }
    mask = ggml_new_tensor_4d(g.context, GGML_TYPE_F16, spec.kv_len, spec.q_len, 1, 1);
    mask->data = g.mask.data();
  }
  const std::size_t row = ggml_row_size(type_of(spec.kv_dtype), dim);
  const std::size_t sequence = row * heads * spec.kv_len;
  const auto view = [&](const Bytes& input) {
    Bytes& bytes = g.cache.emplace_back(input.size());
    if (cache == Cache::kByHead) {
      by_head(spec, input, bytes);
    } else {
      std::memcpy(bytes.data(), input.data(), input.size());
    }
    ggml_tensor* const tensor =
        ggml_new_tensor_4d(g.context, type_of(spec.kv_dtype), dim, spec.kv_len, heads, spec.batch);
    tensor->data = bytes.data();
    tensor->nb[1] = cache == Cache::kByHead ? row : row * heads;
    tensor->nb[2] = cache == Cache::kByHead ? row * spec.kv_len : row;
    tensor->nb[3] = sequence;
    return tensor;
  };
  const float scale = 1 / std::sqrt(static_cast<float>(dim));
  for (int layer = 0; layer < layers; ++layer) {
    ggml_tensor* const keys = view(inputs.keys);
    ggml_tensor* const values = view(inputs.values);
    ggml_tensor* const out = ggml_flash_attn_ext(g.context, q, keys, values, mask, scale, 0, 0);
    out->data = g.result.data();
    ggml_cgraph* const graph = ggml_new_graph_custom(g.context, 8, false);
    ggml_build_forward_expand(graph, out);
    g.plans.push_back({graph, {}});
  }
}

GgmlSide::~GgmlSide() = default;

void GgmlSide::use_threads(int num_threads) {
  Graphs& g = *graphs_;
  if (g.threads != nullptr) ggml_threadpool_free(g.threads);
  ggml_threadpool_params params = ggml_threadpool_params_default(num_threads);
  // Its threads would wait for the next graph for a tenth of a second without sleeping, beside
  // whoever is timed next; this makes it a few milliseconds.
  params.poll = 1;
  g.threads = ggml_threadpool_new(&params);
  std::size_t work = 0;
  for (auto& [graph, plan] : g.plans) {
    plan = ggml_graph_plan(graph, num_threads, g.threads);
    work = std::max(work, plan.work_size);
  }
  g.work.resize(work);
  for (auto& [graph, plan] : g.plans) plan.work_data = g.work.data();
}

void GgmlSide::run(int layer) {
  auto& [graph, plan] = graphs_->plans[layer];
  if (ggml_graph_compute(graph, &plan) != GGML_STATUS_SUCCESS) {
    throw std::runtime_error("ggml_graph_compute failed");
  }
}

// Its result is [batch, q_len, heads, dim] as ours is.
std::vector<float> GgmlSide::out() const { return graphs_->result; }

bool has_ggml() { return true; }
std::string ggml_version() { return SEQATTN_GGML_VERSION; }

}  // namespace seqattn::bench
