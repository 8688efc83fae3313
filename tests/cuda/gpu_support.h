#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <functional>
#include <stdexcept>
#include <string>

#include "seqattn/types.h"

// What the tests of the CUDA backend need of CUDA itself.
namespace seqattn::testing {

inline void check(cudaError_t status) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string(cudaGetErrorName(status)) + ": " +
                           cudaGetErrorString(status));
}

// Whether this machine has a GPU.
inline bool has_gpu() {
  int count = 0;
  const bool found = cudaGetDeviceCount(&count) == cudaSuccess && count > 0;
  cudaGetLastError();
  return found;
}

// Whether the GPU is Hopper, for which FA3 is compiled.
inline bool is_hopper() {
  int major = 0, minor = 0;
  check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, 0));
  check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, 0));
  return major == 9 && minor == 0;
}

// A stream that does not wait for the default stream, nor it for this.
class OwnStream {
 public:
  OwnStream() { check(cudaStreamCreateWithFlags(&stream_, cudaStreamNonBlocking)); }
  ~OwnStream() { cudaStreamDestroy(stream_); }
  OwnStream(const OwnStream&) = delete;
  OwnStream& operator=(const OwnStream&) = delete;
  Stream get() const { return {stream_}; }
  cudaStream_t handle() const { return stream_; }
  void wait() const { check(cudaStreamSynchronize(stream_)); }

 private:
  cudaStream_t stream_ = nullptr;
};

// Work recorded once, launched any number of times.
class CapturedGraph {
 public:
  // Throws what `work` throws, with the capture ended. Capture errors are global: no call of any
  // thread may do what a capture forbids.
  CapturedGraph(const OwnStream& stream, const std::function<void()>& work) {
    check(cudaStreamBeginCapture(stream.handle(), cudaStreamCaptureModeGlobal));
    try {
      work();
    } catch (...) {
      cudaStreamEndCapture(stream.handle(), &graph_);
      if (graph_ != nullptr) cudaGraphDestroy(graph_);
      throw;
    }
    check(cudaStreamEndCapture(stream.handle(), &graph_));
    check(cudaGraphInstantiate(&exec_, graph_, 0));
  }
  ~CapturedGraph() {
    cudaGraphExecDestroy(exec_);
    cudaGraphDestroy(graph_);
  }
  CapturedGraph(const CapturedGraph&) = delete;
  CapturedGraph& operator=(const CapturedGraph&) = delete;
  void launch(const OwnStream& stream) const { check(cudaGraphLaunch(exec_, stream.handle())); }

 private:
  cudaGraph_t graph_ = nullptr;
  cudaGraphExec_t exec_ = nullptr;
};

// Tests that derive from this need a GPU; they say so and skip themselves where there is none.
class GpuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_gpu()) GTEST_SKIP() << "no GPU here: this test needs one";
    set_up();
  }
  virtual void set_up() {}
};

}  // namespace seqattn::testing
