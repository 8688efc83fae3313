#pragma once

#include <memory>

#include "backend.h"

namespace seqattn {

// Attention on a CUDA device: FlashInfer's kernels, our own schedule (attention_schedule.h) and
// merging. One object's runs share a workspace: let them follow one another on a stream.
//
// Throws UnsupportedError, listing what is compiled, for a dtype or head_dim without kernels, and
// for a capacity whose queries do not fit a tile; InvalidArgumentError for a capacity without
// max_sequences, max_q_tokens or max_pages.
std::unique_ptr<AttentionKernel> make_cuda_attention(const AttentionShape& shape,
                                                     const PlanCapacity& capacity);

}  // namespace seqattn
