#include <algorithm>
#include <array>
#include <memory>
#include <utility>
#include <vector>

#include "arguments.h"
#include "classes.h"
#include "collector.h"
#include "initial_sequences.h"
#include "plain_types.h"
#include "sequence_details.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

SlidingWindow to_window(nb::handle window, nb::handle num_sink_tokens) {
  return {.window = to_int64(window, "window"),
          .num_sink_tokens = to_int64(num_sink_tokens, "num_sink_tokens")};
}

void init(Descriptor* self, nb::object cache_manager, const nb::object& sequences,
          const Int& window, const Int& num_sink_tokens) {
  const SlidingWindow sliding = to_window(window, num_sink_tokens);
  const Manager* manager = nullptr;
  const Pool* pool = nullptr;
  Descriptor made{};
  if (nb::try_cast(cache_manager, manager, false) && manager != nullptr) {
    made.framework = manager->framework;
    made.descriptor = std::make_unique<CacheDescriptor>(*manager->manager, sliding);
    made.reclaimer = &reclaimer_of(*manager);
  } else if (nb::try_cast(cache_manager, pool, false) && pool != nullptr) {
    made.descriptor = std::make_unique<CacheDescriptor>(*pool->pool, sliding);
    made.reclaimer = &reclaimer_of(*pool);
  } else {
    throw_type_error(concat("cache_manager: got ", class_name(cache_manager),
                            "; expected a PagedKVCacheManager or a PagePool"));
  }
  made.owner = std::move(cache_manager);
  if (!sequences.is_none()) adopt_all(made.sequences(), sequences);
  new (self) Descriptor(std::move(made));
}

nb::object try_allocate(const Descriptor& self, const Ints& seq_ids, const Ints& seq_new_lens) {
  const Admission admission = self.sequences().try_allocate(
      to_seq_ids(seq_ids), to_ints<std::int64_t>(seq_new_lens, "seq_new_lens"), self.stream());
  return type_of("Admission")(admission.ok, admission.needed, admission.available,
                              from_page_copies(admission.copies));
}

// A list of that many numbers each.
template <std::size_t kSize>
std::vector<std::array<std::int32_t, kSize>> to_tuples(nb::handle list, const char* name,
                                                       const char* expected) {
  const nb::object items = nb::steal(PyObject_GetIter(list.ptr()));
  if (!items.is_valid()) {
    if (!PyErr_ExceptionMatches(PyExc_TypeError)) nb::raise_python_error();
    PyErr_Clear();
    throw_type_error(concat(name, ": got ", class_name(list), "; expected a list of ", expected));
  }
  std::vector<std::array<std::int32_t, kSize>> tuples;
  for (const nb::handle item : items) {
    const auto numbers = to_ints<std::int32_t>(item, name);
    require(numbers.size() == kSize, name, ": got an entry of ", numbers.size(),
            " numbers; expected ", expected);
    std::copy(numbers.begin(), numbers.end(), tuples.emplace_back().begin());
  }
  return tuples;
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
           "As allocate, with a full pool as a value instead of an exception.")
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
          "Drops the tokens from position num_tokens on, a pending tree with them, and the pages "
          "that held only them.\n\n"
          "Raises InvalidArgumentError too where the next token would see what was dropped.")
      .def(
          "clear", [](const Descriptor& self) { self.sequences().clear(); },
          "Releases every sequence.");
}

void bind_windows_and_trees(nb::class_<Descriptor>& cls) {
  cls.def(
         "set_window",
         [](const Descriptor& self, const Int& seq_id, const Int& window,
            const Int& num_sink_tokens) {
           self.sequences().set_window(to_seq_id(seq_id), to_window(window, num_sink_tokens));
         },
         "seq_id"_a.none(), "window"_a.none() = 0, "num_sink_tokens"_a.none() = 0,
         nb::sig("def set_window(self, seq_id: typing.SupportsIndex, window: "
                 "typing.SupportsIndex = 0, num_sink_tokens: typing.SupportsIndex = 0) -> None"),
         "Lets a sequence see its last window tokens, the query's own included, and its first "
         "num_sink_tokens; 0: all.\n\n"
         "Pages that hold nothing of that go back to the pool when the sequence grows. Raises "
         "UnknownSequenceError; InvalidArgumentError for a negative number, sinks without a "
         "window, or a window that would see what was dropped.")
      .def(
          "window",
          [](const Descriptor& self, const OptionalInt& seq_id) {
            const CacheDescriptor& sequences = self.sequences();
            return from_window(seq_id.is_none() ? sequences.window()
                                                : sequences.window(to_seq_id(seq_id)));
          },
          "seq_id"_a = nb::none(),
          nb::sig("def window(self, seq_id: typing.SupportsIndex | None = None) -> "
                  "seqattn._types.SlidingWindow"),
          "The window of a sequence, or of sequences to come.")
      .def(
          "kept_from",
          [](const Descriptor& self, const Int& seq_id) {
            return self.sequences().sequence(to_seq_id(seq_id)).kept_from();
          },
          "seq_id"_a.none(), nb::sig("def kept_from(self, seq_id: typing.SupportsIndex) -> int"),
          "The position from which on every token is held, one a slot; 0 where none was dropped.")
      .def(
          "allocate_tree",
          [](const Descriptor& self, const Int& seq_id, const Ints& parents,
             const Int& num_tokens) {
            return from_page_copies(self.sequences().allocate_tree(
                to_seq_id(seq_id), to_ints<std::int32_t>(parents, "parents"),
                to_int64(num_tokens, "num_tokens"), self.stream()));
          },
          "seq_id"_a.none(), "parents"_a.none(), "num_tokens"_a.none() = 0,
          nb::sig("def allocate_tree(self, seq_id: typing.SupportsIndex, parents: "
                  "collections.abc.Iterable[int], num_tokens: typing.SupportsIndex = 0) -> "
                  "list[seqattn._types.PageCopy]"),
          "Grows the sequence by num_tokens tokens, then appends draft tokens as a pending "
          "tree.\n\n"
          "Draft token i is a child of parents[i] < i, or of the sequence's last token where that "
          "is -1. length does not count the tree. A draft token sees the sequence, its ancestors "
          "and itself. commit_tree, or truncate to the length, ends the tree; until then the "
          "sequence does not grow. Returns and raises as allocate does.")
      .def(
          "commit_tree",
          [](const Descriptor& self, const Int& seq_id, const Ints& path) {
            return from_token_moves(self.sequences().commit_tree(
                to_seq_id(seq_id), to_ints<std::int32_t>(path, "path"), self.stream()));
          },
          "seq_id"_a.none(), "path"_a.none(),
          nb::sig("def commit_tree(self, seq_id: typing.SupportsIndex, path: "
                  "collections.abc.Iterable[int]) -> list[seqattn._types.TokenMove]"),
          "Makes a path of the tree, from a child of the last token down, the next tokens; the "
          "rest "
          "is dropped.\n\n"
          "Returns the token moves: already made over a manager, the caller's to make, in order, "
          "over a bare pool.")
      .def(
          "keep",
          [](const Descriptor& self, const Int& seq_id, const Ints& token_indices) {
            return from_token_moves(self.sequences().keep(
                to_seq_id(seq_id), to_ints<std::int64_t>(token_indices, "token_indices"),
                self.stream()));
          },
          "seq_id"_a.none(), "token_indices"_a.none(),
          nb::sig("def keep(self, seq_id: typing.SupportsIndex, token_indices: "
                  "collections.abc.Iterable[int]) -> list[seqattn._types.TokenMove]"),
          "Keeps these of the slots held, in order, and gives up the rest; length stays.\n\n"
          "Raises InvalidArgumentError for indices that do not ascend in [0, num_kv_tokens), a "
          "pending tree, or a token that the window has left behind. Returns what commit_tree "
          "does.");
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
          "attach",
          [](const Descriptor& self, const Int& seq_id, const Any& details) {
            self.sequences().attach(to_seq_id(seq_id), to_sequence_data(details));
          },
          "seq_id"_a.none(), "details"_a.none(),
          nb::sig("def attach(self, seq_id: typing.SupportsIndex, details: "
                  "seqattn._types.SequenceDetails) -> None"),
          "The same for a sequence whose window has dropped tokens, or that keep has picked from, "
          "as another descriptor's details show it.")
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

}  // namespace

nb::list from_page_copies(const std::vector<PageCopy>& copies) {
  nb::list list;
  if (copies.empty()) return list;
  const nb::object type = type_of("PageCopy");
  for (const auto [source, target] : copies) list.append(type(source, target));
  return list;
}

nb::list from_token_moves(const std::vector<TokenMove>& moves) {
  nb::list list;
  if (moves.empty()) return list;
  const nb::object type = type_of("TokenMove");
  for (const auto [source_page, source_slot, target_page, target_slot] : moves) {
    list.append(type(source_page, source_slot, target_page, target_slot));
  }
  return list;
}

std::vector<PageCopy> to_page_copies(nb::handle copies) {
  std::vector<PageCopy> result;
  for (const auto& [source, target] :
       to_tuples<2>(copies, "copies", "pairs of source and target")) {
    result.push_back({source, target});
  }
  return result;
}

std::vector<TokenMove> to_token_moves(nb::handle moves) {
  std::vector<TokenMove> result;
  for (const auto& [source_page, source_slot, target_page, target_slot] : to_tuples<4>(
           moves, "moves", "tuples of source page, source slot, target page and target slot")) {
    result.push_back({source_page, source_slot, target_page, target_slot});
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
      "adopt does. window, num_sink_tokens: the window of sequences to come, as set_window has "
      "it.");
  cls.def("__init__", &init, nb::arg("cache_manager").none(),
          nb::arg("seq_id_to_data") = nb::none(), nb::kw_only(), nb::arg("window").none() = 0,
          nb::arg("num_sink_tokens").none() = 0,
          nb::sig("def __init__(self, cache_manager: PagedKVCacheManager | PagePool, "
                  "seq_id_to_data: collections.abc.Mapping[int, seqattn._types.SequenceData] | "
                  "None = None, *, window: typing.SupportsIndex = 0, num_sink_tokens: "
                  "typing.SupportsIndex = 0) -> None"))
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
  bind_windows_and_trees(cls);
  bind_sharing(cls);
  bind_descriptor_views(cls);
}

}  // namespace seqattn::python
