#pragma once

#include <optional>
#include <ostream>
#include <stdexcept>
#include <string>
#include <vector>

#include "replay.h"

namespace seqattn::cli {

// What `seqattn replay` is asked to do.
struct Arguments {
  std::string trace;
  ReplayOptions options;
  bool is_strict = false, as_json = false;
  std::string plot;  // a path; empty for none
};

// Arguments that the program does not take; the message is one sentence for its user.
class UsageError : public std::runtime_error {
  using std::runtime_error::runtime_error;
};

// `given` is without the program's name. Without a value help or the version was asked for, and is
// on `out`. Throws UsageError.
std::optional<Arguments> parse_arguments(std::vector<std::string> given, std::ostream& out);

}  // namespace seqattn::cli
