#include "device.h"

#include <algorithm>
#include <stdexcept>
#include <utility>

namespace seqattn::bench {
namespace {

std::string version_text(int version) {
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10);
}

int attribute(cudaDeviceAttr which) {
  int value = 0;
  SEQATTN_BENCH_CHECK(cudaDeviceGetAttribute(&value, which, 0));
  return value;
}

}  // namespace

void check(cudaError_t status, const char* call) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(call) + ": " + cudaGetErrorName(status) + " (" +
                           cudaGetErrorString(status) + ")");
}

DeviceInfo device_info() {
  DeviceInfo info;
  int count = 0;
  SEQATTN_BENCH_CHECK(cudaGetDeviceCount(&count));
  if (count == 0) throw std::runtime_error("there is no CUDA device here");
  SEQATTN_BENCH_CHECK(cudaSetDevice(0));
  cudaDeviceProp properties{};
  SEQATTN_BENCH_CHECK(cudaGetDeviceProperties(&properties, 0));
  info.name = properties.name;
  int driver = 0, runtime = 0;
  SEQATTN_BENCH_CHECK(cudaDriverGetVersion(&driver));
  SEQATTN_BENCH_CHECK(cudaRuntimeGetVersion(&runtime));
  info.driver = version_text(driver);
  info.runtime = version_text(runtime);
  info.num_sms = attribute(cudaDevAttrMultiProcessorCount);
  info.is_hopper = attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
                   attribute(cudaDevAttrComputeCapabilityMinor) == 0;
  std::size_t free_bytes = 0, total_bytes = 0;
  SEQATTN_BENCH_CHECK(cudaMemGetInfo(&free_bytes, &total_bytes));
  info.free_bytes = static_cast<std::int64_t>(free_bytes);
  return info;
}

Buffer::Buffer(std::int64_t num_bytes) : num_bytes_(num_bytes) {
  SEQATTN_BENCH_CHECK(
      cudaMalloc(&data_, static_cast<std::size_t>(std::max<std::int64_t>(num_bytes, 16))));
}

Buffer::~Buffer() {
  if (data_ != nullptr) cudaFree(data_);
}

Buffer::Buffer(Buffer&& other) noexcept
    : data_(std::exchange(other.data_, nullptr)), num_bytes_(other.num_bytes_) {}

void Buffer::poison(cudaStream_t stream) const {
  SEQATTN_BENCH_CHECK(cudaMemsetAsync(data_, 0xff, static_cast<std::size_t>(num_bytes_), stream));
}

void Buffer::upload(const void* from, std::size_t bytes) const {
  if (bytes == 0) return;
  SEQATTN_BENCH_CHECK(cudaMemcpy(data_, from, bytes, cudaMemcpyHostToDevice));
}

void Buffer::copy_out(void* to, std::int64_t offset, std::size_t bytes) const {
  if (bytes == 0) return;
  SEQATTN_BENCH_CHECK(
      cudaMemcpy(to, static_cast<const char*>(data_) + offset, bytes, cudaMemcpyDeviceToHost));
}

PinnedBuffer::PinnedBuffer(std::size_t num_bytes) {
  SEQATTN_BENCH_CHECK(cudaMallocHost(&data_, num_bytes));
}

PinnedBuffer::~PinnedBuffer() { cudaFreeHost(data_); }

OwnStream::OwnStream() {
  SEQATTN_BENCH_CHECK(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking));
}

OwnStream::~OwnStream() { cudaStreamDestroy(stream_); }

void OwnStream::wait() const { SEQATTN_BENCH_CHECK(cudaStreamSynchronize(stream_)); }

Event::Event() { SEQATTN_BENCH_CHECK(cudaEventCreate(&event_)); }

Event::~Event() { cudaEventDestroy(event_); }

void Event::record(cudaStream_t stream) const {
  SEQATTN_BENCH_CHECK(cudaEventRecord(event_, stream));
}

double Event::microseconds_since(const Event& before) const {
  SEQATTN_BENCH_CHECK(cudaEventSynchronize(event_));
  float milliseconds = 0;
  SEQATTN_BENCH_CHECK(cudaEventElapsedTime(&milliseconds, before.event_, event_));
  return 1000.0 * static_cast<double>(milliseconds);
}

Graph::Graph(cudaStream_t stream, const std::function<void()>& work) {
  SEQATTN_BENCH_CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  try {
    work();
  } catch (...) {
    cudaStreamEndCapture(stream, &graph_);
    if (graph_ != nullptr) cudaGraphDestroy(graph_);
    throw;
  }
  SEQATTN_BENCH_CHECK(cudaStreamEndCapture(stream, &graph_));
  SEQATTN_BENCH_CHECK(cudaGraphInstantiate(&exec_, graph_, 0));
}

Graph::~Graph() {
  cudaGraphExecDestroy(exec_);
  cudaGraphDestroy(graph_);
}

void Graph::launch(cudaStream_t stream) const {
  SEQATTN_BENCH_CHECK(cudaGraphLaunch(exec_, stream));
}

}  // namespace seqattn::bench
