#include "report.h"

#include <algorithm>
#include <cstdio>

#include "../json.h"

namespace seqattn::bench {
namespace {

void print_goals(const std::vector<Goal>& goals) {
  for (const Goal& goal : goals) {
    std::printf("   %s: %.*f, %s", goal.text.c_str(), goal.limit < 10 ? 3 : 1, goal.value,
                goal.met() ? "met" : "MISSED");
  }
  std::printf("\n");
}

void print_group(const std::vector<const CaseResult*>& cases) {
  const CaseResult& first = *cases.front();
  const char* const unit = first.is_flops ? "TFLOP/s" : "GB/s";
  std::printf("\n%s, bfloat16, page 16, head_dim 128 (times in us; %s of seqattn",
              first.group.c_str(), unit);
  if (first.ceiling > 0) {
    std::printf("; ceiling: %s, %.0f %s", first.ceiling_name.c_str(), first.ceiling, unit);
  }
  std::printf(")\n%-10s %-22s %9s %9s %9s", "heads", "case", "seqattn", unit, "% ceiling");
  std::printf(" %11s %7s %11s %9s\n", "FlashInfer", "ratio", "fixed split", "reader");
  for (const CaseResult* c : cases) {
    const Measured& own = c->contenders.front();
    const std::string heads =
        std::to_string(c->num_qo_heads) + "," + std::to_string(c->num_kv_heads);
    std::printf("%-10s %-22s %9.1f %9.0f", heads.c_str(), c->name.c_str(), own.best_us(),
                c->rate(own));
    if (c->ceiling > 0) {
      std::printf(" %9.1f", 100 * c->rate(own) / c->ceiling);
    } else {
      std::printf(" %9s", "-");
    }
    const auto column = [&](const char* name, int width) {
      const Measured* const peer = c->find(name);
      if (peer == nullptr) return std::printf(" %*s", width, "-");
      return std::printf(" %*.1f", width, peer->best_us());
    };
    column("flashinfer", 11);
    if (const Measured* const peer = c->find("flashinfer")) {
      std::printf(" %7.3f", peer->best_us() / own.best_us());
    } else {
      std::printf(" %7s", "-");
    }
    column("flashinfer_fixed_split", 11);
    column("reader", 9);
    print_goals(c->goals);
  }
}

void write_timing(JsonWriter& json, const std::string& key, const Timing& timing) {
  json.open(key, '{');
  json.field("median_us", timing.median_us);
  json.field("low_us", timing.low_us);
  json.field("high_us", timing.high_us);
  json.close();
}

void write_case(JsonWriter& json, const CaseResult& c) {
  json.open("", '{');
  json.field("group", c.group);
  json.field("case", c.name);
  json.field("num_qo_heads", c.num_qo_heads);
  json.field("num_kv_heads", c.num_kv_heads);
  json.field("unit", c.is_flops ? "TFLOP/s" : "GB/s");
  json.field("work", c.work);
  json.field("ceiling", c.ceiling);
  json.field("ceiling_name", c.ceiling_name);
  json.field("relative_error", c.error);
  json.open("contenders", '{');
  for (const Measured& contender : c.contenders) {
    json.open(contender.name, '{');
    json.field("us", contender.best_us());
    json.field("rate", c.rate(contender));
    if (contender.eager) write_timing(json, "eager", *contender.eager);
    if (contender.graph) write_timing(json, "graph", *contender.graph);
    json.close();
  }
  json.close();
  write_goals(json, c.goals);
  json.close();
}

}  // namespace

double CaseResult::rate(const Measured& contender) const {
  return work / contender.best_us() / (is_flops ? 1e6 : 1e3);
}

const Measured* CaseResult::find(const std::string& contender) const {
  const auto found = std::find_if(contenders.begin(), contenders.end(),
                                  [&](const Measured& m) { return m.name == contender; });
  return found == contenders.end() ? nullptr : &*found;
}

bool Report::all_met() const {
  const auto met = [](const auto& result) {
    return std::all_of(result.goals.begin(), result.goals.end(),
                       [](const Goal& goal) { return goal.met(); });
  };
  return std::all_of(cases.begin(), cases.end(), met) && std::all_of(host.begin(), host.end(), met);
}

void Report::print() const {
  std::printf("%s, driver for CUDA %s, runtime %s; commit %s, %s\n", device.name.c_str(),
              device.driver.c_str(), device.runtime.c_str(), commit.c_str(), date.c_str());
  std::printf("ceilings: device copy %.0f GB/s (read and written), read %.0f GB/s\n", copy_gb_s,
              read_gb_s);
  for (std::size_t i = 0; i < cases.size();) {
    std::vector<const CaseResult*> group;
    for (const std::string& name = cases[i].group; i < cases.size() && cases[i].group == name;
         ++i) {
      group.push_back(&cases[i]);
    }
    print_group(group);
  }
  if (!host.empty()) std::printf("\nhost, median us\n");
  for (const HostResult& result : host) {
    std::printf("%-44s", result.name.c_str());
    for (const auto& [name, timing] : result.contenders) {
      std::printf("  %s %.1f", name.c_str(), timing.median_us);
    }
    print_goals(result.goals);
  }
}

void Report::write_json(const std::string& path) const {
  JsonWriter json;
  json.open("", '{');
  json.field("device", device.name);
  json.field("driver", device.driver);
  json.field("runtime", device.runtime);
  json.field("commit", commit);
  json.field("date", date);
  json.field("copy_gb_s", copy_gb_s);
  json.field("read_gb_s", read_gb_s);
  json.open("cases", '[');
  for (const CaseResult& c : cases) write_case(json, c);
  json.close();
  json.open("host", '[');
  for (const HostResult& result : host) {
    json.open("", '{');
    json.field("case", result.name);
    json.open("contenders", '{');
    for (const auto& [name, timing] : result.contenders) write_timing(json, name, timing);
    json.close();
    write_goals(json, result.goals);
    json.close();
  }
  json.close();
  json.close();
  json.save(path);
}

}  // namespace seqattn::bench
