#include "random_source.h"

#include <cstdio>
#include <cstdlib>
#include <string>

namespace seqattn::testing {

std::uint64_t test_seed() {
  static const std::uint64_t seed = [] {
    const char* given = std::getenv("SEQATTN_TEST_SEED");
    const std::uint64_t value =
        given != nullptr ? std::stoull(given)
                         : (std::uint64_t{std::random_device{}()} << 32 | std::random_device{}());
    std::printf("SEQATTN_TEST_SEED=%llu\n", static_cast<unsigned long long>(value));
    return value;
  }();
  return seed;
}

}  // namespace seqattn::testing
