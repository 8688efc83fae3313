#include "backend.h"
#include "cpu_backend.h"
#include "seqattn/error.h"
#ifdef SEQATTN_HAS_CUDA
#include "cuda_backend.h"
#endif

namespace seqattn {

Backend& find_backend(Device device) {
  if (device.type == DeviceType::kCPU) return cpu_backend();
#ifdef SEQATTN_HAS_CUDA
  return cuda_backend(device.index);
#else
  throw UnsupportedError("device " + to_string(device) +
                         ": this build of seqattn serves cpu only; build it with "
                         "-DSEQATTN_CUDA=ON (pip install . -C cmake.define.SEQATTN_CUDA=ON)");
#endif
}

}  // namespace seqattn
