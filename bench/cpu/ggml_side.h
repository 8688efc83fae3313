#pragma once

#include <memory>
#include <string>
#include <vector>

#include "cases.h"
#include "workload.h"

namespace seqattn::bench {

// ggml's flash attention over the same inputs, contiguous, in one of the layouts that it takes.
class GgmlSide {
 public:
  enum class Cache {
    kByToken,  // llama.cpp's: [kv_len, heads, head_dim], a view across it
    kByHead,   // [heads, kv_len, head_dim]
  };
  GgmlSide(const CpuCase& spec, const Inputs& inputs, Cache cache);
  ~GgmlSide();

  void use_threads(int num_threads);
  // Throws std::runtime_error where ggml fails.
  void run(int layer);
  std::vector<float> out() const;  // of the last run

 private:
  struct Graphs;
  std::unique_ptr<Graphs> graphs_;
};

// Whether this build has ggml at all; without it GgmlSide must not be made.
bool has_ggml();
// "of llama-cpp-python 0.3.36", or "not in this build".
std::string ggml_version();

}  // namespace seqattn::bench
