#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace seqattn::testing {

struct OperationsResult {
  std::int64_t num_operations = 0;          // those that the library did, or had to refuse
  std::int64_t num_errors = 0;              // operations that threw, as they ought to
  std::int64_t num_restored = 0;            // sequences
  std::int64_t num_restored_elsewhere = 0;  // of those, the ones saved from pages of another size
  std::int64_t num_wrong_states = 0;        // bytes that are no state, and were to be restored
  std::string difference;  // the first one between library and model; empty where there is none
};

// Reads sizes of two pools and then operations from the bytes, until they are used up: on the pools
// and on two descriptors over each, wrong arguments among them. What is saved from one pool may be
// restored into the other. Each is done by the library and by DescriptorModel; results, exceptions
// and the whole state afterwards have to be the same, and the invariants have to hold. Any bytes
// will do: this is the body of a fuzzer as well.
OperationsResult run_descriptor_operations(std::span<const std::uint8_t> bytes);

}  // namespace seqattn::testing
