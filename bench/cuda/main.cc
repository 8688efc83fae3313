// Attention on a GPU beside its peers: memory's ceilings, a kernel that only reads the same pages,
// FlashInfer with its own planner. Every result is checked before it is timed, and a wrong one is
// never reported.
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <stdexcept>
#include <string>

#include "../utc_now.h"
#include "cases.h"
#include "device.h"
#include "host_costs.h"
#include "report.h"
#include "run_case.h"

namespace seqattn::bench {
namespace {

constexpr const char* kUsage = R"(bench_attention [options]
  --device cuda     the device (the only one there is, and the default)
  --only TEXT       cases whose name holds the text: decode/1x32k, prefill, (8,1), host
  --quick           few cases and samples
  --json FILE       writes the results for bench/plot_results.py
  --commit TEXT     the commit to report; else SEQATTN_COMMIT, else what git says
  --list            the names of the cases
  --help            this text
Status: 0, 1 for an error or a wrong result, 2 for bad arguments. Missed goals are no error.
)";

struct Options {
  std::string only, json, commit;
  bool quick = false, list = false, help = false;
};

struct UsageError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

Options parse(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    const auto value = [&] {
      if (i + 1 == argc) throw UsageError(argument + " wants a value");
      return std::string(argv[++i]);
    };
    if (argument == "--device") {
      const std::string device = value();
      if (device != "cuda" && device != "cuda:0") {
        throw UsageError("--device " + device + "; expected cuda");
      }
    } else if (argument == "--only") {
      options.only = value();
    } else if (argument == "--json") {
      options.json = value();
    } else if (argument == "--commit") {
      options.commit = value();
    } else if (argument == "--quick") {
      options.quick = true;
    } else if (argument == "--list") {
      options.list = true;
    } else if (argument == "--help") {
      options.help = true;
    } else {
      throw UsageError("unknown argument " + argument);
    }
  }
  return options;
}

// The first line that a command prints, or the empty string.
std::string first_line_of(const char* command) {
  std::FILE* const pipe = popen(command, "r");
  if (pipe == nullptr) return "";
  char line[256] = "";
  const bool got = std::fgets(line, sizeof line, pipe) != nullptr;
  const bool good = pclose(pipe) == 0;
  std::string text = got && good ? line : "";
  while (!text.empty() && text.back() == '\n') text.pop_back();
  return text;
}

std::string commit_of(const Options& options) {
  if (!options.commit.empty()) return options.commit;
  if (const char* given = std::getenv("SEQATTN_COMMIT")) return given;
  const std::string text = first_line_of("git rev-parse --short=12 HEAD 2>/dev/null");
  return text.empty() ? "unknown" : text;
}

int run(const Options& options) {
  const auto wanted = [&](const std::string& name) {
    return options.only.empty() || name.find(options.only) != std::string::npos;
  };
  const auto specs = all_cases(options.quick);
  if (options.list) {
    for (const CaseSpec& spec : specs) std::printf("%s\n", spec.full_name().c_str());
    std::printf("host\n");
    return 0;
  }
  Report report;
  report.device = device_info();
  const std::string driver =
      first_line_of("nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null");
  if (!driver.empty()) report.device.driver = driver;
  report.commit = commit_of(options);
  report.date = utc_now();
  const bool with_flashinfer = report.device.is_hopper;
  if (!with_flashinfer) {
    std::fprintf(stderr, "FlashInfer is compiled for Hopper only, and left out on this device\n");
  }
  const int num_samples = options.quick ? 9 : 31;
  const OwnStream stream;
  const Ceilings ceilings = measure_ceilings(num_samples, stream.get());
  report.copy_gb_s = ceilings.copy;
  report.read_gb_s = ceilings.read;
  for (const CaseSpec& spec : specs) {
    if (!wanted(spec.full_name())) continue;
    std::fprintf(stderr, "%s\n", spec.full_name().c_str());
    report.cases.push_back(run_case(spec, ceilings, num_samples, with_flashinfer, stream.get()));
  }
  if (wanted("host")) {
    std::fprintf(stderr, "host\n");
    report.host = measure_host_costs(options.quick ? 50 : 300, with_flashinfer);
  }
  report.print();
  if (!options.json.empty()) report.write_json(options.json);
  std::printf("\n%s\n", report.all_met() ? "all goals met" : "some goals MISSED");
  return 0;
}

}  // namespace
}  // namespace seqattn::bench

int main(int argc, char** argv) {
  using namespace seqattn::bench;
  try {
    const Options options = parse(argc, argv);
    if (!options.help) return run(options);
    std::fputs(kUsage, stdout);
    return 0;
  } catch (const UsageError& error) {
    std::fprintf(stderr, "bench_attention: %s\n%s", error.what(), kUsage);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_attention: %s\n", error.what());
    return 1;
  }
}
