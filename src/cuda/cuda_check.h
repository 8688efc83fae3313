#pragma once

#include <cuda_runtime_api.h>

#include <string>

namespace seqattn {

// Throws BackendError with the call and the device's own words unless the status is success. An
// error that the device keeps (after an illegal address, say) is told as such: nothing on the
// device works from then on, and only a new process helps.
void check_cuda(cudaError_t status, const char* call);

// Reports the error of a kernel launch that has just been made.
inline void check_launch(const char* kernel) { check_cuda(cudaGetLastError(), kernel); }

// Makes a device the current one of this thread, and puts the one before back.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device);
  ~DeviceGuard();
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = -1;  // -1: nothing to put back
};

// Whether work on the stream is being recorded into a graph.
bool is_capturing(cudaStream_t stream);

}  // namespace seqattn

// The statement's value is thrown where it is an error: SEQATTN_CUDA_CHECK(cudaMalloc(&p, n)).
#define SEQATTN_CUDA_CHECK(call) ::seqattn::check_cuda((call), #call)
