#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>
#include <span>

#include "backend.h"
#include "seqattn/tensor_view.h"
#include "token_kernels.h"

// Elements of 8 bits with scales on a device: the bits of src/cpu/quantise.h.
namespace seqattn {

// planes[i] <- tensors[i] / scale, i in {0, 1}, and tensors[i] <- planes[i] * scale: keys and
// values in one launch, or in two where the tensors differ in type. Scales of tokens are made
// first.
void launch_quantise(std::span<const Plane> planes, std::span<const TensorView> tensors,
                     const TokenTable& table, cudaStream_t stream);
void launch_dequantise(std::span<const Plane> planes, std::span<const TensorView> tensors,
                       const TokenTable& table, cudaStream_t stream);

// Pages of keys and values as float16 or bfloat16, scales multiplied in: page i of each copy is
// page pages[i] (in device memory). `copies` have the planes' page_size, num_heads and head_dim.
// REQUIRES vectors of 16 bytes throughout.
void launch_widen_pages(std::span<const Plane> planes, std::span<const Plane> copies,
                        const std::int32_t* pages, std::int64_t num_pages, cudaStream_t stream);

}  // namespace seqattn
