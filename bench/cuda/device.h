#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

// CUDA's objects, owned; every call checked.
namespace seqattn::bench {

// Throws std::runtime_error with the call and the device's words unless the status is success.
void check(cudaError_t status, const char* call);
#define SEQATTN_BENCH_CHECK(call) ::seqattn::bench::check((call), #call)

struct DeviceInfo {
  std::string name, driver, runtime;
  int num_sms = 0;
  bool is_hopper = false;
  std::int64_t free_bytes = 0;
};
DeviceInfo device_info();

// Device memory.
class Buffer {
 public:
  explicit Buffer(std::int64_t num_bytes);
  template <class T>
  explicit Buffer(const std::vector<T>& content)
      : Buffer(static_cast<std::int64_t>(content.size() * sizeof(T))) {
    upload(content.data(), content.size() * sizeof(T));
  }
  ~Buffer();
  Buffer(Buffer&& other) noexcept;
  Buffer& operator=(Buffer&&) = delete;

  void* data() const { return data_; }
  template <class T>
  T* as() const {
    return static_cast<T*>(data_);
  }
  std::int64_t num_bytes() const { return num_bytes_; }
  void poison(cudaStream_t stream) const;  // every byte 0xff: NaN in every float type
  void upload(const void* from, std::size_t bytes) const;
  template <class T>
  std::vector<T> download(std::int64_t first, std::int64_t count) const {
    std::vector<T> host(static_cast<std::size_t>(count));
    copy_out(host.data(), first * static_cast<std::int64_t>(sizeof(T)), host.size() * sizeof(T));
    return host;
  }

 private:
  void copy_out(void* to, std::int64_t offset, std::size_t bytes) const;
  void* data_ = nullptr;
  std::int64_t num_bytes_ = 0;
};

// Pinned host memory.
class PinnedBuffer {
 public:
  explicit PinnedBuffer(std::size_t num_bytes);
  ~PinnedBuffer();
  PinnedBuffer(const PinnedBuffer&) = delete;
  PinnedBuffer& operator=(const PinnedBuffer&) = delete;
  void* data() const { return data_; }

 private:
  void* data_ = nullptr;
};

class OwnStream {
 public:
  OwnStream();
  ~OwnStream();
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  cudaStream_t get() const { return stream_; }
  void wait() const;

 private:
  cudaStream_t stream_ = nullptr;
};

class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  void record(cudaStream_t stream) const;
  double microseconds_since(const Event& before) const;  // waits for this event

 private:
  cudaEvent_t event_ = nullptr;
};

// What `work` enqueues on the stream, recorded.
class Graph {
 public:
  Graph(cudaStream_t stream, const std::function<void()>& work);
  ~Graph();
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  void launch(cudaStream_t stream) const;

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

}  // namespace seqattn::bench
