#pragma once

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "arguments.h"
#include "classes.h"

namespace seqattn::python {

// The free pages of a pool, front first, as a read-only sequence.
struct FreePages {
  nb::object owner;  // keeps the pool alive
  PagePool* pool;
};

template <class T>
void bind_pool_attributes(nb::class_<T>& cls) {
  cls.def_prop_ro(
         "num_pages", [](const T& self) { return self.page_pool().num_pages(); },
         "Pages of the pool.")
      .def_prop_ro(
          "page_size", [](const T& self) { return self.page_pool().page_size(); }, "Tokens a page.")
      .def_prop_ro(
          "available_pages_count",
          [](const T& self) { return self.page_pool().available_pages_count(); },
          "Pages that are free.")
      .def_prop_ro(
          "free_pages",
          [](const T& self) {
            return FreePages{nb::find(self), &self.page_pool()};
          },
          "The free pages, front first: a live, read-only sequence.")
      .def_prop_ro(
          "ref_count",
          [](const T& self) {
            return export_counts(self.page_pool().ref_counts(), nb::find(self));
          },
          nb::sig("def ref_count(self) -> numpy.typing.NDArray[numpy.int32]"),
          "int32 [num_pages]: references of each page, 0 = free. A live, read-only view.");
}

template <class T>
void change_counts(const T& self, const Ints& pages, void (PagePool::*change)(PageIds)) {
  const auto ids = to_ints<PageId>(pages, "page_indices");
  reclaimer_of(self).require_no_file();
  (self.page_pool().*change)(ids);
}

// What PagePool and PagedKVCacheManager have in common: the pool's attributes and methods.
template <class T>
void bind_pool_members(nb::class_<T>& cls) {
  using namespace nb::literals;
  bind_pool_attributes(cls);
  cls.def(
         "allocate",
         [](const T& self, const Int& num_pages) {
           const std::int64_t count = to_int64(num_pages, "num_pages");
           reclaimer_of(self).require_idle();
           return self.page_pool().allocate(count);
         },
         "num_pages"_a.none(),
         nb::sig("def allocate(self, num_pages: typing.SupportsIndex) -> list[int]"),
         "Takes pages from the front of the free list, each with a count of 1.\n\n"
         "Raises InvalidArgumentError for a negative number, NoPageError when fewer are free.")
      .def(
          "ref",
          [](const T& self, const Ints& pages) { change_counts(self, pages, &PagePool::ref); },
          "page_indices"_a.none(),
          nb::sig("def ref(self, page_indices: collections.abc.Iterable[int]) -> None"),
          "Adds one reference for every listed page; a page listed twice counts twice.\n\n"
          "Raises InvalidArgumentError, having changed nothing, for a free or unknown page.")
      .def(
          "unref",
          [](const T& self, const Ints& pages) { change_counts(self, pages, &PagePool::unref); },
          "page_indices"_a.none(),
          nb::sig("def unref(self, page_indices: collections.abc.Iterable[int]) -> None"),
          "Drops one reference for every listed page; a page whose count falls to 0 is free.\n\n"
          "Raises InvalidArgumentError, having changed nothing, for a free or unknown page, or a "
          "count that would fall below 0.")
      .def(
          "release_pages",
          [](const T& self, const Ints& pages) {
            change_counts(self, pages, &PagePool::release_pages);
          },
          "page_indices"_a.none(),
          nb::sig("def release_pages(self, page_indices: collections.abc.Iterable[int]) -> None"),
          "The same as unref.")
      .def(
          "is_cached",
          [](const T& self, const Int& page) {
            return self.page_pool().is_cached(to_int(page, "page"));
          },
          "page"_a.none(), nb::sig("def is_cached(self, page: typing.SupportsIndex) -> bool"),
          "Whether a PrefixCache holds the page, so that no call writes it.")
      .def(
          "set_reclaimer",
          [](const T& self, const Any& reclaimer) {
            reclaimer_of(self).set(reclaimer, self.page_pool());
          },
          "reclaimer"_a.none(),
          nb::sig("def set_reclaimer(self, reclaimer: collections.abc.Callable[[int], bool] | "
                  "None) -> None"),
          "Has a callable asked for pages when the pool falls short, as a prefix cache can give "
          "some up; None removes it.\n\n"
          "reclaimer(num_pages) either makes at least that many more pages free, by unref, and "
          "returns True; or changes nothing and returns False. The counts that it meets are "
          "without "
          "the references to pages that the call will copy, or that windows have left behind, and "
          "check_invariants does not hold: a page with a count of 1 that the reclaimer holds "
          "becomes free by its unref. It may not call a descriptor of this pool, nor allocate: "
          "those raise Error. What it raises comes out of the call that fell short, which then has "
          "changed nothing.")
      .def(
          "check_invariants", [](const T& self) { self.page_pool().check_invariants(); },
          "Raises Error naming the first violated invariant.");
}

}  // namespace seqattn::python
