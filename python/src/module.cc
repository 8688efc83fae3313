#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>

#include "arguments.h"
#include "classes.h"
#include "errors.h"
#include "seqattn/head_id_generator.h"
#include "seqattn/version.h"

namespace seqattn::python {
namespace {

void bind_head_id_generator(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<HeadIDGenerator>(
      m, "HeadIDGenerator",
      "Ids for per-head sequences: head h of sequence s becomes s * num_kv_heads + h.\n\n"
      "Keep head ids in a descriptor of their own, apart from plain sequence ids.")
      .def(
          "__init__",
          [](HeadIDGenerator* self, const Int& num_kv_heads) {
            new (self) HeadIDGenerator(to_int64(num_kv_heads, "num_kv_heads"));
          },
          "num_kv_heads"_a)
      .def_prop_ro("num_kv_heads", &HeadIDGenerator::num_kv_heads, "KV heads of a sequence.")
      .def(
          "get_head_id",
          [](const HeadIDGenerator& self, const Int& seq_id, const Int& head_idx) {
            return self.get_head_id(to_seq_id(seq_id), to_int64(head_idx, "head_idx"));
          },
          "seq_id"_a, "head_idx"_a,
          "Raises InvalidArgumentError unless 0 <= head_idx < num_kv_heads and the id fits 64 "
          "bits.")
      .def("__repr__", &HeadIDGenerator::to_string);
}

}  // namespace
}  // namespace seqattn::python

NB_MODULE(_core, m) {
  using namespace seqattn::python;
  m.doc() = "The C++ library seqattn as a Python module; use it through the package seqattn.";
  m.def("version", &seqattn::version, "The version of the C++ library.");
  register_errors();
  bind_pool(m);
  bind_manager(m);
  bind_packed_data(m);
  bind_descriptor(m);
  bind_prefix_cache(m);
  bind_attention(m);
  bind_sequence_state(m);
  bind_head_id_generator(m);
}
