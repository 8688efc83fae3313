#pragma once

#include "seqattn/export.h"

#define SEQATTN_VERSION_MAJOR 0
#define SEQATTN_VERSION_MINOR 1
#define SEQATTN_VERSION_PATCH 0

namespace seqattn {

// The version of the library that is linked, "major.minor.patch".
SEQATTN_EXPORT const char* version() noexcept;

}  // namespace seqattn
