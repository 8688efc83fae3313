#pragma once

#include <map>
#include <string>
#include <vector>

#include "../goal.h"
#include "device.h"
#include "measure.h"

// Results, as a table for people and as JSON for bench/plot_results.py.
namespace seqattn::bench {

// One case of one group. Its work is bytes (then rates are GB/s, and the ceiling is memory's) or
// floating-point operations (TFLOP/s).
struct CaseResult {
  std::string group, name;
  int num_qo_heads = 0, num_kv_heads = 0;
  bool is_flops = false;
  double work = 0;
  double ceiling = 0;        // of the rate; 0: none is measured
  std::string ceiling_name;  // "read", "copy"
  double error = 0;          // the largest relative error of any contender's sampled outputs
  std::vector<Measured> contenders;  // the first is seqattn
  std::vector<Goal> goals;

  double rate(const Measured& contender) const;  // GB/s or TFLOP/s
  const Measured* find(const std::string& contender) const;
};

struct HostResult {
  std::string name;
  std::map<std::string, Timing> contenders;
  std::vector<Goal> goals;
};

struct Report {
  DeviceInfo device;
  std::string commit, date;
  double copy_gb_s = 0, read_gb_s = 0;
  std::vector<CaseResult> cases;
  std::vector<HostResult> host;

  bool all_met() const;
  void print() const;
  // Throws std::runtime_error where the file cannot be written.
  void write_json(const std::string& path) const;
};

}  // namespace seqattn::bench
