#include "bind_pool.h"

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
          [](const FreePages& self, const Int& page) {
            const std::int64_t id = to_int64(page, "page");
            return id >= 0 && id < self.pool->num_pages() &&
                   self.pool->ref_count(static_cast<PageId>(id)) == 0;
          },
          "page"_a)
      .def(
          "__getitem__",
          [](const FreePages& self, const Int& index) {
            const std::vector<PageId> pages = self.pool->free_pages();
            const auto size = static_cast<std::int64_t>(pages.size());
            std::int64_t i = to_int64(index, "index");
            if (i < 0) i += size;
            if (i < 0 || i >= size) throw nb::index_error("index out of range");
            return pages[static_cast<std::size_t>(i)];
          },
          "index"_a)
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
      m, "PagePool",
      "The free list and the reference counts of a fixed set of pages, without storage.\n\n"
      "Pages are handed out first in, first out, from page 0. Raises InvalidArgumentError unless "
      "0 <= num_pages < 2**31 and page_size >= 1.");
  cls.def(
      "__init__",
      [](Pool* self, const Int& num_pages, const Int& page_size) {
        new (self) Pool{std::make_unique<PagePool>(to_int64(num_pages, "num_pages"),
                                                   to_int(page_size, "page_size"))};
      },
      "num_pages"_a, "page_size"_a = 16);
  bind_pool_members(cls);
  cls.def(
         "check_invariants", [](const Pool& self) { self.pool->check_invariants(); },
         "Raises Error naming the first violated invariant.")
      .def("__repr__", [](const Pool& self) {
        return concat("PagePool(num_pages=", self.pool->num_pages(),
                      ", page_size=", self.pool->page_size(),
                      ", available=", self.pool->available_pages_count(), ")");
      });
}

}  // namespace seqattn::python
