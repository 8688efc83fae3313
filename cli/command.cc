#include "command.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <new>
#include <optional>
#include <ostream>
#include <stdexcept>
#include <utility>

#include "arguments.h"
#include "malformed_lines.h"
#include "output_file.h"
#include "plot.h"
#include "progress_bar.h"
#include "report.h"
#include "trace.h"

namespace seqattn::cli {
namespace {

// Malformed lines are named on `err`.
std::vector<Request> read(const Arguments& arguments, std::ostream& err,
                          std::int64_t& num_malformed) {
  std::ifstream in(arguments.trace);
  if (!in) throw std::runtime_error(arguments.trace + ": " + std::strerror(errno));
  MalformedLines malformed(arguments.trace, err);
  auto requests = read_trace(in, [&](std::int64_t line, const std::string& what) {
    if (arguments.is_strict) {
      throw std::runtime_error(arguments.trace + ":" + std::to_string(line) + ": " + what);
    }
    malformed.add(line, what);
  });
  if (in.bad()) throw std::runtime_error(arguments.trace + ": reading it failed");
  malformed.finish();
  num_malformed = malformed.count();
  if (requests.empty()) {
    throw std::runtime_error(
        arguments.trace +
        ": no request in it; expected one JSON object a line (seqattn replay --help)");
  }
  return requests;
}

void replay_trace(const Arguments& arguments, std::ostream& out, std::ostream& err,
                  bool is_terminal) {
  if (!arguments.plot.empty()) check_writable(arguments.plot);
  Report report;
  report.trace = arguments.trace;
  report.options = arguments.options;
  const std::vector<Request> requests = read(arguments, err, report.num_malformed);
  {
    std::optional<ProgressBar> bar;
    if (is_terminal) bar.emplace(err, std::ssize(requests));
    report.result = replay(requests, arguments.options, [&](std::int64_t num_ended) {
      if (bar) bar->show(num_ended);
    });
  }
  arguments.as_json ? print_json(out, report) : print_table(out, report);
  out.flush();
  if (!out) throw std::runtime_error("writing the answer failed");
  if (arguments.plot.empty()) return;
  const ReplayResult& result = report.result;
  const bool is_unlimited = arguments.options.num_pages == 0;
  plot_pages(result.samples, is_unlimited ? std::nullopt : std::optional(result.num_pages))
      .save_png(arguments.plot);
}

}  // namespace

int run_command(std::vector<std::string> given, std::ostream& out, std::ostream& err,
                bool is_terminal) {
  try {
    const auto arguments = parse_arguments(std::move(given), out);
    if (arguments) replay_trace(*arguments, out, err, is_terminal);
    return 0;
  } catch (const UsageError& error) {
    err << "seqattn: " << error.what() << " (seqattn replay --help)\n";
    return 2;
  } catch (const std::bad_alloc&) {
    err << "seqattn: out of memory: a pool takes some 16 bytes a page; --pages says how many it "
           "has, and without it they are enough for the whole trace\n";
  } catch (const std::exception& error) {
    err << "seqattn: " << error.what() << '\n';
  }
  return 1;
}

}  // namespace seqattn::cli
