#pragma once

#include <string>
#include <vector>

#include "cases.h"
#include "workload.h"

namespace seqattn::bench {

// torch's scaled_dot_product_attention in a Python process of its own, torch_peer.py, which sleeps
// while nobody asks it. Calls throw std::runtime_error with what torch says against a case; without
// torch they must not be made.
class TorchSide {
 public:
  // Starts `python`; the empty name starts nothing.
  explicit TorchSide(const std::string& python);
  ~TorchSide();
  TorchSide(const TorchSide&) = delete;
  TorchSide& operator=(const TorchSide&) = delete;

  bool is_there() const { return is_there_; }
  const std::string& version() const { return version_; }  // or why it is not there

  void load(const CpuCase& spec, const Inputs& inputs, int layers);
  void use_threads(int num_threads);
  // Seconds of `count` runs on layers from `first` on, as Python's clock has them.
  double run(int first, int count);
  std::vector<float> out();  // of the last run

 private:
  std::string ask(const std::string& request);  // returns what follows "ok"
  std::string read_line() const;
  void write_bytes(const void* data, std::size_t size) const;
  void read_bytes(void* data, std::size_t size) const;

  int process_ = -1, to_ = -1, from_ = -1;
  bool is_there_ = false;
  std::string version_ = "left out";
};

}  // namespace seqattn::bench
