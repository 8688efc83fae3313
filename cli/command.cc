#include "command.h"

#include <CLI/CLI.hpp>
#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <map>
#include <new>
#include <optional>
#include <ostream>
#include <stdexcept>

#include "plot.h"
#include "progress_bar.h"
#include "report.h"
#include "seqattn/version.h"
#include "trace.h"

namespace seqattn::cli {
namespace {

struct Arguments {
  std::string trace;
  ReplayOptions options;
  bool is_strict = false, as_json = false;
  std::string plot;  // a path; empty for none
};

void declare(CLI::App& app, Arguments& arguments) {
  CLI::App& replay = *app.add_subcommand(
      "replay", "Replays a trace of requests through page tables and a prefix cache.");
  replay.footer(
      "A trace has one JSON object a line: timestamp (ms), input_length and output_length "
      "(tokens), and\n"
      "hash_ids, one for each 512 tokens of the input. Requests are taken in their order; in each "
      "step\n"
      "every running one generates a token. No keys or values are computed.");
  replay.add_option("TRACE", arguments.trace, "The trace, a file of JSON lines")->required();
  replay
      .add_option("--pages", arguments.options.num_pages,
                  "Pages of the pool; 0 for as many as it takes")
      ->check(CLI::Range(std::int64_t{0}, (std::int64_t{1} << 31) - 1))
      ->capture_default_str();
  replay.add_option("--page-size", arguments.options.page_size, "Tokens a page")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  const std::map<std::string, Policy> policies{
      {"lru", Policy::kLru}, {"reuse", Policy::kReuse}, {"none", Policy::kNone}};
  replay
      .add_option(
          "--policy", arguments.options.policy,
          "Which prefixes go first: lru, those not used for longest; reuse, those that no second "
          "request has found, then as lru; none, no cache at all")
      ->transform(CLI::CheckedTransformer(policies))
      ->default_str("lru");
  replay
      .add_option("--concurrency", arguments.options.concurrency, "Requests that run side by side")
      ->check(CLI::Range(std::int64_t{1}, (std::int64_t{1} << 31) - 1))
      ->capture_default_str();
  replay.add_flag("--cache-output", arguments.options.cache_output,
                  "Give generated tokens to the cache as well");
  replay.add_option("--plot", arguments.plot,
                    "Write a PNG of pages in use, cached and free over time");
  replay.add_flag("--json", arguments.as_json, "Print JSON instead of a table");
  replay.add_flag("--strict", arguments.is_strict, "Stop at the first malformed line");
}

// Malformed lines are named on `err`, the first few one by one.
std::vector<Request> read(const Arguments& arguments, std::ostream& err,
                          std::int64_t& num_malformed) {
  std::ifstream in(arguments.trace);
  if (!in) throw std::runtime_error(arguments.trace + ": " + std::strerror(errno));
  constexpr std::int64_t kMostNamed = 20;
  auto requests = read_trace(in, [&](std::int64_t line, const std::string& what) {
    const std::string text = arguments.trace + ":" + std::to_string(line) + ": " + what;
    if (arguments.is_strict) throw std::runtime_error(text);
    if (num_malformed++ < kMostNamed) err << text << '\n';
  });
  if (in.bad()) throw std::runtime_error(arguments.trace + ": reading it failed");
  if (num_malformed > kMostNamed) {
    err << arguments.trace << ": " << num_malformed - kMostNamed << " more malformed lines\n";
  }
  return requests;
}

void replay_trace(const Arguments& arguments, std::ostream& out, std::ostream& err,
                  bool is_terminal) {
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
  if (arguments.plot.empty()) return;
  const ReplayResult& result = report.result;
  const bool is_unlimited = arguments.options.num_pages == 0;
  plot_pages(result.samples, is_unlimited ? result.peak_pages : result.num_pages)
      .save_png(arguments.plot);
}

}  // namespace

int run_command(std::vector<std::string> arguments, std::ostream& out, std::ostream& err,
                bool is_terminal) {
  CLI::App app("Sequence-level attention over paged KV caches.", "seqattn");
  app.set_version_flag("--version", std::string(version()));
  app.require_subcommand(1);
  Arguments parsed;
  declare(app, parsed);
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 takes them
  try {
    app.parse(arguments);
  } catch (const CLI::ParseError& error) {
    return app.exit(error, out, err);
  }
  try {
    replay_trace(parsed, out, err, is_terminal);
  } catch (const std::bad_alloc&) {
    err << "seqattn: out of memory; --pages bounds the pool, which without it has pages for the "
           "whole trace\n";
    return 1;
  } catch (const std::exception& error) {
    err << "seqattn: " << error.what() << '\n';
    return 1;
  }
  return 0;
}

}  // namespace seqattn::cli
