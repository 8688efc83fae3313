#include "seqattn/types.h"

namespace seqattn {

std::string_view to_string(DType dtype) noexcept {
  switch (dtype) {
    case DType::kFloat32:
      return "float32";
    case DType::kFloat16:
      return "float16";
    case DType::kBFloat16:
      return "bfloat16";
  }
  return "unknown dtype";
}

std::string_view to_string(KVLayout layout) noexcept {
  switch (layout) {
    case KVLayout::kNHD:
      return "NHD";
    case KVLayout::kHND:
      return "HND";
  }
  return "unknown layout";
}

std::string to_string(Device device) {
  return device.type == DeviceType::kCPU ? "cpu" : "cuda:" + std::to_string(device.index);
}

}  // namespace seqattn
