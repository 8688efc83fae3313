#include "report.h"

#include <algorithm>
#include <cmath>
#include <iomanip>
#include <nlohmann/json.hpp>
#include <ostream>

#include "counted.h"

namespace seqattn::cli {
namespace {

double ratio(double part, double whole) { return whole == 0 ? 0 : part / whole; }
double ratio(std::int64_t part, std::int64_t whole) {
  return ratio(static_cast<double>(part), static_cast<double>(whole));
}

std::string percent(std::int64_t part, std::int64_t whole) {
  std::ostringstream text;
  text << std::fixed << std::setprecision(2) << 100 * ratio(part, whole) << " %";
  return text.str();
}

}  // namespace

std::string to_string(Policy policy) {
  switch (policy) {
    case Policy::kLru:
      return "lru";
    case Policy::kReuse:
      return "reuse";
    case Policy::kNone:
      break;
  }
  return "none";
}

void print_table(std::ostream& out, const Report& report) {
  const ReplayResult& r = report.result;
  const bool is_unlimited = report.options.num_pages == 0;
  const auto row = [&](const char* name, const std::string& value, const std::string& more = {}) {
    out << std::left << std::setw(24) << name << std::right << std::setw(14) << value;
    if (!more.empty()) out << "  " << more;
    out << '\n';
  };
  const auto mean = [](double value) { return grouped(std::llround(value)); };
  row("requests", grouped(r.num_requests), report.trace);
  row("  malformed lines", grouped(report.num_malformed));
  row("  dropped", grouped(r.num_dropped), "larger than the pool");
  row("input blocks", grouped(r.num_blocks), "of 512 tokens");
  row("  found", grouped(r.num_blocks_found), percent(r.num_blocks_found, r.num_blocks));
  row("input tokens", grouped(r.num_tokens));
  row("  found", grouped(r.num_tokens_found), percent(r.num_tokens_found, r.num_tokens));
  row("generated tokens", grouped(r.num_tokens_generated));
  row("pages of the pool", is_unlimited ? "unlimited" : grouped(r.num_pages),
      "of " + counted(report.options.page_size, "token") + ", policy " +
          to_string(report.options.policy));
  row("  taken, at most", grouped(r.peak_pages));
  row("  taken, on average", mean(r.mean_pages));
  row("  in use, at most", grouped(r.peak_pages_in_use));
  row("  in use, on average", mean(r.mean_pages_in_use));
  row("evicted pages", grouped(r.num_evictions));
  row("refused admissions", grouped(r.num_refused), "had to wait for pages");
  row("preempted requests", grouped(r.num_preempted), "began again");
  row("decode steps", grouped(r.num_steps),
      "at most " + counted(report.options.concurrency, "request") + " side by side");
  row("operations", grouped(r.num_operations),
      grouped(std::llround(ratio(static_cast<double>(r.num_operations), r.seconds))) + " a second");
}

void print_json(std::ostream& out, const Report& report) {
  const ReplayResult& r = report.result;
  nlohmann::ordered_json json;
  json["trace"] = report.trace;
  json["options"] = {{"pages", report.options.num_pages},
                     {"page_size", report.options.page_size},
                     {"policy", to_string(report.options.policy)},
                     {"concurrency", report.options.concurrency},
                     {"cache_output", report.options.cache_output}};
  json["requests"] = r.num_requests;
  json["malformed_lines"] = report.num_malformed;
  json["dropped_requests"] = r.num_dropped;
  json["blocks"] = r.num_blocks;
  json["blocks_found"] = r.num_blocks_found;
  json["block_hit_ratio"] = ratio(r.num_blocks_found, r.num_blocks);
  json["tokens"] = r.num_tokens;
  json["tokens_found"] = r.num_tokens_found;
  json["token_hit_ratio"] = ratio(r.num_tokens_found, r.num_tokens);
  json["generated_tokens"] = r.num_tokens_generated;
  json["evicted_pages"] = r.num_evictions;
  json["peak_pages"] = r.peak_pages;
  json["mean_pages"] = r.mean_pages;
  json["peak_pages_in_use"] = r.peak_pages_in_use;
  json["mean_pages_in_use"] = r.mean_pages_in_use;
  json["refused_admissions"] = r.num_refused;
  json["preempted_requests"] = r.num_preempted;
  json["decode_steps"] = r.num_steps;
  json["operations"] = r.num_operations;
  json["seconds"] = r.seconds;
  json["operations_per_second"] = ratio(static_cast<double>(r.num_operations), r.seconds);
  // A file's name may be no text at all.
  out << json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace) << '\n';
}

}  // namespace seqattn::cli
