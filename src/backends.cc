#include "backend.h"
#include "cpu_backend.h"
#include "seqattn/error.h"

namespace seqattn {

Backend& find_backend(Device device) {
  if (device.type == DeviceType::kCPU) return cpu_backend();
  throw UnsupportedError("device " + to_string(device) + ": this build of seqattn serves cpu only");
}

}  // namespace seqattn
