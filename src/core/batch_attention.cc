#include "seqattn/batch_attention.h"

#include <array>
#include <cmath>
#include <utility>

#include "apart_check.h"
#include "backend.h"
#include "batch_plan.h"
#include "message.h"
#include "packed_check.h"
#include "seqattn/cache_descriptor.h"
#include "seqattn/paged_kv_cache_manager.h"
#include "sequence_plan.h"
#include "tensor_check.h"

namespace seqattn {
namespace {

// Kernels multiply logits by sm_scale / logits_soft_cap: so far apart the two stay in float32.
constexpr float kMaxFactor = 1e18f;

AttentionOptions checked(AttentionOptions options, const KVCacheConfig& cache) {
  require(options.num_qo_heads >= 1 && options.num_qo_heads % cache.num_heads == 0,
          "num_qo_heads: got ", options.num_qo_heads,
          "; expected a positive multiple of the cache's ", cache.num_heads, " heads");
  require(options.window_left >= -1, "window_left: got ", options.window_left,
          "; expected at least 0, or -1 for all");
  if (!options.sm_scale) options.sm_scale = 1 / std::sqrt(static_cast<float>(cache.head_dim));
  require(std::abs(*options.sm_scale) <= kMaxFactor, "sm_scale: got ", *options.sm_scale,
          "; expected a finite number of at most ", kMaxFactor, " either side of 0");
  require(options.logits_soft_cap == 0 ||
              (options.logits_soft_cap >= 1 / kMaxFactor && options.logits_soft_cap <= kMaxFactor),
          "logits_soft_cap: got ", options.logits_soft_cap, "; expected a finite number from ",
          1 / kMaxFactor, " to ", kMaxFactor, ", or 0 for none");
  require(options.num_threads >= 0, "num_threads: got ", options.num_threads,
          "; expected at least 1, or 0 for all");
  return options;
}

PlanCapacity checked(const PlanCapacity& capacity) {
  const auto check = [](const char* name, std::int64_t value) {
    require(value >= 0, name, ": got ", value, "; expected at least 1, or 0 for no limit");
  };
  check("max_sequences", capacity.max_sequences);
  check("max_q_tokens", capacity.max_q_tokens);
  check("max_q_len", capacity.max_q_len);
  check("max_pages", capacity.max_pages);
  return capacity;
}

AttentionShape shape_of(const AttentionOptions& options, const KVCacheConfig& cache) {
  return {.num_qo_heads = options.num_qo_heads,
          .num_kv_heads = cache.num_heads,
          .head_dim = cache.head_dim,
          .head_dim_v = cache.head_dim_v,
          .page_size = cache.page_size,
          .kv_dtype = cache.dtype,
          .device = cache.device,
          .causal = options.causal,
          .window_left = options.window_left,
          .sm_scale = *options.sm_scale,
          .logits_soft_cap = options.logits_soft_cap,
          .num_threads = options.num_threads,
          .bfloat16_products = options.bfloat16_products};
}

const BatchPlan& planned(const std::unique_ptr<BatchPlan>& plan, const PagePool& pool) {
  require(plan != nullptr, "attention: got no batch; expected a call of plan first");
  check_not_freed(pool, plan->packed);
  return *plan;
}

// The rows that a tensor of tokens has to have: the batch's, or the capacity's (PlanCapacity).
std::int64_t expected_rows(const TensorView& tensor, const BatchPlan& plan,
                           const PlanCapacity& capacity) {
  const bool padded = capacity.max_q_tokens > 0 && tensor.shape[0] == capacity.max_q_tokens;
  return padded ? capacity.max_q_tokens : plan.attention.num_q_tokens;
}

}  // namespace

BatchAttention::BatchAttention(PagedKVCacheManager& manager, const AttentionOptions& options,
                               const PlanCapacity& capacity)
    : manager_(&manager),
      options_(checked(options, manager.config())),
      capacity_(checked(capacity)),
      kernel_(manager.backend_.make_attention(shape_of(options_, manager.config()), capacity_)) {}

BatchAttention::~BatchAttention() = default;

void BatchAttention::plan(const FlashInferPackedData& packed, ListView<std::int32_t> qo_indptr,
                          const PlanInputs& inputs, Stream stream) {
  auto plan = make_batch_plan(manager_->pool(), shape_of(options_, manager_->config()), capacity_,
                              packed, qo_indptr, inputs);
  // A captured append will follow without a call that could refuse it.
  if (kernel_->replays_appends()) plan_append(manager_->pool(), plan->append_batch());
  kernel_->plan(plan->attention, stream);
  plan_ = std::move(plan);
}

void BatchAttention::plan_sequences(const CacheDescriptor& sequences, SeqIds seq_ids,
                                    ListView<std::int32_t> qo_indptr, Stream stream) {
  const PagePool& pool = manager_->pool();
  require(&sequences.pool() == &pool,
          "plan: got a descriptor of another pool; expected one of the manager's");
  if (kernel_->keeps_tables()) {
    auto plan = spare_plan_ ? std::move(spare_plan_) : std::make_unique<BatchPlan>();
    if (make_sequence_plan(*plan, shape_of(options_, manager_->config()), capacity_, sequences,
                           seq_ids, qo_indptr)) {
      if (kernel_->replays_appends()) check_pages_to_write(pool, plan->written_pages);
      if (kernel_->plan_sequences(plan->sequences, stream)) {
        spare_plan_ = std::exchange(plan_, std::move(plan));
        if (spare_plan_ && spare_plan_->is_packed()) spare_plan_.reset();
        return;
      }
    }
  }
  plan(sequences.pack_for_flashinfer(seq_ids), qo_indptr, {}, stream);
}

void BatchAttention::append_kv(const TensorView& keys, const TensorView& values, int layer,
                               Stream stream) const {
  const BatchPlan& plan = planned(plan_, manager_->pool());
  manager_->check_new_tokens(keys, values, expected_rows(keys, plan, capacity_), layer);
  const auto ranges = plan_append(manager_->pool(), plan.append_batch());
  kernel_->append(manager_->layer_planes(layer), std::array{keys, values}, ranges, stream);
}

void BatchAttention::run(const TensorView& q, const TensorView& out, const RunOptions& options,
                         int layer, Stream stream) const {
  const BatchPlan& plan = planned(plan_, manager_->pool());
  const KVCacheConfig& cache = manager_->config();
  const auto planes = manager_->layer_planes(layer);
  const std::array<std::int64_t, 3> q_shape{expected_rows(q, plan, capacity_),
                                            options_.num_qo_heads, cache.head_dim};
  const std::array<std::int64_t, 3> out_shape{q_shape[0], q_shape[1], cache.head_dim_v};
  TensorSpec spec{.name = "q",
                  .shape = q_shape,
                  .dtype = unscaled(cache.dtype),
                  .or_float32 = true,
                  .device = cache.device};
  check_tensor(q, spec);
  spec.name = "out";
  spec.shape = out_shape;
  spec.output = true;
  check_tensor(out, spec);
  spec.dtype = DType::kFloat32;
  if (options.lse) {
    spec.name = "lse";
    spec.shape = std::span(out_shape).first(2);
    check_tensor(options.lse, spec);
  }
  if (options.sink_logits) {
    spec.name = "sink_logits";
    spec.shape = std::span(out_shape).subspan(1, 1);
    spec.output = false;
    check_tensor(options.sink_logits, spec);
  }
  const NamedTensor named_out{"out", out}, named_lse{"lse", options.lse};
  const std::array inputs{NamedTensor{"q", q}, NamedTensor{"sink_logits", options.sink_logits}};
  check_apart(named_out, std::array{named_lse});
  for (const NamedTensor& output : {named_out, named_lse}) {
    check_apart(output, inputs);
    check_apart_from_cache(output, manager_->planes_);
  }
  kernel_->run(planes, q, out, options.lse, options.sink_logits, stream);
}

std::string_view BatchAttention::kernel_name() const noexcept { return kernel_->name(); }

std::int64_t BatchAttention::num_q_tokens() const noexcept {
  return plan_ == nullptr ? 0 : plan_->attention.num_q_tokens;
}

std::string BatchAttention::to_string() const {
  return concat(
      "BatchAttention(num_qo_heads=", options_.num_qo_heads,
      ", num_heads=", manager_->config().num_heads, ", head_dim=", manager_->config().head_dim,
      ", causal=", options_.causal ? "true" : "false", ", window_left=", options_.window_left,
      ", sm_scale=", *options_.sm_scale, ", logits_soft_cap=", options_.logits_soft_cap,
      ", kernel=", kernel_name(), ", num_q_tokens=", num_q_tokens(), ")");
}

}  // namespace seqattn
