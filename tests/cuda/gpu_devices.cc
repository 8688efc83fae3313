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
  if (c.kv_dtype == DType::kFloat32) c.kv_dtype = DType::kFloat16;
  if (!has_scales(c.kv_dtype)) {
    c.q_dtype = c.kv_dtype;
  } else if (c.q_dtype == DType::kFloat32) {
    c.q_dtype = DType::kBFloat16;
  }
  if (c.out_dtype != DType::kFloat32) c.out_dtype = c.q_dtype;
  c.head_dim = c.head_dim <= 64 ? 64 : c.head_dim <= 128 ? 128 : 256;
  c.head_dim_v = 0;
  if (c.sm_scale != 0) c.sm_scale = std::max(std::abs(c.sm_scale), 1e-3);
  return c;
}

// Kernels load vectors of 16 bytes.
std::int64_t gap_unit(Device device) { return is_cuda(device) ? 16 : 1; }

const char* why_hidden_nan_is_seen(Device device) {
  return is_cuda(device)
             ? "FlashInfer's kernels give what is hidden within a row the weight 0, and "
               "0 times NaN is NaN"
             : nullptr;
}

// The second product takes them in the type of the values. Of 8 bits our own kernel reads the
// elements as they are, and takes weights as float16; for others the elements themselves are
// rounded to the type of the queries, keys too.
double weight_rounding(Device device, const AttentionCase& c) {
  if (!is_cuda(device)) return 0;
  if (!has_scales(c.kv_dtype)) return epsilon(c.kv_dtype);
  const std::int64_t group = c.num_qo_heads / c.num_kv_heads;
  const std::int64_t most = c.head_dim == 256 ? 8 : 16;  // query rows
  const bool is_decode = is_hopper() && c.page_size % 16 == 0 && c.mask_density < 0 &&
                         std::all_of(c.rows.begin(), c.rows.end(), [&](const RowLengths& row) {
                           return row.q_len * group <= most;
                         });
  return is_decode ? epsilon(DType::kFloat16) : 3 * epsilon(c.q_dtype);
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
