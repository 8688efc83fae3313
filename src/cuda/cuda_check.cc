#include "cuda_check.h"

#include <atomic>

#include "message.h"
#include "seqattn/error.h"

namespace seqattn {
namespace {

// Errors that stay with the device until the process ends (the runtime's documentation says which).
bool is_sticky(cudaError_t status) noexcept {
  switch (status) {
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorECCUncorrectable:
      return true;
    default:
      return false;
  }
}

// The call that first met a sticky error: later calls only repeat what it said.
std::atomic<bool> sticky_reported{false};

}  // namespace

void check_cuda(cudaError_t status, const char* call) {
  if (status == cudaSuccess) [[likely]] {
    return;
  }
  cudaGetLastError();  // an error that is not sticky must not be reported by the next call too
  std::string text =
      concat(call, ": ", cudaGetErrorName(status), " (", cudaGetErrorString(status), ")");
  if (is_sticky(status)) {
    text += sticky_reported.exchange(true)
                ? "; the device failed before, and no call can succeed until the process ends"
                : "; an earlier kernel of this process failed, and no call can succeed until the "
                  "process ends: run it under compute-sanitizer to find which";
  }
  throw BackendError(text);
}

DeviceGuard::DeviceGuard(int device) {
  int current = 0;
  SEQATTN_CUDA_CHECK(cudaGetDevice(&current));
  if (current == device) return;
  SEQATTN_CUDA_CHECK(cudaSetDevice(device));
  before_ = current;
}

DeviceGuard::~DeviceGuard() {
  if (before_ >= 0) cudaSetDevice(before_);
}

bool is_capturing(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  SEQATTN_CUDA_CHECK(cudaStreamIsCapturing(stream, &status));
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace seqattn
