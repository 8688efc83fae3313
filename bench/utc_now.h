#pragma once

#include <ctime>
#include <string>

namespace seqattn::bench {

// "2026-11-28T02:10:56Z"
inline std::string utc_now() {
  const std::time_t time = std::time(nullptr);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", std::gmtime(&time));
  return text;
}

}  // namespace seqattn::bench
