// Attention on a CPU beside its ceilings (reading the same memory, multiplying in registers) and
// beside ggml and torch. Every result is checked before it is timed, and a wrong one ends the run.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <map>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "../utc_now.h"
#include "ggml_side.h"
#include "run_case.h"
#include "seqattn/seqattn.h"
#include "torch_side.h"

namespace seqattn::bench {
namespace {

std::string machine_name() {
  std::ifstream info("/proc/cpuinfo");
  std::string name = "a CPU", family, model, line;
  const auto value = [&](const char* key) {
    return line.rfind(key, 0) == 0 ? line.substr(line.find(':') + 2) : std::string();
  };
  while (std::getline(info, line) && !line.empty()) {
    if (const auto text = value("model name"); !text.empty()) name = text;
    if (const auto text = value("cpu family"); !text.empty()) family = text;
    if (const auto text = value("model\t"); !text.empty()) model = text;
  }
  return name + " (family " + family + ", model " + model + "), " +
         std::to_string(std::thread::hardware_concurrency()) + " processors";
}

std::string kernel_name() {
  PagedKVCacheManager manager({.num_pages = 1, .num_heads = 1, .head_dim = 64});
  return std::string(BatchAttention(manager, {.num_qo_heads = 1}).kernel_name());
}

// One line on a terminal, which the next one overwrites.
void show_progress(const std::string& name) {
  if (isatty(STDERR_FILENO) != 0) std::fprintf(stderr, "\r\x1b[K%s\r", name.c_str());
}

struct Options {
  std::string only, json, torch = "python3";
  std::vector<int> threads{1, 2};
  bool quick = false, list = false;
};

// A fit for each number of threads.
std::vector<ScalingFit> measure_scaling(const std::string& name, const std::vector<CpuCase>& cases,
                                        const Options& options, TorchSide& torch,
                                        std::mt19937_64& random) {
  const RunLimits limits{.max_rounds = 11, .seconds = options.quick ? 0.5 : 2, .with_peers = false};
  std::map<int, std::vector<CpuResult>> points;
  for (const CpuCase& spec : cases) {
    if (options.quick && spec.batch * spec.kv_len > 16384) continue;
    show_progress(spec.name());
    for (CpuResult& result : run_cpu_case(spec, options.threads, limits, torch, random)) {
      points[result.num_threads].push_back(std::move(result));
    }
  }
  std::vector<ScalingFit> fits;
  fits.reserve(points.size());
  for (auto& [num_threads, results] : points) fits.push_back(fit_scaling(name, std::move(results)));
  return fits;
}

int run(const Options& options) {
  CpuReport report;
  report.machine = machine_name();
  report.kernel = kernel_name();
  TorchSide torch(options.list ? "" : options.torch);
  report.ggml = ggml_version();
  report.torch = torch.version();
  const char* const commit = std::getenv("SEQATTN_COMMIT");
  report.commit = commit != nullptr ? commit : "unknown";
  report.date = utc_now();
  std::mt19937_64 random(20261128);
  const RunLimits limits = options.quick ? RunLimits{.max_rounds = 5, .seconds = 1} : RunLimits{};
  // Behind every case: what ends the run leaves what was measured.
  const auto save = [&] {
    if (!options.json.empty() && !options.list) report.write_json(options.json);
  };
  if (!options.list) report.print_head();
  for (const CpuCase& spec : all_cpu_cases()) {
    if (spec.name().find(options.only) == std::string::npos) continue;
    if (options.quick && spec.kv_len > 4096) continue;
    if (options.list) {
      std::printf("%s\n", spec.name().c_str());
      continue;
    }
    show_progress(spec.name());
    for (CpuResult& result : run_cpu_case(spec, options.threads, limits, torch, random)) {
      print_result(result);
      report.results.push_back(std::move(result));
    }
    save();
  }
  for (const auto& [name, cases] :
       {std::pair("context", context_cases()), std::pair("batch", batch_cases())}) {
    if (std::string("scaling/").append(name).find(options.only) == std::string::npos) continue;
    if (options.list) {
      std::printf("scaling/%s\n", name);
      continue;
    }
    for (ScalingFit& fit : measure_scaling(name, cases, options, torch, random)) {
      print_scaling(fit);
      report.scaling.push_back(std::move(fit));
    }
    save();
  }
  return 0;
}

}  // namespace
}  // namespace seqattn::bench

int main(int argc, char** argv) {
  CLI::App app("Attention on a CPU beside its ceilings, ggml and torch.", "bench_cpu");
  seqattn::bench::Options options;
  app.add_option("--only", options.only, "Cases whose name holds the text: decode/32,8,128/f16");
  app.add_option("--threads", options.threads, "Numbers of threads")
      ->check(CLI::Range(1, 1024))
      ->delimiter(',')
      ->capture_default_str();
  app.add_option("--torch", options.torch, "A Python that has torch; empty: leave torch out")
      ->capture_default_str();
  app.add_option("--json", options.json, "Write the results to this file");
  app.add_flag("--quick", options.quick, "Fewer samples, no context above 4k");
  app.add_flag("--list", options.list, "Print the names of the cases");
  app.footer(
      "Status: 0, 1 for an error or a wrong result, more for bad arguments; a missed goal is "
      "none.");
  CLI11_PARSE(app, argc, argv);
  try {
    return seqattn::bench::run(options);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_cpu: %s\n", error.what());
    return 1;
  }
}
