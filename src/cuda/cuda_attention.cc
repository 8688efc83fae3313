#include "cuda_attention.h"

#include <cuda_runtime_api.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <string>
#include <utility>

#include "attention_schedule.h"
#include "cuda_check.h"
#include "decode/decode_launch.h"
#include "device_memory.h"
#include "device_tensors.h"
#include "fa2.h"
#include "fa3.h"
#include "kernel_choice.h"
#include "merge_kernels.h"
#include "message.h"
#include "seqattn/error.h"
#include "token_kernels.h"

namespace seqattn {
namespace {

static_assert(std::equal(kTileRows.begin(), kTileRows.end(), kFa2Tiles));

cudaStream_t stream_of(Stream stream) { return static_cast<cudaStream_t>(stream.handle); }

class CudaAttention final : public AttentionKernel {
 public:
  CudaAttention(const AttentionShape& shape, const PlanCapacity& capacity);

  std::string_view name() const noexcept override { return name_; }
  bool replays_appends() const noexcept override { return is_append_captured_; }
  void plan(const AttentionPlan& plan, Stream stream) override;
  void append(std::span<const Plane> planes, std::span<const TensorView> tensors,
              std::span<const TokenRange> ranges, Stream stream) const override;
  void run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
           const TensorView& lse, const TensorView& sink_logits, Stream stream) const override;

 private:
  bool fixed_size() const noexcept { return options_.fixed_size(); }
  void reserve(const Schedule& schedule, cudaStream_t stream);
  const Schedule& planned() const;
  void check_capture(const char* call, const TensorView& tokens, cudaStream_t stream) const;

  template <class T>
  const T* at(std::size_t offset) const {
    return reinterpret_cast<const T*>(tables_.data() + offset);
  }
  const std::int32_t* ints(std::size_t offset) const { return at<std::int32_t>(offset); }
  const std::int32_t* total(Total which) const {
    return fixed_size() ? ints(schedule_->layout.totals) + which : nullptr;
  }
  Fa2Call fa2_call(std::span<const Plane> planes, const TensorView& q) const;
  // One launch of `count` blocks, or none; `is_native`: into the type of the cache.
  void run_fa2(Fa2Call call, bool has_mask, std::size_t tile, const ScheduleLayout::Blocks& offsets,
               std::int64_t count, bool is_native, cudaStream_t stream) const;
  void run_small(const Fa2Call& call, const TensorView& out, const TensorView& lse,
                 const TensorView& sink_logits, cudaStream_t stream) const;
  void run_large(const Fa2Call& call, const TensorView& out, const TensorView& lse,
                 const TensorView& sink_logits, cudaStream_t stream) const;
  void run_fa3(const Fa2Call& call, std::int64_t num_q_tokens, cudaStream_t stream) const;
  decode::Tables decode_tables(const Schedule& schedule) const;

  ScheduleOptions options_;
  KernelChoice kernels_;
  int num_sms_ = 0;
  bool overlaps_launches_ = false;  // launch.h
  std::string name_;
  mutable std::atomic<bool> is_append_captured_ = false;
  std::optional<Schedule> schedule_;
  Staging staging_{/*wants_device=*/false};
  DeviceBuffer tables_;     // the schedule's layout
  DeviceBuffer partials_;   // float32 [partials, num_qo_heads, head_dim + 1]: outputs, then LSEs
  DeviceBuffer large_lse_;  // float32 [query tokens, num_qo_heads]
  std::optional<decode::Launcher> decode_;
};

CudaAttention::CudaAttention(const AttentionShape& shape, const PlanCapacity& capacity)
    : options_{.shape = shape, .capacity = capacity}, kernels_(choose_kernels(shape)) {
  const DeviceGuard guard(shape.device.index);
  kernels_.prepare();
  SEQATTN_CUDA_CHECK(
      cudaDeviceGetAttribute(&num_sms_, cudaDevAttrMultiProcessorCount, shape.device.index));
  overlaps_launches_ = merge_waits_for_predecessor();
  options_.has_fa3 = kernels_.fa3 != nullptr;
  if (const decode::Instance* const instance = decode::find_instance(shape)) {
    check_cuda(instance->prepare(), "cudaFuncSetAttribute");
    decode_.emplace(shape, *instance, num_sms_);
    options_.has_decode = true;
  }
  name_ = kernels_.name(options_.has_decode, /*fa2=*/true, options_.has_fa3);
  if (!fixed_size()) return;
  require(capacity.max_sequences > 0 && capacity.max_q_tokens > 0 && capacity.max_pages > 0,
          "capacity: got max_sequences ", capacity.max_sequences, ", max_q_tokens ",
          capacity.max_q_tokens, ", max_pages ", capacity.max_pages,
          "; expected all three, since they size what a captured graph uses");
  const std::int64_t most = largest_tile_rows(shape) / shape.group_size();
  if (capacity.max_q_len > most) {
    throw UnsupportedError(concat("capacity: max_q_len ", capacity.max_q_len,
                                  "; a device takes up to ", most, " with ", shape.group_size(),
                                  " query heads a KV head and head_dim ", shape.head_dim));
  }
  reserve(measure_schedule(options_, {}), nullptr);
  SEQATTN_CUDA_CHECK(cudaStreamSynchronize(nullptr));
}

void CudaAttention::reserve(const Schedule& schedule, cudaStream_t stream) {
  const AttentionShape& shape = options_.shape;
  const ScheduleCounts& size = schedule.layout.size;
  tables_.reserve(schedule.layout.bytes, stream);
  const std::int64_t partial_floats =
      size.partials * shape.num_qo_heads * (std::int64_t{shape.head_dim} + 1);
  partials_.reserve(static_cast<std::size_t>(partial_floats) * sizeof(float), stream);
  if (decode_) decode_->reserve(decode_tables(schedule), stream);
  if (size.large_tiles() > 0) {
    large_lse_.reserve(
        static_cast<std::size_t>(schedule.num_q_tokens * shape.num_qo_heads) * sizeof(float),
        stream);
  }
}

decode::Tables CudaAttention::decode_tables(const Schedule& schedule) const {
  const ScheduleLayout& layout = schedule.layout;
  return {.batch = {.num_rows = static_cast<std::int32_t>(layout.size.rows),
                    .page_indices = ints(layout.page_indices),
                    .page_indptr = ints(layout.page_indptr),
                    .last_page_len = ints(layout.last_page_len),
                    .q_indptr = ints(layout.q_indptr),
                    .item_indptr = ints(layout.item_indptr)},
          .num_items = layout.size.decode_items * options_.shape.num_kv_heads,
          .num_rows = layout.size.rows};
}

void CudaAttention::plan(const AttentionPlan& plan, Stream stream_handle) {
  const DeviceGuard guard(options_.shape.device.index);
  cudaStream_t const stream = stream_of(stream_handle);
  if (is_capturing(stream)) {
    throw UnsupportedError(
        "plan: the stream is being captured, and a replay would not plan anew; plan outside the "
        "capture, before each replay");
  }
  Schedule schedule = measure_schedule(options_, plan);
  const ScheduleCounts& counts = schedule.counts;
  const bool uses_fa3 = counts.fa3_tiles > 0;
  const bool uses_decode = counts.decode_items > 0;
  const bool uses_fa2 = counts.small_tokens > 0 || counts.large_tiles() > counts.fa3_tiles;
  std::string name = kernels_.name(uses_decode, uses_fa2 || !(uses_decode || uses_fa3), uses_fa3);
  const std::size_t bytes = schedule.used_bytes();
  Staging::Slot* const slot = staging_.take(bytes);
  write_schedule(options_, plan, schedule, slot->host);
  try {
    // From here on the tables of the plan before may be gone.
    schedule_.reset();
    reserve(schedule, stream);
    SEQATTN_CUDA_CHECK(
        cudaMemcpyAsync(tables_.data(), slot->host, bytes, cudaMemcpyHostToDevice, stream));
  } catch (...) {
    staging_.release(slot, stream);
    throw;
  }
  staging_.release(slot, stream);
  schedule_ = std::move(schedule);
  name_ = std::move(name);
}

const Schedule& CudaAttention::planned() const {
  require(
      schedule_.has_value(),
      "attention: the last call of plan failed on the device; expected one that succeeds first");
  return *schedule_;
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
  const Schedule& schedule = planned();
  check_capture("append_kv", tensors[0], stream);
  if (is_capturing(stream)) is_append_captured_ = true;
  const ScheduleLayout& layout = schedule.layout;
  launch_write_tokens(
      planes, tensors,
      {.page_indices = ints(layout.page_indices),
       .page_begin = ints(layout.page_indptr),
       .begin = ints(layout.q_position),
       .indptr = ints(layout.q_indptr),
       .num_rows = static_cast<std::int32_t>(layout.size.rows),
       .num_tokens = fixed_size() ? options_.capacity.max_q_tokens : schedule.num_q_tokens,
       .num_tokens_device = total(kTotalTokens)},
      stream);
}

Fa2Call CudaAttention::fa2_call(std::span<const Plane> planes, const TensorView& q) const {
  const AttentionShape& shape = options_.shape;
  const ScheduleLayout& layout = schedule_->layout;
  Fa2Call call;
  call.batch = {.num_rows = static_cast<std::int32_t>(layout.size.rows),
                .page_indices = ints(layout.page_indices),
                .page_indptr = ints(layout.page_indptr),
                .last_page_len = ints(layout.last_page_len),
                .q_indptr = ints(layout.q_indptr),
                .out_begin = ints(layout.out_begin),
                .mask_bits = at<std::uint8_t>(layout.mask_bits),
                .mask_indptr = ints(layout.mask_indptr)};
  call.keys = cache_of(planes[0]);
  call.values = cache_of(planes[1]);
  call.page_size = shape.page_size;
  call.num_qo_heads = shape.num_qo_heads;
  call.num_kv_heads = shape.num_kv_heads;
  call.q = q.data;
  call.q_token_stride = token_stride(q);
  call.q_head_stride = head_stride(q);
  call.sm_scale = shape.sm_scale;
  call.logits_soft_cap = shape.logits_soft_cap;
  // In a graph the decode kernel follows these launches, whose padding ends without waiting.
  call.overlap_launch = overlaps_launches_ && !(fixed_size() && decode_);
  return call;
}

void CudaAttention::run_fa2(Fa2Call call, bool has_mask, std::size_t tile,
                            const ScheduleLayout::Blocks& offsets, std::int64_t count,
                            bool is_native, cudaStream_t stream) const {
  if (count == 0) return;
  call.blocks = {.count = static_cast<std::int32_t>(count),
                 .row = ints(offsets.row),
                 .q_tile = ints(offsets.q_tile),
                 .kv_chunk = ints(offsets.kv_chunk),
                 .chunk_size = ints(offsets.chunk_size),
                 .is_valid = fixed_size() ? at<bool>(offsets.is_valid) : nullptr};
  call.window_left = has_mask ? -1 : options_.shape.window_left;  // a mask holds the window
  const Fa2Instance& instance = kernels_.fa2(has_mask);
  const auto kernel = is_native ? instance.run_native[tile] : instance.run_float[tile];
  check_cuda(kernel(call, stream), "attention kernel (FA2)");
}

void CudaAttention::run(std::span<const Plane> planes, const TensorView& q, const TensorView& out,
                        const TensorView& lse, const TensorView& sink_logits,
                        Stream stream_handle) const {
  const AttentionShape& shape = options_.shape;
  const DeviceGuard guard(shape.device.index);
  cudaStream_t const stream = stream_of(stream_handle);
  const Schedule& schedule = planned();
  check_capture("run", q, stream);
  if (schedule.num_q_tokens == 0 && !fixed_size()) return;
  if (q.dtype != shape.kv_dtype) {
    throw UnsupportedError(concat("q: got ", to_string(q.dtype), "; kernels on a device take ",
                                  to_string(shape.kv_dtype), ", the type of the cache"));
  }
  check_queries(q);
  check_cache("key cache", planes[0]);
  check_cache("value cache", planes[1]);
  const Fa2Call call = fa2_call(planes, q);
  if (schedule.counts.large_tiles() > 0) {
    require(out.is_contiguous(), "out: got ", out.to_string(),
            "; kernels on a device expect a row-major one for queries this long");
    check_aligned("out", out.data);
    run_large(call, out, lse, sink_logits, stream);
  }
  run_small(call, out, lse, sink_logits, stream);
  if (decode_) {
    decode_->run(decode_tables(schedule), planes, q, out, lse, sink_logits,
                 overlaps_launches_ && !fixed_size(), stream);
  }
}

void CudaAttention::run_small(const Fa2Call& base, const TensorView& out, const TensorView& lse,
                              const TensorView& sink_logits, cudaStream_t stream) const {
  const Schedule& schedule = *schedule_;
  const ScheduleLayout& layout = schedule.layout;
  const AttentionShape& shape = options_.shape;
  Fa2Call call = base;
  // A launch that is fixed serves batches of more chunks too.
  const bool in_place = schedule.one_chunk_each && !fixed_size() && !lse && !sink_logits &&
                        out.dtype == shape.kv_dtype && out.is_contiguous() && is_aligned(out.data);
  auto* const partial_out = reinterpret_cast<float*>(partials_.data());
  if (in_place) {
    call.out = out.data;
  } else {
    call.out = partial_out;
    call.lse = partial_out + layout.size.partials * shape.num_qo_heads * shape.head_dim;
    call.split = true;
  }
  int num_launches = 0;
  for (const bool has_mask : {false, true}) {
    for (std::size_t tile = 0; tile < kNumTiles; ++tile) {
      const std::int64_t count = layout.size.small_blocks[has_mask][tile];
      if (count == 0) continue;
      run_fa2(call, has_mask, tile, layout.small[has_mask][tile], count, in_place, stream);
      ++num_launches;
      // Padding ends without waiting: who waits for a launch of it alone has waited for nothing.
      if (fixed_size()) call.overlap_launch = false;
    }
  }
  if (in_place) return;
  launch_merge_partials(
      {.out = partial_out,
       .lse = call.lse,
       .token = ints(layout.merge_token),
       .begin = ints(layout.merge_begin),
       .count = ints(layout.merge_chunks),
       .num_tokens = layout.size.small_tokens,
       .num_tokens_device = total(kTotalSmallTokens),
       .overlap_launch = overlaps_launches_ && (!fixed_size() || num_launches == 1)},
      out, lse, sink_logits, stream);
}

void CudaAttention::run_large(const Fa2Call& base, const TensorView& out, const TensorView& lse,
                              const TensorView& sink_logits, cudaStream_t stream) const {
  const Schedule& schedule = *schedule_;
  const ScheduleLayout& layout = schedule.layout;
  const bool finish = lse || sink_logits;
  const bool is_native = out.dtype == options_.shape.kv_dtype;
  Fa2Call call = base;
  call.out = out.data;
  call.lse = finish ? reinterpret_cast<float*>(large_lse_.data()) : nullptr;
  // FA3 writes its own type only, and finds values where the keys' strides say; where that is not
  // it, FA2 stands in, with the same rows at the end of its list.
  const bool runs_fa3 = is_native && base.keys.page_stride == base.values.page_stride &&
                        base.keys.token_stride == base.values.token_stride;
  const auto tile =
      static_cast<std::size_t>(small_tile(options_.shape, largest_tile_rows(options_.shape)));
  for (const bool has_mask : {false, true}) {
    const std::int64_t fa3_as_fa2 = has_mask || runs_fa3 ? 0 : schedule.counts.fa3_as_fa2;
    run_fa2(call, has_mask, tile, layout.large[has_mask],
            schedule.counts.fa2_tiles[has_mask] + fa3_as_fa2, is_native, stream);
  }
  if (runs_fa3 && schedule.counts.fa3_tiles > 0) run_fa3(call, out.shape[0], stream);
  if (!finish) return;
  launch_finish_large({.lse_base2 = call.lse,
                       .is_large = at<std::uint8_t>(layout.is_large),
                       .q_indptr = ints(layout.q_indptr),
                       .num_rows = static_cast<std::int32_t>(layout.size.rows),
                       .num_tokens = schedule.num_q_tokens},
                      out, lse, sink_logits, stream);
}

void CudaAttention::run_fa3(const Fa2Call& base, std::int64_t num_q_tokens,
                            cudaStream_t stream) const {
  const ScheduleLayout& layout = schedule_->layout;
  Fa3Call call;
  call.batch = {.page_indices = base.batch.page_indices,
                .page_indptr = base.batch.page_indptr,
                .q_indptr = base.batch.q_indptr,
                .q_position = ints(layout.q_position),
                .tiles = at<Fa3Tile>(layout.fa3_tiles),
                .num_tiles = static_cast<std::int32_t>(schedule_->counts.fa3_tiles)};
  call.num_blocks = num_sms_;
  call.keys = base.keys;
  call.values = base.values;
  call.page_size = base.page_size;
  call.num_qo_heads = base.num_qo_heads;
  call.num_kv_heads = base.num_kv_heads;
  call.num_q_tokens = num_q_tokens;
  call.q = base.q;
  call.q_token_stride = base.q_token_stride;
  call.q_head_stride = base.q_head_stride;
  call.out = base.out;
  call.lse = base.lse;
  constexpr int kNoWindow = 1 << 30;  // beyond every position
  const int window_left = options_.shape.window_left;
  call.window_left = window_left < 0 ? kNoWindow : window_left;
  call.sm_scale = base.sm_scale;
  call.logits_soft_cap = base.logits_soft_cap;
  check_cuda(kernels_.fa3->run(call, stream), "attention kernel (FA3)");
}

}  // namespace

std::unique_ptr<AttentionKernel> make_cuda_attention(const AttentionShape& shape,
                                                     const PlanCapacity& capacity) {
  return std::make_unique<CudaAttention>(shape, capacity);
}

}  // namespace seqattn
