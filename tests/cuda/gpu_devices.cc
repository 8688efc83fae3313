// The devices of the attention suite's helpers (tests/attention/devices.h) as these tests need
// them: memory of a GPU as well.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "devices.h"
#include "gpu_support.h"

namespace seqattn::testing {
namespace {

bool is_cuda(Device device) { return device.type == DeviceType::kCUDA; }

}  // namespace

std::vector<Device> test_devices() { return {cuda(0)}; }
bool is_here(Device device) { return !is_cuda(device) || has_gpu(); }

AttentionCase device_case(AttentionCase c, Device device) {
  if (!is_cuda(device)) return c;
  if (size_of(c.kv_dtype) != 2) c.kv_dtype = DType::kFloat16;
  c.kv_scaling = KVScaling::kFixed;
  c.q_dtype = c.kv_dtype;
  if (c.out_dtype != DType::kFloat32) c.out_dtype = c.kv_dtype;
  c.head_dim = c.head_dim <= 64 ? 64 : c.head_dim <= 128 ? 128 : 256;
  c.head_dim_v = 0;
  if (c.sm_scale != 0) c.sm_scale = std::max(std::abs(c.sm_scale), 1e-3);
  return c;
}

// Kernels load vectors of 16 bytes.
std::int64_t gap_unit(Device device) { return is_cuda(device) ? 8 : 1; }

const char* why_hidden_nan_is_seen(Device device) {
  return is_cuda(device)
             ? "FlashInfer's kernels give what is hidden within a row the weight 0, and "
               "0 times NaN is NaN"
             : nullptr;
}

// The second product takes them in the type of the values.
double weight_rounding(Device device, DType kv_dtype) {
  return is_cuda(device) ? epsilon(kv_dtype) : 0;
}

DeviceMemory::DeviceMemory(Device device, std::int64_t num_bytes)
    : device_(device), num_bytes_(num_bytes) {
  if (!is_cuda(device)) {
    data_ = std::shared_ptr<std::byte[]>(new std::byte[static_cast<std::size_t>(num_bytes)]);
    return;
  }
  void* memory = nullptr;
  check(cudaMalloc(&memory, static_cast<std::size_t>(std::max<std::int64_t>(num_bytes, 1))));
  data_ = std::shared_ptr<std::byte[]>(static_cast<std::byte*>(memory),
                                       [](std::byte* p) { cudaFree(p); });
}

void copy_to_device(Device device, void* to, std::span<const std::byte> from) {
  if (from.empty()) return;
  if (!is_cuda(device)) {
    std::memcpy(to, from.data(), from.size());
    return;
  }
  check(cudaDeviceSynchronize());
  check(cudaMemcpy(to, from.data(), from.size(), cudaMemcpyHostToDevice));
  check(cudaDeviceSynchronize());
}

std::vector<std::byte> copy_to_host(Device device, const void* from, std::int64_t num_bytes) {
  std::vector<std::byte> bytes(static_cast<std::size_t>(num_bytes));
  if (bytes.empty()) return bytes;
  if (!is_cuda(device)) {
    std::memcpy(bytes.data(), from, bytes.size());
    return bytes;
  }
  check(cudaDeviceSynchronize());
  check(cudaMemcpy(bytes.data(), from, bytes.size(), cudaMemcpyDeviceToHost));
  return bytes;
}

// No path is forced here.
ForcedPath::ForcedPath(const std::string&) : was_set_(false) {}
ForcedPath::~ForcedPath() = default;
std::vector<std::string> paths_of(Device) { return {""}; }

std::string test_name(Device device) {
  return (is_cuda(device) ? "cuda_" : "cpu_") + std::to_string(device.index);
}

}  // namespace seqattn::testing
