#pragma once

#include <cstdint>

#include "seqattn/error.h"
#include "seqattn/tensor_view.h"

namespace seqattn {

// The DLDataTypeCode of DType::kFloat8E4M3, which older headers of DLPack lack.
inline constexpr std::uint8_t kDLFloat8E4M3FN = 10;

// A view of a DLPack tensor. Any type with the fields of `DLTensor` will do, so that this header
// needs none of DLPack's: include the caller's own <dlpack/dlpack.h> and pass the tensor. Throws
// InvalidArgumentError for a rank above TensorView::kMaxRank, a negative size or sizes whose
// product does not fit int64, and UnsupportedError for an element type or device that seqattn does
// not know.
template <class DLTensorLike>
TensorView from_dlpack(const DLTensorLike& tensor, bool read_only = false) {
  constexpr int kDLFloat = 2, kDLBfloat = 4;                                    // DLDataTypeCode
  constexpr int kDLCPU = 1, kDLCUDA = 2, kDLCUDAHost = 3, kDLCUDAManaged = 13;  // DLDeviceType
  TensorView view;
  const int code = static_cast<int>(tensor.dtype.code), bits = static_cast<int>(tensor.dtype.bits);
  if (tensor.dtype.lanes == 1 && code == kDLFloat && bits == 32) {
    view.dtype = DType::kFloat32;
  } else if (tensor.dtype.lanes == 1 && code == kDLFloat && bits == 16) {
    view.dtype = DType::kFloat16;
  } else if (tensor.dtype.lanes == 1 && code == kDLBfloat && bits == 16) {
    view.dtype = DType::kBFloat16;
  } else if (tensor.dtype.lanes == 1 && code == kDLFloat8E4M3FN && bits == 8) {
    view.dtype = DType::kFloat8E4M3;
  } else {
    throw UnsupportedError("DLPack tensor: type code " + std::to_string(code) + " with " +
                           std::to_string(bits) + " bits and " +
                           std::to_string(tensor.dtype.lanes) +
                           " lanes; supported are float32, float16, bfloat16 and float8_e4m3fn");
  }
  const int device = static_cast<int>(tensor.device.device_type);
  if (device == kDLCUDA || device == kDLCUDAManaged) {
    view.device = cuda(static_cast<int>(tensor.device.device_id));
  } else if (device != kDLCPU && device != kDLCUDAHost) {
    throw UnsupportedError("DLPack tensor: device type " + std::to_string(device) +
                           "; supported are CPU (1) and CUDA (2)");
  }
  if (tensor.ndim < 1 || tensor.ndim > TensorView::kMaxRank) {
    throw InvalidArgumentError("DLPack tensor: rank " + std::to_string(tensor.ndim) +
                               "; expected 1 to " + std::to_string(TensorView::kMaxRank));
  }
  view.rank = static_cast<int>(tensor.ndim);
  std::int64_t row_major = 1;
  for (int i = view.rank - 1; i >= 0; --i) {
    if (tensor.shape[i] < 0) {
      throw InvalidArgumentError("DLPack tensor: size " + std::to_string(tensor.shape[i]) +
                                 " of dimension " + std::to_string(i) + " is negative");
    }
    view.shape[i] = tensor.shape[i];
    view.strides[i] = tensor.strides != nullptr ? tensor.strides[i] : row_major;
    if (__builtin_mul_overflow(row_major, tensor.shape[i], &row_major)) {
      throw InvalidArgumentError("DLPack tensor: more than 2^63 elements");
    }
  }
  view.data = static_cast<char*>(tensor.data) + tensor.byte_offset;
  view.read_only = read_only;
  return view;
}

}  // namespace seqattn
