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

// What PagePool and PagedKVCacheManager have in common: the pool's attributes and methods.
template <class T>
void bind_pool_members(nb::class_<T>& cls) {
  using namespace nb::literals;
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
          "int32 [num_pages]: references of each page, 0 = free. A live, read-only view.")
      .def(
          "allocate",
          [](const T& self, const Int& num_pages) {
            return self.page_pool().allocate(to_int64(num_pages, "num_pages"));
          },
          "num_pages"_a,
          "Takes pages from the front of the free list, each with a count of 1.\n\n"
          "Raises InvalidArgumentError for a negative number, NoPageError when fewer are free.")
      .def(
          "ref",
          [](const T& self, const Ints& pages) {
            self.page_pool().ref(to_ints<PageId>(pages, "page_indices"));
          },
          "page_indices"_a,
          "Adds one reference for every listed page; a page listed twice counts twice.\n\n"
          "Raises InvalidArgumentError, having changed nothing, for a free or unknown page.")
      .def(
          "unref",
          [](const T& self, const Ints& pages) {
            self.page_pool().unref(to_ints<PageId>(pages, "page_indices"));
          },
          "page_indices"_a,
          "Drops one reference for every listed page; a page whose count falls to 0 is free.\n\n"
          "Raises InvalidArgumentError, having changed nothing, for a free or unknown page, or a "
          "count that would fall below 0.")
      .def(
          "release_pages",
          [](const T& self, const Ints& pages) {
            self.page_pool().release_pages(to_ints<PageId>(pages, "page_indices"));
          },
          "page_indices"_a, "The same as unref.");
}

}  // namespace seqattn::python
