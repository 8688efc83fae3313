#include "flashinfer_rows.h"

#include <array>

#include "cuda_check.h"
#include "device_tensors.h"
#include "message.h"
#include "seqattn/error.h"

namespace seqattn {

void FlashInferRows::reserve(const Schedule& schedule, cudaStream_t stream) {
  const AttentionShape& shape = options_.shape;
  const ScheduleCounts& size = schedule.layout.size;
  const std::int64_t partial_floats =
      size.partials * shape.num_qo_heads * (std::int64_t{shape.head_dim} + 1);
  partials_.reserve(static_cast<std::size_t>(partial_floats) * sizeof(float), stream);
  wide_pages_.reserve(size.wide_pages, stream);
  if (size.large_tiles() == 0) return;
  large_lse_.reserve(
      static_cast<std::size_t>(schedule.num_q_tokens * shape.num_qo_heads) * sizeof(float), stream);
}

void FlashInferRows::run(const KernelChoice& kernels, std::span<const Plane> planes,
                         const AttentionTensors& tensors, cudaStream_t stream) const {
  const Schedule& schedule = tables_.schedule();
  const ScheduleLayout& layout = schedule.layout;
  if (schedule.counts.large_tiles() + layout.size.small_tokens == 0) return;
  std::array<Plane, 2> wide;
  if (layout.size.wide_pages > 0) {
    wide = wide_pages_.widen(planes, kernels.q_dtype, tables_.ints(layout.wide_sources),
                             layout.size.wide_pages, stream);
    planes = wide;
  }
  const Fa2Call call = fa2_call(planes, tensors.q);
  if (schedule.counts.large_tiles() > 0) {
    const TensorView& out = tensors.out;
    require(out.is_contiguous(), "out: got ", out.to_string(),
            "; kernels on a device expect a row-major one for queries this long");
    check_aligned("out", out.data);
    run_large(kernels, call, tensors, stream);
  }
  run_small(kernels, call, tensors, stream);
}

Fa2Call FlashInferRows::fa2_call(std::span<const Plane> planes, const TensorView& q) const {
  const AttentionShape& shape = options_.shape;
  const ScheduleLayout& layout = tables_.schedule().layout;
  Fa2Call call;
  call.batch = {.num_rows = static_cast<std::int32_t>(layout.size.rows),
                .page_indices = tables_.ints(layout.size.wide_pages > 0 ? layout.wide_indices
                                                                        : layout.page_indices),
                .page_indptr = tables_.ints(layout.page_indptr),
                .last_page_len = tables_.ints(layout.last_page_len),
                .q_indptr = tables_.ints(layout.q_indptr),
                .out_begin = tables_.ints(layout.out_begin),
                .mask_bits = tables_.at<std::uint8_t>(layout.mask_bits),
                .mask_indptr = tables_.ints(layout.mask_indptr)};
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
  // Padding ends without waiting: who waits for a launch of it alone has waited for nothing.
  call.overlap_launch = overlaps_launches_ && !tables_.fixed_size();
  return call;
}

void FlashInferRows::run_fa2(const KernelChoice& kernels, Fa2Call call, bool has_mask,
                             std::size_t tile, const ScheduleLayout::Blocks& offsets,
                             std::int64_t count, bool is_native, cudaStream_t stream) const {
  if (count == 0) return;
  call.blocks = {.count = static_cast<std::int32_t>(count),
                 .row = tables_.ints(offsets.row),
                 .q_tile = tables_.ints(offsets.q_tile),
                 .kv_chunk = tables_.ints(offsets.kv_chunk),
                 .chunk_size = tables_.ints(offsets.chunk_size),
                 .is_valid = tables_.fixed_size() ? tables_.at<bool>(offsets.is_valid) : nullptr};
  call.window_left = has_mask ? -1 : options_.shape.window_left;  // a mask holds the window
  const Fa2Instance& instance = kernels.fa2(has_mask);
  const auto kernel = is_native ? instance.run_native[tile] : instance.run_float[tile];
  check_cuda(kernel(call, stream), "attention kernel (FA2)");
}

void FlashInferRows::run_small(const KernelChoice& kernels, const Fa2Call& base,
                               const AttentionTensors& tensors, cudaStream_t stream) const {
  const Schedule& schedule = tables_.schedule();
  const ScheduleLayout& layout = schedule.layout;
  const AttentionShape& shape = options_.shape;
  const auto& [q, out, lse, sink_logits] = tensors;
  Fa2Call call = base;
  // A launch that is fixed serves batches of more chunks too.
  const bool in_place = schedule.one_chunk_each && !tables_.fixed_size() && !lse && !sink_logits &&
                        out.dtype == kernels.q_dtype && out.is_contiguous() && is_aligned(out.data);
  auto* const partial_out = reinterpret_cast<float*>(partials_.data());
  if (in_place) {
    call.out = out.data;
  } else {
    call.out = partial_out;
    call.lse = partial_out + layout.size.partials * shape.num_qo_heads * shape.head_dim;
    call.split = true;
  }
  for (const bool has_mask : {false, true}) {
    for (std::size_t tile = 0; tile < kNumTiles; ++tile) {
      const std::int64_t count = layout.size.small_blocks[has_mask][tile];
      if (count == 0) continue;
      run_fa2(kernels, call, has_mask, tile, layout.small[has_mask][tile], count, in_place, stream);
    }
  }
  if (in_place) return;
  launch_merge_partials({.out = partial_out,
                         .lse = call.lse,
                         .token = tables_.ints(layout.merge_token),
                         .begin = tables_.ints(layout.merge_begin),
                         .count = tables_.ints(layout.merge_chunks),
                         .num_tokens = layout.size.small_tokens,
                         .num_tokens_device = tables_.total(kTotalSmallTokens),
                         // Without items, which a capacity allows, it waits for nothing; then FA2
                         // in front of it does not overlap.
                         .overlap_launch = overlaps_launches_},
                        out, lse, sink_logits, stream);
}

void FlashInferRows::run_large(const KernelChoice& kernels, const Fa2Call& base,
                               const AttentionTensors& tensors, cudaStream_t stream) const {
  const Schedule& schedule = tables_.schedule();
  const ScheduleLayout& layout = schedule.layout;
  const auto& [q, out, lse, sink_logits] = tensors;
  const bool finish = lse || sink_logits;
  const bool is_native = out.dtype == kernels.q_dtype;
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
    run_fa2(kernels, call, has_mask, tile, layout.large[has_mask],
            schedule.counts.fa2_tiles[has_mask] + fa3_as_fa2, is_native, stream);
  }
  if (runs_fa3 && schedule.counts.fa3_tiles > 0) run_fa3(kernels, call, out.shape[0], stream);
  if (!finish) return;
  launch_finish_large({.lse_base2 = call.lse,
                       .is_large = tables_.at<std::uint8_t>(layout.is_large),
                       .q_indptr = tables_.ints(layout.q_indptr),
                       .num_rows = static_cast<std::int32_t>(layout.size.rows),
                       .num_tokens = schedule.num_q_tokens},
                      out, lse, sink_logits, stream);
}

void FlashInferRows::run_fa3(const KernelChoice& kernels, const Fa2Call& base,
                             std::int64_t num_q_tokens, cudaStream_t stream) const {
  const ScheduleLayout& layout = tables_.schedule().layout;
  Fa3Call call;
  call.batch = {.page_indices = base.batch.page_indices,
                .page_indptr = base.batch.page_indptr,
                .q_indptr = base.batch.q_indptr,
                .q_position = tables_.ints(layout.q_position),
                .tiles = tables_.at<Fa3Tile>(layout.fa3_tiles),
                .num_tiles = static_cast<std::int32_t>(tables_.schedule().counts.fa3_tiles)};
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
  check_cuda(kernels.fa3->run(call, stream), "attention kernel (FA3)");
}

}  // namespace seqattn
