#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <utility>

#include "arguments.h"
#include "classes.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

nb::object type_of(const char* name) { return nb::module_::import_("seqattn._types").attr(name); }

std::vector<SeqId> to_seq_ids(nb::handle ids) { return to_ints<SeqId>(ids, "seq_ids"); }
SeqId to_seq_id(nb::handle id) { return to_int64(id, "seq_id"); }

// Takes over the sequences of a mapping from id to SequenceData; all or none of them.
void adopt_all(nb::handle descriptor, CacheDescriptor& sequences, nb::handle mapping) {
  const nb::object live = type_of("SequenceMapping")(descriptor);
  try {
    live.attr("update")(mapping);
  } catch (...) {
    // An empty table hands the references back to the caller.
    for (const SeqId id : sequences.seq_ids()) sequences.adopt(id, {}, 0);
    throw;
  }
}

void init(nb::handle_t<Descriptor> handle, nb::object cache_manager, const nb::object& sequences) {
  auto* self = nb::inst_ptr<Descriptor>(handle);
  const Manager* manager = nullptr;
  const Pool* pool = nullptr;
  if (nb::try_cast(cache_manager, manager, false) && manager != nullptr) {
    auto descriptor = std::make_unique<CacheDescriptor>(*manager->manager);
    new (self) Descriptor{std::move(cache_manager), manager->framework, std::move(descriptor)};
  } else if (nb::try_cast(cache_manager, pool, false) && pool != nullptr) {
    auto descriptor = std::make_unique<CacheDescriptor>(*pool->pool);
    new (self) Descriptor{std::move(cache_manager), Framework::kNumpy, std::move(descriptor)};
  } else {
    throw_type_error(concat("cache_manager: got ", class_name(cache_manager),
                            "; expected a PagedKVCacheManager or a PagePool"));
  }
  nb::inst_mark_ready(handle);
  if (!sequences.is_none()) adopt_all(handle, *self->descriptor, sequences);
}

nb::object stats(const Descriptor& self) {
  const Stats s = self.descriptor->stats();
  return type_of("Stats")(s.num_sequences, s.num_tokens, s.num_page_references, s.num_pages,
                          s.num_shared_pages, s.num_free_pages);
}

nb::object try_allocate(const Descriptor& self, const Ints& seq_ids, const Ints& seq_new_lens) {
  const Admission admission = self.descriptor->try_allocate(
      to_seq_ids(seq_ids), to_ints<std::int64_t>(seq_new_lens, "seq_new_lens"), self.stream());
  return type_of("Admission")(admission.ok, admission.needed, admission.available,
                              from_page_copies(admission.copies));
}

void bind_growth(nb::class_<Descriptor>& cls) {
  cls.def(
         "allocate",
         [](const Descriptor& self, const Ints& seq_ids, const Ints& seq_new_lens) {
           return from_page_copies(self.descriptor->allocate(
               to_seq_ids(seq_ids), to_ints<std::int64_t>(seq_new_lens, "seq_new_lens"),
               self.stream()));
         },
         "seq_ids"_a, "seq_new_lens"_a,
         nb::sig("def allocate(self, seq_ids: collections.abc.Iterable[int], seq_new_lens: "
                 "collections.abc.Iterable[int]) -> list[seqattn._types.PageCopy]"),
         "Grows each sequence by that many tokens, starting those that are new, all or nothing.\n\n"
         "Returns the page copies that sharing called for: already made over a manager, the "
         "caller's to make over a bare pool; usually none. Raises InvalidArgumentError for lists "
         "of different sizes or a negative length, NoPageError for a full pool.")
      .def("try_allocate", &try_allocate, "seq_ids"_a, "seq_new_lens"_a,
           nb::sig("def try_allocate(self, seq_ids: collections.abc.Iterable[int], seq_new_lens: "
                   "collections.abc.Iterable[int]) -> seqattn._types.Admission"),
           "The same, with a full pool as a value instead of an exception.")
      .def(
          "allocate_decoding",
          [](const Descriptor& self, const Ints& seq_ids) {
            return from_page_copies(
                self.descriptor->allocate_decoding(to_seq_ids(seq_ids), self.stream()));
          },
          "seq_ids"_a,
          nb::sig("def allocate_decoding(self, seq_ids: collections.abc.Iterable[int]) -> "
                  "list[seqattn._types.PageCopy]"),
          "Grows each sequence by one token. Raises UnknownSequenceError too.")
      .def(
          "release",
          [](const Descriptor& self, const Ints& seq_ids) {
            return self.descriptor->release(to_seq_ids(seq_ids));
          },
          "seq_ids"_a, "Drops sequences; unknown ids are ignored. Returns how many there were.")
      .def(
          "truncate",
          [](const Descriptor& self, const Int& seq_id, const Int& num_tokens) {
            self.descriptor->truncate(to_seq_id(seq_id), to_int64(num_tokens, "num_tokens"));
          },
          "seq_id"_a, "num_tokens"_a,
          "Drops the tokens from num_tokens on, and the pages that held only them.")
      .def(
          "clear", [](const Descriptor& self) { self.descriptor->clear(); },
          "Releases every sequence.");
}

void bind_sharing(nb::class_<Descriptor>& cls) {
  cls.def(
         "fork",
         [](const Descriptor& self, const Int& parent, const Int& child,
            const OptionalInt& num_tokens) {
           self.descriptor->fork(to_int64(parent, "parent"), to_int64(child, "child"),
                                 num_tokens.is_none() ? kAll : to_int64(num_tokens, "num_tokens"));
         },
         "parent"_a, "child"_a, "num_tokens"_a = nb::none(),
         "Starts child as the first num_tokens tokens of parent, or all, sharing its pages.\n\n"
         "Raises UnknownSequenceError for the parent, InvalidArgumentError when the child exists "
         "or the parent is shorter.")
      .def(
          "attach",
          [](const Descriptor& self, const Int& seq_id, const Ints& pages, const Int& num_tokens) {
            self.descriptor->attach(to_seq_id(seq_id), to_ints<PageId>(pages, "page_indices"),
                                    to_int64(num_tokens, "num_tokens"));
          },
          "seq_id"_a, "page_indices"_a, "num_tokens"_a,
          "Starts a sequence over pages that live already, taking a reference to each.")
      .def(
          "adopt",
          [](const Descriptor& self, const Int& seq_id, const Ints& pages, const Int& num_tokens) {
            self.descriptor->adopt(to_seq_id(seq_id), to_ints<PageId>(pages, "page_indices"),
                                   to_int64(num_tokens, "num_tokens"));
          },
          "seq_id"_a, "page_indices"_a, "num_tokens"_a,
          "Like attach, but takes over references that the caller already holds. A sequence that "
          "exists gets the new table; references to pages no longer listed go back to the caller.");
}

void bind_queries(nb::class_<Descriptor>& cls) {
  cls.def(
         "pack_for_flashinfer",
         [](const Descriptor& self, const Ints& seq_ids) {
           return PackedData{self.descriptor->pack_for_flashinfer(to_seq_ids(seq_ids)),
                             self.framework};
         },
         "seq_ids"_a,
         "The batch as CSR arrays, rows in the order of the ids. Raises UnknownSequenceError.")
      .def(
          "length",
          [](const Descriptor& self, const Int& seq_id) {
            return self.descriptor->length(to_seq_id(seq_id));
          },
          "seq_id"_a, "The next absolute position.")
      .def(
          "num_kv_tokens",
          [](const Descriptor& self, const Int& seq_id) {
            return self.descriptor->num_kv_tokens(to_seq_id(seq_id));
          },
          "seq_id"_a, "The token slots held.")
      .def(
          "pages",
          [](const Descriptor& self, const Int& seq_id) {
            const auto pages = self.descriptor->pages(to_seq_id(seq_id));
            return std::vector<PageId>(pages.begin(), pages.end());
          },
          "seq_id"_a, "The pages, in order.")
      .def(
          "sequence",
          [](const Descriptor& self, const Int& seq_id) {
            const SequenceData& data = self.descriptor->sequence(to_seq_id(seq_id));
            return type_of("SequenceData")(data.kv_page_indices, data.last_page_len);
          },
          "seq_id"_a,
          nb::sig("def sequence(self, seq_id: typing.SupportsIndex) -> "
                  "seqattn._types.SequenceData"),
          "The pages and the tokens on the last of them.")
      .def(
          "seq_ids", [](const Descriptor& self) { return self.descriptor->seq_ids(); },
          "The ids, in no particular order.")
      .def(
          "contains",
          [](const Descriptor& self, const Int& seq_id) {
            return self.descriptor->contains(to_seq_id(seq_id));
          },
          "seq_id"_a)
      .def(
          "__contains__",
          [](const Descriptor& self, const Int& seq_id) {
            return self.descriptor->contains(to_seq_id(seq_id));
          },
          "seq_id"_a)
      .def("__len__", [](const Descriptor& self) { return self.descriptor->num_sequences(); })
      .def("stats", &stats, nb::sig("def stats(self) -> seqattn._types.Stats"),
           "Counts of sequences, tokens and pages.")
      .def(
          "check_invariants", [](const Descriptor& self) { self.descriptor->check_invariants(); },
          "Raises Error naming the first violated invariant.")
      .def("__repr__", [](const Descriptor& self) { return self.descriptor->to_string(); });
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
  for (const nb::handle copy : nb::borrow<nb::object>(copies)) {
    const auto pages = to_ints<PageId>(copy, "copies");
    require(pages.size() == 2, "copies: got an entry of ", pages.size(),
            " pages; expected pairs of source and target");
    result.push_back({pages[0], pages[1]});
  }
  return result;
}

void bind_descriptor(nb::module_& m) {
  nb::class_<Descriptor> cls(
      m, "CacheDescriptor",
      "Sequences and the pages that hold them.\n\n"
      "Batch calls handle ids in order, as if one call were made for each, but all or nothing: a "
      "call that raises has changed nothing. A page with a count above 1 is never written: when a "
      "sequence whose last, partly filled page is shared grows, the page is replaced by a copy.");
  cls.def("__init__", &init, nb::arg("cache_manager"), nb::arg("seq_id_to_data") = nb::none(),
          nb::sig("def __init__(self, cache_manager: PagedKVCacheManager | PagePool, "
                  "seq_id_to_data: collections.abc.Mapping[int, seqattn._types.SequenceData] | "
                  "None = None) -> None"))
      .def_prop_ro(
          "cache_manager", [](const Descriptor& self) { return self.owner; },
          nb::sig("def cache_manager(self) -> PagedKVCacheManager | PagePool"),
          "The manager, or the pool.")
      .def_prop_ro(
          "page_size", [](const Descriptor& self) { return self.descriptor->pool().page_size(); },
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
