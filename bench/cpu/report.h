#pragma once

#include <string>
#include <vector>

#include "../goal.h"
#include "cases.h"

// Results, as a table for people and as JSON for plot_cpu.py.
namespace seqattn::bench {

// Seconds of one run, sample by sample. Of a ceiling: `work` is what one run of it reads, or
// multiplies, in bytes or operations.
struct Samples {
  std::string name;
  std::vector<double> seconds;
  double work = 0;

  double median() const;
  double best() const;
  double quantile(double q) const;  // the nearest sample
  double rate() const { return work / median(); }
};

// seqattn by products of bfloat16, where the machine and the case have them.
inline constexpr const char* kRoundedName = "seqattn bf16 dot";
// ggml over caches of float16 where seqattn's are bfloat16, of the same values.
inline constexpr const char* kGgmlHalfName = "ggml by token, f16";

// One case with so many threads.
struct CpuResult {
  CpuCase spec;
  int num_threads = 1;
  std::vector<Samples> contenders;  // the first is seqattn
  double error = 0;                 // of seqattn, absolute
  double rounded_error = 0;         // of seqattn by products of bfloat16
  double peer_error = 0;            // the largest one of the peers

  const Samples* find(const std::string& name) const;
  double median(const std::string& name) const;  // 0 where it was not measured
  double rate(const std::string& name) const;    // of a ceiling; 0 likewise
  // Bytes or operations a second of the contender's median.
  double work() const { return spec.is_decode() ? spec.kv_bytes() : spec.flops(); }
  double best_peer() const;  // the shorter median of ggml's two caches; 0 without ggml
  double llama() const;  // what goals compare with: llama.cpp's cache, in ggml's best 16-bit type
  // What this shape is meant to reach on a Zen4-class machine.
  std::vector<Goal> goals() const;
};

// How decoding time grows with the keys and values that are read: the line of least squares of
// relative errors, seconds = fixed + bytes / rate.
struct ScalingFit {
  std::string name;  // "context" or "batch"
  int num_threads = 1;
  double fixed_seconds = 0, rate = 0;
  double largest_deviation = 0;  // of a time from the line, relative to the line
  std::vector<CpuResult> points;
  // No cliff.
  std::vector<Goal> goals() const;
};

// REQUIRES two points at least, of one number of threads.
ScalingFit fit_scaling(const std::string& name, std::vector<CpuResult> points);

struct CpuReport {
  std::string machine, kernel, commit, date;
  std::string ggml, torch;  // which version, or why not
  std::vector<CpuResult> results;
  std::vector<ScalingFit> scaling;

  void print_head() const;
  // Throws std::runtime_error where the file cannot be written.
  void write_json(const std::string& path) const;
};

void print_result(const CpuResult& result);
void print_scaling(const ScalingFit& fit);

}  // namespace seqattn::bench
