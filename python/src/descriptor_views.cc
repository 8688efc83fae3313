#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "arguments.h"
#include "classes.h"
#include "plain_types.h"
#include "sequence_details.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

nb::object stats(const Descriptor& self) {
  const Stats s = self.sequences().stats();
  return type_of("Stats")(s.num_sequences, s.num_tokens, s.num_page_references, s.num_pages,
                          s.num_shared_pages, s.num_free_pages, s.num_draft_tokens,
                          s.num_dropped_tokens);
}

void bind_queries(nb::class_<Descriptor>& cls) {
  cls.def(
         "pack_for_flashinfer",
         [](const Descriptor& self, const Ints& seq_ids) {
           return PackedData{self.sequences().pack_for_flashinfer(to_seq_ids(seq_ids)),
                             self.framework};
         },
         "seq_ids"_a.none(),
         nb::sig("def pack_for_flashinfer(self, seq_ids: collections.abc.Iterable[int]) -> "
                 "FlashInferPackedData"),
         "The batch as CSR arrays, rows in the order of the ids. Raises UnknownSequenceError.")
      .def(
          "length",
          [](const Descriptor& self, const Int& seq_id) {
            return self.sequences().length(to_seq_id(seq_id));
          },
          "seq_id"_a.none(), nb::sig("def length(self, seq_id: typing.SupportsIndex) -> int"),
          "The next absolute position.")
      .def(
          "num_kv_tokens",
          [](const Descriptor& self, const Int& seq_id) {
            return self.sequences().num_kv_tokens(to_seq_id(seq_id));
          },
          "seq_id"_a.none(),
          nb::sig("def num_kv_tokens(self, seq_id: typing.SupportsIndex) -> int"),
          "The token slots held.")
      .def(
          "pages",
          [](const Descriptor& self, const Int& seq_id) {
            const auto pages = self.sequences().pages(to_seq_id(seq_id));
            return std::vector<PageId>(pages.begin(), pages.end());
          },
          "seq_id"_a.none(), nb::sig("def pages(self, seq_id: typing.SupportsIndex) -> list[int]"),
          "The pages, in order.")
      .def(
          "sequence",
          [](const Descriptor& self, const Int& seq_id) {
            const SequenceData& data = self.sequences().sequence(to_seq_id(seq_id));
            return type_of("SequenceData")(data.kv_page_indices, data.last_page_len);
          },
          "seq_id"_a.none(),
          nb::sig("def sequence(self, seq_id: typing.SupportsIndex) -> "
                  "seqattn._types.SequenceData"),
          "The pages and the tokens on the last of them.")
      .def(
          "details",
          [](const Descriptor& self, const Int& seq_id) {
            return from_sequence_data(self.sequences().sequence(to_seq_id(seq_id)));
          },
          "seq_id"_a.none(),
          nb::sig("def details(self, seq_id: typing.SupportsIndex) -> "
                  "seqattn._types.SequenceDetails"),
          "As sequence, with all else that is known of it.");
}

void bind_views(nb::class_<Descriptor>& cls) {
  cls.def(
         "seq_ids", [](const Descriptor& self) { return self.sequences().seq_ids(); },
         "The ids, in no particular order.")
      .def(
          "contains",
          [](const Descriptor& self, const Int& seq_id) {
            return self.sequences().contains(to_seq_id(seq_id));
          },
          "seq_id"_a.none(), nb::sig("def contains(self, seq_id: typing.SupportsIndex) -> bool"),
          "Whether the descriptor holds this sequence.")
      .def(
          "__contains__",
          [](const Descriptor& self, const Any& seq_id) {
            const std::optional<std::int64_t> id = as_int64(seq_id);
            return id && self.sequences().contains(*id);
          },
          "seq_id"_a.none(), nb::sig("def __contains__(self, seq_id: object) -> bool"),
          "As contains, and false for what is no id at all.")
      .def(
          "__iter__",
          [](const Descriptor& self) { return nb::iter(nb::cast(self.sequences().seq_ids())); },
          nb::sig("def __iter__(self) -> collections.abc.Iterator[int]"),
          "The ids of seq_ids(), as they are now.")
      .def("__len__", [](const Descriptor& self) { return self.sequences().num_sequences(); })
      .def("stats", &stats, nb::sig("def stats(self) -> seqattn._types.Stats"),
           "Counts of sequences, tokens and pages.")
      .def(
          "check_invariants", [](const Descriptor& self) { self.sequences().check_invariants(); },
          "Raises Error naming the first violated invariant.")
      .def("__repr__", [](const Descriptor& self) { return self.sequences().to_string(); });
}

}  // namespace

void bind_descriptor_views(nb::class_<Descriptor>& cls) {
  bind_queries(cls);
  bind_views(cls);
}

}  // namespace seqattn::python
