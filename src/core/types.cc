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
    case DType::kFloat8E4M3:
      return "float8_e4m3fn";
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

std::string_view to_string(KVScaling scaling) noexcept {
  switch (scaling) {
    case KVScaling::kFixed:
      return "fixed";
    case KVScaling::kPerToken:
      return "per_token";
  }
  return "unknown scaling";
}

std::string to_string(Device device) {
  return device.type == DeviceType::kCPU ? "cpu" : "cuda:" + std::to_string(device.index);
}

}  // namespace seqattn
