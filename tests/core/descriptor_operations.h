#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace seqattn::testing {

struct OperationsResult {
  std::int64_t num_operations = 0;  // those that the library did, or had to refuse
  std::int64_t num_errors = 0;      // operations that threw, as they ought to
  std::string difference;  // the first one between library and model; empty where there is none
};

// Reads a pool's sizes and then operations from the bytes, until they are used up: on the pool and
// on two descriptors over it, wrong arguments among them. Each is done by the library and by
// DescriptorModel; results, exceptions and the whole state afterwards have to be the same, and the
// invariants have to hold. Any bytes will do: this is the body of a fuzzer as well.
OperationsResult run_descriptor_operations(std::span<const std::uint8_t> bytes);

}  // namespace seqattn::testing
