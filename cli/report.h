#pragma once

#include <iosfwd>
#include <string>

#include "replay.h"

namespace seqattn::cli {

// What a replay found, as a table to read and as one JSON object to process.
struct Report {
  std::string trace;
  std::int64_t num_malformed = 0;  // lines left out
  ReplayOptions options;
  ReplayResult result;
};

void print_table(std::ostream& out, const Report& report);
void print_json(std::ostream& out, const Report& report);

// "lru", "reuse", "none".
std::string to_string(Policy policy);

}  // namespace seqattn::cli
