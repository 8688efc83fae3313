#include "initial_sequences.h"

#include <nanobind/stl/string.h>

#include <algorithm>
#include <unordered_map>
#include <vector>

namespace seqattn::python {
namespace {

nb::dict to_dict(nb::handle mapping) {
  nb::object dict =
      nb::steal(PyObject_CallOneArg(reinterpret_cast<PyObject*>(&PyDict_Type), mapping.ptr()));
  if (!dict.is_valid()) {
    const bool is_none =
        PyErr_ExceptionMatches(PyExc_TypeError) || PyErr_ExceptionMatches(PyExc_ValueError);
    if (!is_none) nb::raise_python_error();
    PyErr_Clear();
    throw_type_error(concat("seq_id_to_data: got ", class_name(mapping),
                            "; expected a mapping from id to SequenceData"));
  }
  return nb::borrow<nb::dict>(dict);
}

nb::object field(nb::handle data, const char* name, const std::string& where) {
  nb::object value = nb::getattr(data, name, nb::handle());
  if (!value.is_valid()) {
    throw_type_error(concat(where, ": got ", class_name(data), "; expected a SequenceData"));
  }
  return value;
}

// Starts the sequence with references of its own, and lists its pages.
void attach(CacheDescriptor& descriptor, nb::handle id, nb::handle data,
            std::vector<PageId>& pages) {
  const std::string where = concat("seq_id_to_data[", nb::cast<std::string>(nb::repr(id)), "]");
  const auto table = to_ints<PageId>(field(data, "kv_page_indices", where), "kv_page_indices");
  const int last_page_len = to_int(field(data, "last_page_len", where), "last_page_len");
  const auto full_pages = std::max<std::int64_t>(static_cast<std::int64_t>(table.size()) - 1, 0);
  descriptor.attach(to_seq_id(id), table,
                    full_pages * descriptor.pool().page_size() + last_page_len);
  pages.insert(pages.end(), table.begin(), table.end());
}

}  // namespace

void adopt_all(CacheDescriptor& descriptor, nb::handle mapping) {
  const nb::dict sequences = to_dict(mapping);
  std::vector<PageId> pages;
  try {
    for (const auto [id, data] : sequences) attach(descriptor, id, data, pages);
    // Each page now has the descriptor's references and, if there were enough, as many again.
    std::unordered_map<PageId, std::int64_t> holders;
    for (const PageId page : pages) ++holders[page];
    for (const auto& [page, num_holders] : holders) {
      const std::int64_t count = descriptor.pool().ref_count(page) - num_holders;
      const bool is_cached = descriptor.pool().is_cached(page);
      const std::int64_t needed = num_holders + (is_cached ? 1 : 0);
      require(count >= needed, "seq_id_to_data: page ", page, " has ", count, " references for ",
              needed, " holders", is_cached ? ", a prefix cache among them" : "",
              "; expected one for each: call ref first, or attach");
    }
    descriptor.pool().unref(pages);
  } catch (...) {
    descriptor.clear();
    throw;
  }
}

}  // namespace seqattn::python
