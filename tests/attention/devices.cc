#include "devices.h"

#include <cstdlib>

#include "cpu_attention.h"

namespace seqattn::testing {
namespace {

constexpr const char* kTargetVariable = "SEQATTN_CPU_TARGET";

}  // namespace

std::vector<Device> test_devices() { return {cpu()}; }

AttentionCase device_case(AttentionCase c, Device) { return c; }
double weight_rounding(Device, const AttentionCase&) { return 0; }

ForcedPath::ForcedPath(const std::string& name) {
  const char* before = std::getenv(kTargetVariable);
  was_set_ = before != nullptr;
  if (was_set_) before_ = before;
  if (!name.empty()) setenv(kTargetVariable, name.c_str(), 1);
}

ForcedPath::~ForcedPath() {
  if (was_set_) {
    setenv(kTargetVariable, before_.c_str(), 1);
  } else {
    unsetenv(kTargetVariable);
  }
}

std::vector<std::string> paths_of(Device) { return cpu_attention_targets(); }

}  // namespace seqattn::testing
