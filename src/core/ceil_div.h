#pragma once

#include <cstdint>

namespace seqattn {

// How many of `b` hold `a`. REQUIRES a >= 0, b > 0.
constexpr std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

}  // namespace seqattn
