#pragma once

#include <nanobind/nanobind.h>

#include "seqattn/types.h"

// The plain values of the package, seqattn._types.
namespace seqattn::python {

namespace nb = nanobind;

inline nb::object type_of(const char* name) {
  return nb::module_::import_("seqattn._types").attr(name);
}

inline nb::object from_window(const SlidingWindow& window) {
  return type_of("SlidingWindow")(window.window, window.num_sink_tokens);
}

}  // namespace seqattn::python
