#include "device_memory.h"

#include <algorithm>
#include <memory>

#include "cuda_check.h"

namespace seqattn {

DeviceBuffer::~DeviceBuffer() {
  if (data_ == nullptr) return;
  // Kernels that use it may still run, on any stream, and cudaFree waits for none of them: the
  // memory comes from cudaMallocAsync. Errors are those of earlier work, and reported there.
  int before = 0;
  cudaGetDevice(&before);
  cudaSetDevice(device_);
  cudaDeviceSynchronize();
  cudaFree(data_);
  cudaSetDevice(before);
}

std::byte* DeviceBuffer::reserve(std::size_t bytes, cudaStream_t stream) {
  if (bytes <= bytes_) return data_;
  // A half more than asked for, so that a batch that grows by a page a step does not allocate each
  // time.
  const std::size_t grown = bytes_ == 0 ? bytes : bytes + bytes / 2;
  void* data = nullptr;
  SEQATTN_CUDA_CHECK(cudaGetDevice(&device_));
  SEQATTN_CUDA_CHECK(cudaMallocAsync(&data, grown, stream));
  if (data_ != nullptr) {
    const cudaError_t status = cudaFreeAsync(data_, stream);
    if (status != cudaSuccess) cudaFreeAsync(data, stream);
    check_cuda(status, "cudaFreeAsync(data_, stream)");
  }
  data_ = static_cast<std::byte*>(data);
  bytes_ = grown;
  return data_;
}

Staging::~Staging() {
  for (const auto& slot : slots_) {
    cudaEventSynchronize(slot->event);
    cudaEventDestroy(slot->event);
    cudaFreeHost(slot->host);
    if (slot->device != nullptr) cudaFree(slot->device);
  }
}

Staging::Slot* Staging::take(std::size_t bytes) {
  const std::lock_guard lock(mutex_);
  for (const auto& slot : slots_) {
    if (slot->is_taken) continue;
    const cudaError_t status = cudaEventQuery(slot->event);
    if (status == cudaErrorNotReady) continue;
    check_cuda(status, "cudaEventQuery(slot->event)");
    make_room(*slot, bytes);
    slot->is_taken = true;
    return slot.get();
  }
  auto slot = std::make_unique<Slot>();
  slots_.reserve(slots_.size() + 1);
  SEQATTN_CUDA_CHECK(cudaEventCreateWithFlags(&slot->event, cudaEventDisableTiming));
  slots_.push_back(std::move(slot));
  make_room(*slots_.back(), bytes);
  slots_.back()->is_taken = true;
  return slots_.back().get();
}

void Staging::make_room(Slot& slot, std::size_t bytes) const {
  if (bytes <= slot.bytes) return;
  bytes = std::max(bytes + bytes / 2, std::size_t{4096});
  void* host = nullptr;
  void* device = nullptr;
  SEQATTN_CUDA_CHECK(cudaMallocHost(&host, bytes));
  if (wants_device_) {
    const cudaError_t status = cudaMalloc(&device, bytes);
    if (status != cudaSuccess) cudaFreeHost(host);
    check_cuda(status, "cudaMalloc(&device, bytes)");
  }
  // The slot's event has passed: nothing reads the old memory any more.
  if (slot.host != nullptr) cudaFreeHost(slot.host);
  if (slot.device != nullptr) cudaFree(slot.device);
  slot.host = static_cast<std::byte*>(host);
  slot.device = static_cast<std::byte*>(device);
  slot.bytes = bytes;
}

void Staging::release(Slot* slot, cudaStream_t stream) {
  const cudaError_t status = cudaEventRecord(slot->event, stream);
  const std::lock_guard lock(mutex_);
  // Where no event tells when the copy is made, the slot stays taken for good.
  slot->is_taken = status != cudaSuccess;
  check_cuda(status, "cudaEventRecord(slot->event, stream)");
}

}  // namespace seqattn
