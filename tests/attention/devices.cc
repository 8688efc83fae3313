#include "devices.h"

#include <cstdlib>
#include <cstring>

#include "cpu_attention.h"

namespace seqattn::testing {
namespace {

constexpr const char* kTargetVariable = "SEQATTN_CPU_TARGET";

}  // namespace

std::vector<Device> test_devices() { return {cpu()}; }
bool is_here(Device) { return true; }

AttentionCase device_case(AttentionCase c, Device) { return c; }
std::int64_t gap_unit(Device) { return 1; }
const char* why_hidden_nan_is_seen(Device) { return nullptr; }
double weight_rounding(Device, DType) { return 0; }

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

ForcedPath::ForcedPath(const std::string& name) {
  const char* before = std::getenv(kTargetVariable);
  was_set_ = before != nullptr;
  if (was_set_) before_ = before;
  if (!name.empty()) setenv(kTargetVariable, name.c_str(), 1);
}

ForcedPath::~ForcedPath() {
  if (was_set_) {
    setenv(kTargetVariable, before_.c_str(), 1);
  } else {
    unsetenv(kTargetVariable);
  }
}

std::vector<std::string> paths_of(Device) { return cpu_attention_targets(); }

std::string test_name(Device device) {
  return (device.type == DeviceType::kCPU ? "cpu_" : "cuda_") + std::to_string(device.index);
}

}  // namespace seqattn::testing
