#pragma once

#include <cstdint>
#include <string_view>

#include "backend.h"
#include "fa2.h"
#include "seqattn/tensor_view.h"

// What kernels on a device want to know of tensors, and what they expect of them.
namespace seqattn {

// Strides of [tokens, heads, dim], in elements. No address depends on the stride of a dimension of
// one entry, and DLPack lets it be anything, odd numbers too: these are a row-major tensor's there.
std::int64_t token_stride(const TensorView& tokens) noexcept;
std::int64_t head_stride(const TensorView& tokens) noexcept;
// Likewise of a plane; 0 there.
Fa2Cache cache_of(const Plane& plane) noexcept;

bool is_aligned(const void* data) noexcept;  // to vectors of 16 bytes

// Throw InvalidArgumentError where vectors of 16 bytes would not be aligned, and UnsupportedError
// for tensors that span more than kernels count to.
void check_aligned(std::string_view name, const void* data);
void check_queries(const TensorView& q);
void check_cache(std::string_view name, const Plane& plane);

}  // namespace seqattn
