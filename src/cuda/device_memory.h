#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <memory>
#include <mutex>
#include <vector>

namespace seqattn {

// Device memory that grows on demand, in the order of a stream and without waiting for the device.
class DeviceBuffer {
 public:
  DeviceBuffer() = default;
  // Waits for the device, so that no kernel loses what it works with.
  ~DeviceBuffer();
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;

  // At least so many bytes, aligned to 256. What was there is lost when they are more than before;
  // work that still reads it must lie in front on the stream. Throws BackendError.
  std::byte* reserve(std::size_t bytes, cudaStream_t stream);
  std::byte* data() const noexcept { return data_; }
  std::size_t num_bytes() const noexcept { return bytes_; }

 private:
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  int device_ = 0;
};

// Pinned host memory on its way to a device. A slot is used again only after the copy out of it has
// been made: an event says so, nobody waits, and there are as many slots as copies under way.
// Several host threads may use it.
class Staging {
 public:
  // `wants_device`: a slot has device memory of its own as well, which is in use until release.
  explicit Staging(bool wants_device) : wants_device_(wants_device) {}
  ~Staging();
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  struct Slot {
    std::byte* host = nullptr;
    std::byte* device = nullptr;
    std::size_t bytes = 0;
    cudaEvent_t event = nullptr;
    bool is_taken = false;
  };

  // A slot of at least so many bytes on the current device. Throws BackendError.
  Slot* take(std::size_t bytes);
  // Work that uses the slot has been enqueued on the stream; afterwards the slot is free.
  void release(Slot* slot, cudaStream_t stream);

 private:
  void make_room(Slot& slot, std::size_t bytes) const;

  bool wants_device_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<Slot>> slots_;
};

}  // namespace seqattn
