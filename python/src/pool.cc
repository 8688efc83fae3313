#include <optional>

#include "bind_pool.h"
#include "collector.h"

namespace seqattn::python {
namespace {

nb::list free_list(const FreePages& self) {
  nb::list pages;
  for (const PageId page : self.pool->free_pages()) pages.append(page);
  return pages;
}

void bind_free_pages(nb::module_& m) {
  using namespace nb::literals;
  nb::class_<FreePages>(m, "FreePages",
                        "The free pages of a pool, front first: a live, read-only sequence.")
      .def("__len__", [](const FreePages& self) { return self.pool->available_pages_count(); })
      .def(
          "__contains__",
          [](const FreePages& self, const Any& page) {
            const std::optional<std::int64_t> id = as_int64(page);
            return id && *id >= 0 && *id < self.pool->num_pages() &&
                   self.pool->ref_count(static_cast<PageId>(*id)) == 0;
          },
          "page"_a.none(), nb::sig("def __contains__(self, page: object) -> bool"))
      .def(
          "__getitem__",
          [](const FreePages& self, const Any& index) -> nb::object {
            if (nb::isinstance<nb::slice>(index)) {
              return nb::steal(PyObject_GetItem(free_list(self).ptr(), index.ptr()));
            }
            const std::vector<PageId> pages = self.pool->free_pages();
            const auto size = static_cast<std::int64_t>(pages.size());
            std::int64_t i = to_int64(index, "index");
            if (i < 0) i += size;
            if (i < 0 || i >= size) throw nb::index_error("index out of range");
            return nb::cast(pages[static_cast<std::size_t>(i)]);
          },
          "index"_a.none(),
          nb::sig("def __getitem__(self, index: typing.SupportsIndex | slice) -> typing.Any"),
          "A page, or the list of the pages of a slice.")
      .def(
          "__eq__",
          [](const FreePages& self, const Any& other) {
            if (nb::isinstance<FreePages>(other)) {
              return free_list(self).equal(free_list(nb::cast<const FreePages&>(other)));
            }
            const bool is_list = nb::isinstance<nb::list>(other);
            return is_list && free_list(self).equal(other);
          },
          nb::arg().none(), nb::sig("def __eq__(self, other: object, /) -> bool"),
          "Whether a list, or what is free in another pool, holds the same pages in this order.")
      .def(
          "__iter__", [](const FreePages& self) { return nb::iter(free_list(self)); },
          nb::sig("def __iter__(self) -> collections.abc.Iterator[int]"))
      .def(
          "index",
          [](const FreePages& self, const Int& page) {
            return nb::cast<std::int64_t>(free_list(self).attr("index")(page));
          },
          "page"_a, "The position of a page. Raises ValueError for one that is not free.")
      .def("__repr__", [](const FreePages& self) {
        return concat("FreePages(", nb::cast<std::string>(nb::repr(free_list(self))), ")");
      });
}

}  // namespace

void bind_pool(nb::module_& m) {
  using namespace nb::literals;
  bind_free_pages(m);
  nb::class_<Pool> cls(
      m, "PagePool", nb::type_slots(traverse_and_clear_slots<Pool>),
      "The free list and the reference counts of a fixed set of pages, without storage.\n\n"
      "Pages are handed out first in, first out, from page 0. Raises InvalidArgumentError unless "
      "0 <= num_pages < 2**31 and page_size >= 1.");
  cls.def(
      "__init__",
      [](Pool* self, const Int& num_pages, const Int& page_size) {
        auto pool = std::make_unique<PagePool>(to_int64(num_pages, "num_pages"),
                                               to_int(page_size, "page_size"));
        PagePool* const pointer = pool.get();
        new (self) Pool{{}, std::make_unique<CallableReclaimer>(), std::move(pool), pointer};
      },
      "num_pages"_a.none(), "page_size"_a.none() = 16,
      nb::sig("def __init__(self, num_pages: typing.SupportsIndex, page_size: typing.SupportsIndex "
              "= 16) -> None"));
  bind_pool_members(cls);
  cls.def_prop_ro(
         "id", [](const Pool& self) { return self.pool->id(); },
         "A number that no other pool of this process has; FlashInferPackedData.pool_id is it.")
      .def("__repr__", [](const Pool& self) { return self.pool->to_string(); });
}

}  // namespace seqattn::python
