#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "attention_case.h"
#include "seqattn/types.h"

// The devices that the attention suite runs on, and all that moves bytes between host and device.
// Another backend's tests are another line in test_devices and its copies in here.
namespace seqattn::testing {

// Every device that this build can serve, and whether this machine has it.
std::vector<Device> test_devices();
bool is_here(Device device);

// The case as a device serves it: unchanged on a CPU; on a GPU with 16-bit types, the next head_dim
// that kernels are compiled for, and a scale that they take.
AttentionCase device_case(AttentionCase c, Device device);

// Gaps between heads, tokens and pages are multiples of so many elements.
std::int64_t gap_unit(Device device);

// Why NaN among the keys of a row reaches queries that do not see it; null where it does not.
const char* why_hidden_nan_is_seen(Device device);

// How far a device rounds the weights of the softmax, relative to one: 0 where it does not.
double weight_rounding(Device device, const AttentionCase& attention_case);

// Memory on a device, of exactly so many bytes: what is read beyond them, sanitizers see.
class DeviceMemory {
 public:
  DeviceMemory(Device device, std::int64_t num_bytes);
  Device device() const { return device_; }
  std::int64_t num_bytes() const { return num_bytes_; }
  std::byte* data() const { return data_.get(); }

 private:
  Device device_;
  std::int64_t num_bytes_;
  std::shared_ptr<std::byte[]> data_;
};

// Complete when they return, behind all work that was enqueued before.
void copy_to_device(Device device, void* to, std::span<const std::byte> from);
std::vector<std::byte> copy_to_host(Device device, const void* from, std::int64_t num_bytes);

// One way in which a device computes attention, forced for BatchAttention objects that are made
// while it lives: on a CPU an instruction set. The empty name leaves the choice to the library.
class ForcedPath {
 public:
  explicit ForcedPath(const std::string& name);
  ~ForcedPath();
  ForcedPath(const ForcedPath&) = delete;
  ForcedPath& operator=(const ForcedPath&) = delete;

 private:
  std::string before_;
  bool was_set_;
};

// The names of all paths of a device.
std::vector<std::string> paths_of(Device device);

// "cpu_0": for the names of parametrised tests.
std::string test_name(Device device);

}  // namespace seqattn::testing
