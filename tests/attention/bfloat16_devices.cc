// The devices of the attention suite as the products of bfloat16 need them: cases become ones that
// a BFloat16Unit serves, and the units are the paths.
#include <cstdlib>

#include "bfloat16_units.h"
#include "devices.h"

namespace seqattn::testing {
namespace {

int whole_blocks(int dim) {
  const int block = static_cast<int>(kBFloat16Block);
  return (dim + block - 1) / block * block;
}

// Whatever SEQATTN_CPU_TARGET forces would be the exact path.
[[maybe_unused]] const bool is_chosen = [] {
  unsetenv("SEQATTN_CPU_TARGET");
  use_default_bfloat16_unit();
  return true;
}();

}  // namespace

std::vector<const BFloat16Unit*> bfloat16_units() {
  std::vector<const BFloat16Unit*> units{&emulated_bfloat16_unit()};
  set_bfloat16_unit_for_test(nullptr);
  if (bfloat16_unit() != nullptr) units.push_back(bfloat16_unit());
  use_default_bfloat16_unit();
  return units;
}

void use_default_bfloat16_unit() {
  set_bfloat16_unit_for_test(nullptr);
  if (bfloat16_unit() == nullptr) set_bfloat16_unit_for_test(&emulated_bfloat16_unit());
}

std::vector<Device> test_devices() { return {cpu()}; }

// Queries in bfloat16: those in float32 are rounded, of which the oracle knows nothing.
AttentionCase device_case(AttentionCase c, Device) {
  c.kv_dtype = c.q_dtype = DType::kBFloat16;
  if (c.out_dtype != DType::kFloat32) c.out_dtype = DType::kBFloat16;
  c.head_dim_v = whole_blocks(c.dim_v());
  c.head_dim = whole_blocks(c.head_dim);
  c.bfloat16_products = true;
  return c;
}

double weight_rounding(Device, const AttentionCase&) { return epsilon(DType::kBFloat16); }

ForcedPath::ForcedPath(const std::string& name) : was_set_(!name.empty()) {
  for (const BFloat16Unit* const unit : bfloat16_units()) {
    if (unit->name == name) set_bfloat16_unit_for_test(unit);
  }
}
ForcedPath::~ForcedPath() { use_default_bfloat16_unit(); }

std::vector<std::string> paths_of(Device) {
  std::vector<std::string> names;
  for (const BFloat16Unit* const unit : bfloat16_units()) names.emplace_back(unit->name);
  return names;
}

}  // namespace seqattn::testing
