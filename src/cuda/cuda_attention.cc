#include "cuda_attention.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "attention_schedule.h"
#include "attention_tables.h"
#include "cuda_check.h"
#include "decode/decode_launch.h"
#include "device_tensors.h"
#include "flashinfer_rows.h"
#include "kernel_choice.h"
#include "merge_kernels.h"
#include "message.h"
#include "seqattn/error.h"
#include "token_kernels.h"

namespace seqattn {
namespace {

static_assert(std::equal(kTileRows.begin(), kTileRows.end(), kFa2Tiles));

cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

void check_not_capturing(cudaStream_t stream) {
  if (!is_capturing(stream)) return;
  throw UnsupportedError(
      "plan: the stream is being captured, and a replay would not plan anew; plan outside the "
      "capture, before each replay");
}

class CudaAttention final : public AttentionKernel {
 public:
  CudaAttention(const AttentionShape& shape, const PlanCapacity& capacity);

  std::string_view name() const noexcept override { return name_; }
  bool replays_appends() const noexcept override { return is_append_captured_; }
  void plan(const AttentionPlan& plan, Stream stream) override;
  bool keeps_tables() const noexcept override { return tables_.keeps_sequences(); }
  bool plan_sequences(const SequenceBatch& batch, Stream stream) override;
  void append(std::span<const Plane> planes, std::span<const TensorView> tensors,
              std::span<const TokenRange> ranges, Stream stream) const override;
  void run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
           const TensorView& lse, const TensorView& sink_logits, Stream stream) const override;

 private:
  bool fixed_size() const noexcept { return options_.fixed_size(); }
  const KernelChoice& kernels_for(DType q_dtype) const;
  void reserve(const Schedule& schedule, cudaStream_t stream);
  // For the batch whose tables have just come; without room for it there is no batch.
  void reserve_planned(cudaStream_t stream);
  void check_capture(const char* call, const TensorView& tokens, cudaStream_t stream) const;
  decode::Tables decode_tables(const Schedule& schedule) const;

  std::vector<KernelChoice> kernels_;
  int num_sms_;
  ScheduleOptions options_;
  bool overlaps_launches_;  // launch.h
  std::string name_;
  mutable std::atomic<bool> is_append_captured_ = false;
  AttentionTables tables_;
  FlashInferRows flashinfer_;
  std::optional<decode::Launcher> decode_;
};

int num_multiprocessors(int device) {
  int count = 0;
  SEQATTN_CUDA_CHECK(cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device));
  return count;
}

bool launches_overlap(int device) {
  const DeviceGuard guard(device);
  return merge_waits_for_predecessor();
}

ScheduleOptions schedule_options(const AttentionShape& shape, const PlanCapacity& capacity,
                                 const std::vector<KernelChoice>& choices, int num_sms) {
  const auto all_have = [&](auto kernel) {
    return std::all_of(choices.begin(), choices.end(),
                       [kernel](const KernelChoice& choice) { return choice.*kernel != nullptr; });
  };
  return {.shape = shape,
          .has_fa3 = all_have(&KernelChoice::fa3),
          .decode_rows = all_have(&KernelChoice::wide_decode) ? decode::kMaxQueryRows
                         : all_have(&KernelChoice::decode)    ? decode::kFewQueryRows
                                                              : 0,
          .decode_blocks = num_sms * decode::blocks_per_sm(shape.head_dim),
          .capacity = capacity};
}

// Throws what BatchAttention's constructor says.
void check_capacity_of_device(const ScheduleOptions& options) {
  const AttentionShape& shape = options.shape;
  const PlanCapacity& capacity = options.capacity;
  require(capacity.max_sequences > 0 && capacity.max_q_tokens > 0 && capacity.max_pages > 0,
          "capacity: got max_sequences ", capacity.max_sequences, ", max_q_tokens ",
          capacity.max_q_tokens, ", max_pages ", capacity.max_pages,
          "; expected all three, since they size what a captured graph uses");
  const std::int64_t most = most_captured_queries(options);
  if (std::max<std::int64_t>(capacity.max_q_len, 1) <= most) return;
  throw UnsupportedError(concat("capacity: max_q_len ", capacity.max_q_len,
                                "; a device takes up to ", most, " with ", shape.group_size(),
                                " query heads a KV head, head_dim ", shape.head_dim,
                                " and a cache of ", to_string(shape.kv_dtype)));
}

CudaAttention::CudaAttention(const AttentionShape& shape, const PlanCapacity& capacity)
    : kernels_(choose_kernels(shape)),
      num_sms_(num_multiprocessors(shape.device.index)),
      options_(schedule_options(shape, capacity, kernels_, num_sms_)),
      overlaps_launches_(launches_overlap(shape.device.index)),
      name_(kernel_name(shape.kv_dtype, options_.has_decode(), /*fa2=*/true, options_.has_fa3)),
      tables_(options_, overlaps_launches_),
      flashinfer_(options_, tables_, num_sms_, overlaps_launches_) {
  const DeviceGuard guard(shape.device.index);
  for (const KernelChoice& kernels : kernels_) kernels.prepare();
  if (options_.has_decode()) decode_.emplace(shape, num_sms_);
  if (!fixed_size()) return;
  check_capacity_of_device(options_);
  const Schedule largest = measure_schedule(options_, {});
  tables_.reserve(largest, nullptr);
  reserve(largest, nullptr);
  SEQATTN_CUDA_CHECK(cudaStreamSynchronize(nullptr));
}

void CudaAttention::reserve(const Schedule& schedule, cudaStream_t stream) {
  flashinfer_.reserve(schedule, stream);
  if (decode_) decode_->reserve(decode_tables(schedule), stream);
}

void CudaAttention::reserve_planned(cudaStream_t stream) {
  try {
    reserve(tables_.schedule(), stream);
  } catch (...) {
    tables_.drop();
    throw;
  }
}

decode::Tables CudaAttention::decode_tables(const Schedule& schedule) const {
  const ScheduleLayout& layout = schedule.layout;
  return {.batch = {.num_rows = static_cast<std::int32_t>(layout.size.rows),
                    .page_indices = tables_.ints(layout.page_indices),
                    .planned_rows = tables_.at<decode::PlannedRow>(layout.planned_rows),
                    .planned_items = tables_.at<decode::PlannedItems>(layout.planned_items),
                    .item_indptr = tables_.ints(layout.item_indptr),
                    .run_limit = tables_.ints(layout.totals) + kRunLimit},
          .query_rows = layout.size.decode_rows,
          .num_items = layout.size.decode_items * options_.shape.num_kv_heads};
}

void CudaAttention::plan(const AttentionPlan& plan, Stream stream_handle) {
  const DeviceGuard guard(options_.shape.device.index);
  cudaStream_t const stream = stream_of(stream_handle);
  check_not_capturing(stream);
  Schedule schedule = measure_schedule(options_, plan);
  const ScheduleCounts& counts = schedule.counts;
  const bool uses_fa3 = counts.fa3_tiles > 0;
  const bool uses_decode = counts.decode_items > 0;
  const bool uses_fa2 = counts.small_tokens > 0 || counts.large_tiles() > counts.fa3_tiles;
  std::string name = kernel_name(options_.shape.kv_dtype, uses_decode,
                                 uses_fa2 || !(uses_decode || uses_fa3), uses_fa3);
  tables_.upload(plan, std::move(schedule), stream);
  reserve_planned(stream);
  name_ = std::move(name);
}

bool CudaAttention::plan_sequences(const SequenceBatch& batch, Stream stream_handle) {
  const std::int64_t longest = options_.decode_rows / options_.shape.group_size();
  const SequenceTotals& totals = batch.totals;
  const bool are_decode = totals.max_q_len <= longest && totals.max_kv_len <= decode::kMaxKeys;
  if (!are_decode || !tables_.can_keep(batch)) return false;
  const DeviceGuard guard(options_.shape.device.index);
  cudaStream_t const stream = stream_of(stream_handle);
  check_not_capturing(stream);
  const bool uses_decode = totals.num_q_tokens > 0;
  std::string name =
      kernel_name(options_.shape.kv_dtype, uses_decode, /*fa2=*/!uses_decode, /*fa3=*/false);
  tables_.keep(batch, stream);
  reserve_planned(stream);
  name_ = std::move(name);
  return true;
}

const KernelChoice& CudaAttention::kernels_for(DType q_dtype) const {
  std::string types;
  for (const KernelChoice& kernels : kernels_) {
    if (kernels.q_dtype == q_dtype) return kernels;
    types += concat(types.empty() ? "" : " or ", to_string(kernels.q_dtype));
  }
  throw UnsupportedError(concat("q: got ", to_string(q_dtype), "; kernels on a device take ", types,
                                " over a cache of ", to_string(options_.shape.kv_dtype)));
}

void CudaAttention::check_capture(const char* call, const TensorView& tokens,
                                  cudaStream_t stream) const {
  if (!is_capturing(stream)) return;
  if (!fixed_size()) {
    throw UnsupportedError(concat(call,
                                  ": the stream is being captured, but this object has no "
                                  "capacity; a later plan would not fit the graph"));
  }
  require(tokens.shape[0] == options_.capacity.max_q_tokens, call, ": got tensors of ",
          tokens.shape[0], " tokens while the stream is captured; expected ",
          options_.capacity.max_q_tokens, ", the capacity, since a later batch may have them all");
}

void CudaAttention::append(std::span<const Plane> planes, std::span<const TensorView> tensors,
                           std::span<const TokenRange>, Stream stream_handle) const {
  const DeviceGuard guard(options_.shape.device.index);
  cudaStream_t const stream = stream_of(stream_handle);
  const Schedule& schedule = tables_.schedule();
  check_capture("append_kv", tensors[0], stream);
  if (is_capturing(stream)) is_append_captured_ = true;
  const ScheduleLayout& layout = schedule.layout;
  launch_write_tokens(
      planes, tensors,
      {.page_indices = tables_.ints(layout.page_indices),
       .page_begin = tables_.ints(layout.page_indptr),
       .begin = tables_.ints(layout.q_position),
       .indptr = tables_.ints(layout.q_indptr),
       .num_rows = static_cast<std::int32_t>(layout.size.rows),
       .num_tokens = fixed_size() ? options_.capacity.max_q_tokens : schedule.num_q_tokens,
       .num_tokens_device = tables_.total(kTotalTokens),
       .overlap_launch = overlaps_launches_},
      stream);
}

void CudaAttention::run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
                        const TensorView& lse, const TensorView& sink_logits,
                        Stream stream_handle) const {
  const DeviceGuard guard(options_.shape.device.index);
  cudaStream_t const stream = stream_of(stream_handle);
  const Schedule& schedule = tables_.schedule();
  check_capture("run", q, stream);
  if (schedule.num_q_tokens == 0 && !fixed_size()) return;
  const KernelChoice& kernels = kernels_for(q.dtype);
  if (out.dtype != q.dtype && out.dtype != DType::kFloat32) {
    throw UnsupportedError(concat("out: got ", to_string(out.dtype), " for queries of ",
                                  to_string(q.dtype),
                                  "; kernels on a device give that type or float32"));
  }
  check_queries(q);
  check_cache("key cache", planes[0]);
  check_cache("value cache", planes[1]);
  flashinfer_.run(kernels, planes, {q, out, lse, sink_logits}, stream);
  if (decode_) {
    decode_->run(kernels.decode_of(schedule.layout.size.decode_rows), decode_tables(schedule),
                 planes, q, out, lse, sink_logits, overlaps_launches_, stream);
  }
}

}  // namespace

std::unique_ptr<AttentionKernel> make_cuda_attention(const AttentionShape& shape,
                                                     const PlanCapacity& capacity) {
  return std::make_unique<CudaAttention>(shape, capacity);
}

}  // namespace seqattn
