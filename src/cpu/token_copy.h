#pragma once

#include <span>

#include "backend.h"

// Copies between planes, and between planes and tensors: Backend's members say what they do.
namespace seqattn {

// `num_threads` as AttentionOptions has it; what is written does not depend on it.
void copy_pages_cpu(std::span<const Plane> planes, std::span<const PageCopy> copies);
void move_tokens_cpu(std::span<const Plane> planes, std::span<const TokenMove> moves);
void write_tokens_cpu(std::span<const Plane> planes, std::span<const TensorView> tensors,
                      std::span<const TokenRange> ranges, int num_threads = 0);
void read_tokens_cpu(std::span<const Plane> planes, std::span<const TensorView> tensors,
                     std::span<const TokenRange> ranges);

}  // namespace seqattn
