#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "arguments.h"
#include "classes.h"
#include "collector.h"
#include "initial_sequences.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

nb::object type_of(const char* name) { return nb::module_::import_("seqattn._types").attr(name); }

std::vector<SeqId> to_seq_ids(nb::handle ids) { return to_ints<SeqId>(ids, "seq_ids"); }
SeqId to_seq_id(nb::handle id) { return to_int64(id, "seq_id"); }

void init(Descriptor* self, nb::object cache_manager, const nb::object& sequences) {
  const Manager* manager = nullptr;
  const Pool* pool = nullptr;
  Descriptor made{};
  if (nb::try_cast(cache_manager, manager, false) && manager != nullptr) {
    made.framework = manager->framework;
    made.descriptor = std::make_unique<CacheDescriptor>(*manager->manager);
    made.reclaimer = &reclaimer_of(*manager);
  } else if (nb::try_cast(cache_manager, pool, false) && pool != nullptr) {
    made.descriptor = std::make_unique<CacheDescriptor>(*pool->pool);
    made.reclaimer = &reclaimer_of(*pool);
  } else {
    throw_type_error(concat("cache_manager: got ", class_name(cache_manager),
                            "; expected a PagedKVCacheManager or a PagePool"));
  }
  made.owner = std::move(cache_manager);
  if (!sequences.is_none()) adopt_all(made.sequences(), sequences);
  new (self) Descriptor(std::move(made));
}

nb::object stats(const Descriptor& self) {
  const Stats s = self.sequences().stats();
  return type_of("Stats")(s.num_sequences, s.num_tokens, s.num_page_references, s.num_pages,
                          s.num_shared_pages, s.num_free_pages);
}

nb::object try_allocate(const Descriptor& self, const Ints& seq_ids, const Ints& seq_new_lens) {
  const Admission admission = self.sequences().try_allocate(
      to_seq_ids(seq_ids), to_ints<std::int64_t>(seq_new_lens, "seq_new_lens"), self.stream());
  return type_of("Admission")(admission.ok, admission.needed, admission.available,
                              from_page_copies(admission.copies));
}

void bind_growth(nb::class_<Descriptor>& cls) {
  cls.def(
         "allocate",
         [](const Descriptor& self, const Ints& seq_ids, const Ints& seq_new_lens) {
           return from_page_copies(self.sequences().allocate(
               to_seq_ids(seq_ids), to_ints<std::int64_t>(seq_new_lens, "seq_new_lens"),
               self.stream()));
         },
         "seq_ids"_a.none(), "seq_new_lens"_a.none(),
         nb::sig("def allocate(self, seq_ids: collections.abc.Iterable[int], seq_new_lens: "
                 "collections.abc.Iterable[int]) -> list[seqattn._types.PageCopy]"),
         "Grows each sequence by that many tokens, starting those that are new, all or nothing.\n\n"
         "Returns the page copies that sharing called for: already made over a manager, the "
         "caller's to make over a bare pool; usually none. Raises InvalidArgumentError for lists "
         "of different sizes or a negative length, NoPageError for a full pool.")
      .def("try_allocate", &try_allocate, "seq_ids"_a.none(), "seq_new_lens"_a.none(),
           nb::sig("def try_allocate(self, seq_ids: collections.abc.Iterable[int], seq_new_lens: "
                   "collections.abc.Iterable[int]) -> seqattn._types.Admission"),
           "The same, with a full pool as a value instead of an exception.")
      .def(
          "allocate_decoding",
          [](const Descriptor& self, const Ints& seq_ids) {
            return from_page_copies(
                self.sequences().allocate_decoding(to_seq_ids(seq_ids), self.stream()));
          },
          "seq_ids"_a.none(),
          nb::sig("def allocate_decoding(self, seq_ids: collections.abc.Iterable[int]) -> "
                  "list[seqattn._types.PageCopy]"),
          "Grows each sequence by one token. Raises UnknownSequenceError too.")
      .def(
          "release",
          [](const Descriptor& self, const Ints& seq_ids) {
            return self.sequences().release(to_seq_ids(seq_ids));
          },
          "seq_ids"_a.none(),
          nb::sig("def release(self, seq_ids: collections.abc.Iterable[int]) -> int"),
          "Drops sequences; unknown ids are ignored. Returns how many there were.")
      .def(
          "truncate",
          [](const Descriptor& self, const Int& seq_id, const Int& num_tokens) {
            self.sequences().truncate(to_seq_id(seq_id), to_int64(num_tokens, "num_tokens"));
          },
          "seq_id"_a.none(), "num_tokens"_a.none(),
          nb::sig("def truncate(self, seq_id: typing.SupportsIndex, num_tokens: "
                  "typing.SupportsIndex) -> None"),
          "Drops the tokens from num_tokens on, and the pages that held only them.")
      .def(
          "clear", [](const Descriptor& self) { self.sequences().clear(); },
          "Releases every sequence.");
}

void bind_sharing(nb::class_<Descriptor>& cls) {
  cls.def(
         "fork",
         [](const Descriptor& self, const Int& parent, const Int& child,
            const OptionalInt& num_tokens) {
           std::int64_t count = kAll;
           if (!num_tokens.is_none()) {
             count = to_int64(num_tokens, "num_tokens");
             // C++ has -1 for all of them; here that is what None says.
             require(count >= 0, "num_tokens: got ", count,
                     "; expected at least 0, or None for all");
           }
           self.sequences().fork(to_int64(parent, "parent"), to_int64(child, "child"), count);
         },
         "parent"_a.none(), "child"_a.none(), "num_tokens"_a = nb::none(),
         nb::sig("def fork(self, parent: typing.SupportsIndex, child: typing.SupportsIndex, "
                 "num_tokens: typing.SupportsIndex | None = None) -> None"),
         "Starts child as the first num_tokens tokens of parent, or all, sharing its pages.\n\n"
         "Raises UnknownSequenceError for the parent, InvalidArgumentError when the child exists "
         "or the parent is shorter.")
      .def(
          "attach",
          [](const Descriptor& self, const Int& seq_id, const Ints& pages, const Int& num_tokens) {
            self.sequences().attach(to_seq_id(seq_id), to_ints<PageId>(pages, "page_indices"),
                                    to_int64(num_tokens, "num_tokens"));
          },
          "seq_id"_a.none(), "page_indices"_a.none(), "num_tokens"_a.none(),
          nb::sig("def attach(self, seq_id: typing.SupportsIndex, page_indices: "
                  "collections.abc.Iterable[int], num_tokens: typing.SupportsIndex) -> None"),
          "Starts a sequence over pages that live already, taking a reference to each.")
      .def(
          "adopt",
          [](const Descriptor& self, const Int& seq_id, const Ints& pages, const Int& num_tokens) {
            self.sequences().adopt(to_seq_id(seq_id), to_ints<PageId>(pages, "page_indices"),
                                   to_int64(num_tokens, "num_tokens"));
          },
          "seq_id"_a.none(), "page_indices"_a.none(), "num_tokens"_a.none(),
          nb::sig("def adopt(self, seq_id: typing.SupportsIndex, page_indices: "
                  "collections.abc.Iterable[int], num_tokens: typing.SupportsIndex) -> None"),
          "Like attach, but takes over references that the caller already holds. A sequence that "
          "exists gets the new table; references to pages no longer listed go back to the caller.");
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
          "The same, and false for what is no id at all.")
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

nb::list from_page_copies(const std::vector<PageCopy>& copies) {
  nb::list list;
  if (copies.empty()) return list;
  const nb::object type = type_of("PageCopy");
  for (const auto [source, target] : copies) list.append(type(source, target));
  return list;
}

std::vector<PageCopy> to_page_copies(nb::handle copies) {
  std::vector<PageCopy> result;
  const nb::object items = nb::steal(PyObject_GetIter(copies.ptr()));
  if (!items.is_valid()) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) nb::raise_python_error();
    PyErr_Clear();
    throw_type_error(concat("copies: got ", class_name(copies),
                            "; expected a list of pairs of source and target"));
  }
  for (const nb::handle copy : items) {
    const auto pages = to_ints<PageId>(copy, "copies");
    require(pages.size() == 2, "copies: got an entry of ", pages.size(),
            " pages; expected pairs of source and target");
    result.push_back({pages[0], pages[1]});
  }
  return result;
}

void bind_descriptor(nb::module_& m) {
  nb::class_<Descriptor> cls(
      m, "CacheDescriptor", nb::type_slots(traverse_slots<Descriptor>),
      "Sequences and the pages that hold them.\n\n"
      "Batch calls handle ids in order, as if one call were made for each, but all or nothing: a "
      "call that raises has changed nothing. A page with a count above 1 is never written: when a "
      "sequence whose last, partly filled page is shared grows, the page is replaced by a copy.\n\n"
      "seq_id_to_data: sequences to start with, taking over references that the caller holds, as "
      "adopt does.");
  cls.def("__init__", &init, nb::arg("cache_manager").none(),
          nb::arg("seq_id_to_data") = nb::none(),
          nb::sig("def __init__(self, cache_manager: PagedKVCacheManager | PagePool, "
                  "seq_id_to_data: collections.abc.Mapping[int, seqattn._types.SequenceData] | "
                  "None = None) -> None"))
      .def_prop_ro(
          "cache_manager", [](const Descriptor& self) { return self.owner; },
          nb::sig("def cache_manager(self) -> PagedKVCacheManager | PagePool"),
          "The manager, or the pool.")
      .def_prop_ro(
          "page_size", [](const Descriptor& self) { return self.sequences().pool().page_size(); },
          "Tokens a page.")
      .def_prop_ro(
          "seq_id_to_data",
          [](const Descriptor& self) { return type_of("SequenceMapping")(nb::find(self)); },
          nb::sig("def seq_id_to_data(self) -> seqattn._types.SequenceMapping"),
          "The sequences as a live mapping from id to SequenceData.");
  bind_growth(cls);
  bind_sharing(cls);
  bind_queries(cls);
}

}  // namespace seqattn::python
