#pragma once

#include <memory>
#include <string>
#include <vector>

#include "backend.h"

namespace seqattn {

// Attention on the CPU: Highway's vectors, OpenMP's threads. The instruction set is the best one of
// this machine, or the one that the environment variable SEQATTN_CPU_TARGET names at this moment.
//
// Runs may go on at the same time on one object. A run keeps its working memory for the next one of
// the same thread.
//
// Throws UnsupportedError for a head_dim beyond kMaxHeadDim; InvalidArgumentError when
// SEQATTN_CPU_TARGET names no instruction set of this build and machine.
std::unique_ptr<AttentionKernel> make_cpu_attention(const AttentionShape& shape,
                                                    const PlanCapacity& capacity);

// The instruction sets that this build and machine have, best first: "avx3", "avx2", "sse4", ...
std::vector<std::string> cpu_attention_targets();

}  // namespace seqattn
