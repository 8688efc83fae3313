#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <span>

#include "attention_tables.h"
#include "backend.h"
#include "device_memory.h"
#include "fa2.h"
#include "fa3.h"
#include "kernel_choice.h"
#include "merge_kernels.h"
#include "wide_pages.h"

namespace seqattn {

// What one run reads and writes; views may be null where the caller gave none.
struct AttentionTensors {
  const TensorView& q;
  const TensorView& out;
  const TensorView& lse;
  const TensorView& sink_logits;
};

// The rows of a batch that FlashInfer's kernels serve, and what they need besides: merging, sinks,
// pages of 16 bits.
class FlashInferRows {
 public:
  FlashInferRows(const ScheduleOptions& options, const AttentionTables& tables, int num_sms,
                 bool overlaps_launches)
      : options_(options),
        tables_(tables),
        num_sms_(num_sms),
        overlaps_launches_(overlaps_launches),
        wide_pages_(options.shape) {}

  // Makes room for such a batch. Throws BackendError.
  void reserve(const Schedule& schedule, cudaStream_t stream);
  // Throws InvalidArgumentError for outputs that its kernels do not take.
  void run(const KernelChoice& kernels, std::span<const Plane> planes,
           const AttentionTensors& tensors, cudaStream_t stream) const;

 private:
  Fa2Call fa2_call(std::span<const Plane> planes, const TensorView& q) const;
  // One launch of `count` blocks, or none; `is_native`: into the type of the queries.
  void run_fa2(const KernelChoice& kernels, Fa2Call call, bool has_mask, std::size_t tile,
               const ScheduleLayout::Blocks& offsets, std::int64_t count, bool is_native,
               cudaStream_t stream) const;
  void run_small(const KernelChoice& kernels, const Fa2Call& call, const AttentionTensors& tensors,
                 cudaStream_t stream) const;
  void run_large(const KernelChoice& kernels, const Fa2Call& call, const AttentionTensors& tensors,
                 cudaStream_t stream) const;
  void run_fa3(const KernelChoice& kernels, const Fa2Call& call, std::int64_t num_q_tokens,
               cudaStream_t stream) const;

  const ScheduleOptions& options_;
  const AttentionTables& tables_;
  int num_sms_;
  bool overlaps_launches_;  // launch.h
  DeviceBuffer partials_;   // float32 [partials, num_qo_heads, head_dim + 1]: outputs, then LSEs
  DeviceBuffer large_lse_;  // float32 [query tokens, num_qo_heads]
  WidePages wide_pages_;
};

}  // namespace seqattn
