#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "attention_plan.h"
#include "backend.h"
#include "decode_call.h"
#include "device_memory.h"

namespace seqattn::decode {

// What a launch takes from its caller.
struct Tables {
  Batch batch;
  std::int64_t query_rows = 0;  // the most of a row and KV head
  std::int64_t num_items = 0;   // of the batch, or the capacity, over all KV heads
};

// Launches instances of a shape one after the other, and owns what their blocks share.
class Launcher {
 public:
  Launcher(const AttentionShape& shape, int num_sms) : shape_(shape), num_sms_(num_sms) {}

  // Makes room for such a batch. Throws BackendError.
  void reserve(const Tables& tables, cudaStream_t stream);
  // REQUIRES room. `overlaps`: launch.h. Throws BackendError.
  void run(const Instance& instance, const Tables& tables, std::span<const Plane> planes,
           const TensorView& q, const TensorView& out, const TensorView& lse,
           const TensorView& sink_logits, bool overlaps, cudaStream_t stream) const;

 private:
  AttentionShape shape_;
  int num_sms_;
  DeviceBuffer partials_;
  DeviceBuffer counters_;  // zeros between launches
  bool counters_are_zeros_ = false;
};

}  // namespace seqattn::decode
