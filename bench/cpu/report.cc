#include "report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <utility>

#include "../json.h"

namespace seqattn::bench {

double Samples::quantile(double q) const {
  std::vector<double> sorted = seconds;
  std::sort(sorted.begin(), sorted.end());
  return sorted[static_cast<std::size_t>(std::lround(q * static_cast<double>(sorted.size() - 1)))];
}

double Samples::median() const { return quantile(0.5); }

double Samples::best() const { return *std::min_element(seconds.begin(), seconds.end()); }

const Samples* CpuResult::find(const std::string& name) const {
  const auto found = std::find_if(contenders.begin(), contenders.end(),
                                  [&](const Samples& samples) { return samples.name == name; });
  return found == contenders.end() ? nullptr : &*found;
}

double CpuResult::median(const std::string& name) const {
  const Samples* const samples = find(name);
  return samples == nullptr ? 0 : samples->median();
}

double CpuResult::rate(const std::string& name) const {
  const Samples* const samples = find(name);
  return samples == nullptr ? 0 : samples->rate();
}

double CpuResult::best_peer() const {
  return std::min(median("ggml by token"), median("ggml by head"));
}

// ggml's loops for bfloat16 are several times slower than those for float16.
double CpuResult::llama() const {
  const double half = median(kGgmlHalfName);
  return half > 0 ? half : median("ggml by token");
}

std::vector<Goal> CpuResult::goals() const {
  std::vector<Goal> goals;
  double own = contenders.front().median();
  const auto share = [&](const char* text, const char* ceiling, double one, double two) {
    if (rate(ceiling) == 0) return;
    const double least = num_threads == 1 ? one : two;
    char words[64];
    std::snprintf(words, sizeof words, ">= %.0f %% of %s", 100 * least, text);
    goals.push_back({words, work() / own / rate(ceiling), least});
  };
  const auto times = [&](const char* text, double peer, double least) {
    if (peer == 0) return;
    char words[64];
    std::snprintf(words, sizeof words, ">= %.3g x %s", least, text);
    goals.push_back({words, peer / own, least});
  };
  if (!spec.is_decode()) {
    share("FMA peak", "fma", 0.80, 0.75);
    const bool in_half = median(kGgmlHalfName) > 0;
    times(in_half ? "ggml in f16" : "ggml", llama(), 3);
    own = median(kRoundedName);
    if (own == 0) return goals;
    share("bf16 dot peak", "bf16 dot", 0.70, 0.70);
    times("ggml in f16 by bf16 dot", llama(), 5);
    return goals;
  }
  if (spec.head_dim == 64) times("ggml", best_peer(), 4);
  if (spec.head_dim != 128 || spec.kv_dtype == DType::kBFloat16) return goals;
  if (spec.kv_dtype == DType::kFloat32) {
    times("ggml's best cache", best_peer(), 2.3);
    return goals;
  }
  if (spec.kv_len >= 4096 && spec.layout == KVLayout::kHND) share("read", "read", 0.68, 0.80);
  if (spec.kv_len >= 4096 && spec.layout == KVLayout::kNHD) share("read", "read", 0.55, 0.65);
  times("ggml's best cache", best_peer(), 4.5);
  times("llama.cpp's cache", median("ggml by token"), 7);
  return goals;
}

void CpuReport::print_head() const {
  std::printf("%s; %s; ggml: %s; torch: %s; commit %s, %s\n", machine.c_str(), kernel.c_str(),
              ggml.c_str(), torch.c_str(), commit.c_str(), date.c_str());
  std::printf(
      "medians; decode in GB/s of keys and values, prefill in GFLOP/s; goals are for a Zen4-class "
      "machine\n%-36s %2s %11s %11s %7s %7s %7s %7s %8s %11s %11s %11s %6s  goals\n",
      "case", "T", "seqattn, us", "bf16 dot,us", "rate", "read", "gather", "FMA", "dot peak",
      "by token,us", "by head, us", "torch, us", "ratio");
}

void print_result(const CpuResult& result) {
  const double own = result.contenders.front().median();
  std::printf("%-36s %2d %11.1f", result.spec.name().c_str(), result.num_threads, own * 1e6);
  const auto column = [](double value, int width, const char* format) {
    value > 0 ? std::printf(format, width, value) : std::printf(" %*s", width, "-");
  };
  column(result.median(kRoundedName) * 1e6, 11, " %*.1f");
  column(result.work() / own / 1e9, 7, " %*.1f");
  column(result.rate("read") / 1e9, 7, " %*.1f");
  column(result.rate("gather") / 1e9, 7, " %*.1f");
  column(result.rate("fma") / 1e9, 7, " %*.1f");
  column(result.rate("bf16 dot") / 1e9, 8, " %*.1f");
  column(result.median("ggml by token") * 1e6, 11, " %*.1f");
  column(result.median("ggml by head") * 1e6, 11, " %*.1f");
  column(result.median("torch") * 1e6, 11, " %*.1f");
  column(result.best_peer() / own, 6, " %*.2f");
  for (const Goal& goal : result.goals()) {
    std::printf("  %s: %.2f, %s", goal.text.c_str(), goal.value, goal.met() ? "met" : "MISSED");
  }
  std::printf("\n");
  std::fflush(stdout);
}

ScalingFit fit_scaling(const std::string& name, std::vector<CpuResult> points) {
  ScalingFit fit;
  fit.name = name;
  fit.num_threads = points.front().num_threads;
  // Both sides divided by the time, so that every point counts alike.
  double aa = 0, ab = 0, bb = 0, a1 = 0, b1 = 0;
  for (const CpuResult& point : points) {
    const double time = point.contenders.front().median();
    const double a = 1 / time, b = point.work() / time;
    aa += a * a, ab += a * b, bb += b * b, a1 += a, b1 += b;
  }
  const double determinant = aa * bb - ab * ab;
  fit.fixed_seconds = (a1 * bb - b1 * ab) / determinant;
  fit.rate = determinant / (b1 * aa - a1 * ab);
  for (const CpuResult& point : points) {
    const double line = fit.fixed_seconds + point.work() / fit.rate;
    fit.largest_deviation =
        std::max(fit.largest_deviation, std::abs(point.contenders.front().median() / line - 1));
  }
  fit.points = std::move(points);
  return fit;
}

std::vector<Goal> ScalingFit::goals() const {
  return {{"within 25 % of the line", largest_deviation, 0.25, /*at_least=*/false}};
}

void print_scaling(const ScalingFit& fit) {
  std::printf("\ndecode against %s, %d thread%s: %.1f us + bytes / %.1f GB/s, all within %.0f %%\n",
              fit.name.c_str(), fit.num_threads, fit.num_threads == 1 ? "" : "s",
              fit.fixed_seconds * 1e6, fit.rate / 1e9, 100 * fit.largest_deviation);
  for (const Goal& goal : fit.goals()) {
    std::printf("  %s: %s\n", goal.text.c_str(), goal.met() ? "met" : "MISSED");
  }
  for (const CpuResult& point : fit.points) {
    const double time = point.contenders.front().median();
    std::printf("  %3d x %6lld tokens  %10.1f us  %6.1f GB/s  %5.2f of plain read\n",
                point.spec.batch, static_cast<long long>(point.spec.kv_len), time * 1e6,
                point.work() / time / 1e9, point.work() / time / point.rate("read"));
  }
  std::fflush(stdout);
}

void CpuReport::write_json(const std::string& path) const {
  JsonWriter json;
  json.open("", '{');
  json.field("machine", machine);
  json.field("kernel", kernel);
  json.field("ggml", ggml);
  json.field("torch", torch);
  json.field("commit", commit);
  json.field("date", date);
  json.open("results", '[');
  for (const CpuResult& result : results) {
    json.open("", '{');
    json.field("case", result.spec.name());
    json.field("threads", result.num_threads);
    json.field("unit", result.spec.is_decode() ? "GB/s" : "GFLOP/s");
    json.field("work", result.work());
    json.field("error", result.error);
    json.field("rounded_error", result.rounded_error);
    json.field("peer_error", result.peer_error);
    json.open("contenders", '{');
    for (const Samples& samples : result.contenders) {
      json.open(samples.name, '{');
      json.field("median_us", samples.median() * 1e6);
      json.field("best_us", samples.best() * 1e6);
      json.field("lower_quartile_us", samples.quantile(0.25) * 1e6);
      json.field("upper_quartile_us", samples.quantile(0.75) * 1e6);
      json.field("samples", static_cast<double>(samples.seconds.size()));
      if (samples.work > 0) json.field("rate", samples.rate());
      json.close();
    }
    json.close();
    write_goals(json, result.goals());
    json.close();
  }
  json.close();
  json.open("scaling", '[');
  for (const ScalingFit& fit : scaling) {
    json.open("", '{');
    json.field("against", fit.name);
    json.field("threads", fit.num_threads);
    json.field("fixed_us", fit.fixed_seconds * 1e6);
    json.field("gb_s", fit.rate / 1e9);
    json.field("largest_deviation", fit.largest_deviation);
    json.open("points", '[');
    for (const CpuResult& point : fit.points) {
      json.open("", '{');
      json.field("batch", point.spec.batch);
      json.field("kv_len", static_cast<double>(point.spec.kv_len));
      json.field("us", point.contenders.front().median() * 1e6);
      json.field("read_gb_s", point.rate("read") / 1e9);
      json.close();
    }
    json.close();
    write_goals(json, fit.goals());
    json.close();
  }
  json.close();
  json.close();
  json.save(path);
}

}  // namespace seqattn::bench
