#include <cstring>

#include "devices.h"

// The part of devices.h that moves bytes, where every device is the CPU.
namespace seqattn::testing {

bool is_here(Device) { return true; }
std::int64_t gap_unit(Device) { return 1; }
const char* why_hidden_nan_is_seen(Device) { return nullptr; }

DeviceMemory::DeviceMemory(Device device, std::int64_t num_bytes)
    : device_(device),
      num_bytes_(num_bytes),
      data_(new std::byte[static_cast<std::size_t>(num_bytes)]) {}

void copy_to_device(Device, void* to, std::span<const std::byte> from) {
  if (!from.empty()) std::memcpy(to, from.data(), from.size());
}

std::vector<std::byte> copy_to_host(Device, const void* from, std::int64_t num_bytes) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(num_bytes));
  if (!bytes.empty()) std::memcpy(bytes.data(), from, bytes.size());
  return bytes;
}

std::string test_name(Device device) {
  return (device.type == DeviceType::kCPU ? "cpu_" : "cuda_") + std::to_string(device.index);
}

}  // namespace seqattn::testing
