#pragma once

#include <cstdint>
#include <random>

namespace seqattn::testing {

// The seed of this run: SEQATTN_TEST_SEED where it is set, else a new one. Printed once, so that a
// failure can be run again.
std::uint64_t test_seed();

// Random numbers for one test: the run's seed and a number that tells tests apart.
inline std::mt19937_64 random_source(std::uint64_t stream) {
  std::seed_seq sequence{test_seed(), test_seed() >> 32, stream};
  return std::mt19937_64(sequence);
}

}  // namespace seqattn::testing
