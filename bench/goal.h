#pragma once

#include <sstream>
#include <string>
#include <vector>

#include "json.h"

namespace seqattn::bench {

// What a measured figure is meant to reach.
struct Goal {
  std::string text;  // ">= 97 % of FlashInfer"
  double value = 0;
  double limit = 0;
  bool at_least = true;
  bool met() const { return at_least ? value >= limit : value <= limit; }
};

inline Goal within_us(double us, double limit) {
  std::ostringstream text;
  text << "<= " << limit << " us";
  return {text.str(), us, limit, false};
}

inline void write_goals(JsonWriter& json, const std::vector<Goal>& goals) {
  json.open("goals", '[');
  for (const Goal& goal : goals) {
    json.open("", '{');
    json.field("text", goal.text);
    json.field("value", goal.value);
    json.field("limit", goal.limit);
    json.flag("at_least", goal.at_least);
    json.flag("met", goal.met());
    json.close();
  }
  json.close();
}

}  // namespace seqattn::bench
