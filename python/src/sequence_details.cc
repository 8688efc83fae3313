#include "sequence_details.h"

#include <nanobind/stl/vector.h>

#include "plain_types.h"

namespace seqattn::python {

nb::object from_sequence_data(const SequenceData& data) {
  return type_of("SequenceDetails")(data.kv_page_indices, data.last_page_len, data.length,
                                    from_window(data.window), data.dropped_to, data.num_dropped,
                                    data.num_in_front, data.compacted_to, data.tree_parents);
}

SequenceData to_sequence_data(nb::handle details) {
  if (!nb::isinstance(details, type_of("SequenceDetails"))) {
    throw_type_error(
        concat("details: got ", class_name(details), "; expected a seqattn.SequenceDetails"));
  }
  const auto number = [&](const char* name) { return to_int64(details.attr(name), name); };
  const nb::object window = details.attr("window");
  return {.kv_page_indices = to_ints<PageId>(details.attr("kv_page_indices"), "kv_page_indices"),
          .last_page_len = to_int(details.attr("last_page_len"), "last_page_len"),
          .length = number("length"),
          .window = {to_int64(window.attr("window"), "window"),
                     to_int64(window.attr("num_sink_tokens"), "num_sink_tokens")},
          .dropped_to = number("dropped_to"),
          .num_dropped = number("num_dropped"),
          .num_in_front = number("num_in_front"),
          .compacted_to = number("compacted_to"),
          .tree_parents = to_ints<std::int32_t>(details.attr("tree_parents"), "tree_parents")};
}

}  // namespace seqattn::python
