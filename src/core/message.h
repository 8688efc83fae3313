#pragma once

#include <sstream>
#include <string>

#include "seqattn/error.h"

namespace seqattn {

// The parts, one after the other, as operator<< prints them.
template <class... Parts>
std::string concat(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  return text.str();
}

// Throws InvalidArgumentError unless the condition holds; the parts make its message.
template <class... Parts>
void require(bool condition, const Parts&... parts) {
  if (!condition) [[unlikely]] {
    throw InvalidArgumentError(concat(parts...));
  }
}

}  // namespace seqattn
