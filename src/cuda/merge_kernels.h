#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "seqattn/tensor_view.h"

// The last steps of attention on a device (docs/formulas.md, "Merging states").
namespace seqattn {

// Partial results of small rows, in device memory; an LSE of a partial is in base 2.
struct PartialResults {
  const float* out = nullptr;                       // [partials, num_heads, head_dim]
  const float* lse = nullptr;                       // [partials, num_heads]
  const std::int32_t* token = nullptr;              // [num_tokens]: row of the output tensors
  const std::int32_t* begin = nullptr;              // [num_tokens]: first partial
  const std::int32_t* count = nullptr;              // [num_tokens]: may be 0
  std::int64_t num_tokens = 0;                      // that the launch covers
  const std::int32_t* num_tokens_device = nullptr;  // that there are; null: as many
  bool overlap_launch = false;                      // launch.h
};

// Whether the kernels of this build, as the current device runs them, wait for their predecessor
// themselves (launch.h): those for sm_90 and later do, older ones that run there do not.
bool merge_waits_for_predecessor();

// Merges in the order of the partials, adds sinks, writes out (float32 or 16-bit) and, where there
// is one, lse. A token without partials gets 0 and -inf, or the sink.
void launch_merge_partials(const PartialResults& partials, const TensorView& out,
                           const TensorView& lse, const TensorView& sink_logits,
                           cudaStream_t stream);

// Output of large rows stands in `out` already: scales it for the sinks, and writes lse from
// `lse_base2` [tokens, num_heads]. is_large [num_rows] tells the rows, q_indptr their tokens.
struct LargeRows {
  const float* lse_base2 = nullptr;
  const std::uint8_t* is_large = nullptr;
  const std::int32_t* q_indptr = nullptr;
  std::int32_t num_rows = 0;
  std::int64_t num_tokens = 0;
};
void launch_finish_large(const LargeRows& rows, const TensorView& out, const TensorView& lse,
                         const TensorView& sink_logits, cudaStream_t stream);

// Backend::merge_states.
void launch_merge_states(const TensorView& out_a, const TensorView& lse_a, const TensorView& out_b,
                         const TensorView& lse_b, const TensorView& out, const TensorView& lse,
                         cudaStream_t stream);

}  // namespace seqattn
