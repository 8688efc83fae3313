#pragma once

#include <string>
#include <vector>

#include "bfloat16_unit.h"

namespace seqattn::testing {

// A unit in plain loops, for machines without one: "emulated".
const BFloat16Unit& emulated_bfloat16_unit();

// The emulation and, where the CPU has one, its own unit.
std::vector<const BFloat16Unit*> bfloat16_units();

// The CPU's own unit, or the emulation where there is none, is in use.
void use_default_bfloat16_unit();

}  // namespace seqattn::testing
