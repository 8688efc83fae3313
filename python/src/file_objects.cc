#include "file_objects.h"

#include <algorithm>
#include <cstdint>

#include "arguments.h"

namespace seqattn::python {

bool is_file_object(nb::handle object, const char* method) {
  return !PyObject_CheckBuffer(object.ptr()) && !PyUnicode_Check(object.ptr()) &&
         !nb::hasattr(object, "__fspath__") && nb::hasattr(object, method);
}

FileObjectSink::FileObjectSink(nb::handle file, CallableReclaimer& guard)
    : write_(file.attr("write")),
      is_raw_(nb::isinstance(file, nb::module_::import_("io").attr("RawIOBase"))),
      guard_(guard) {}

// In bytes objects of their own, which the file may keep.
void FileObjectSink::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const nb::object answer = guard_.call_file(write_, nb::bytes(bytes.data(), bytes.size()));
    if (answer.is_none() && !is_raw_) return;
    const std::int64_t count = answer.is_none() ? 0 : to_int64(answer, "the answer of path.write");
    require(count > 0 && count <= static_cast<std::int64_t>(bytes.size()), "path.write: took ",
            count, " of ", bytes.size(),
            " bytes; expected a file that takes some: one that blocks");
    bytes = bytes.subspan(static_cast<std::size_t>(count));
  }
}

std::size_t FileObjectSource::read(std::span<std::byte> bytes) {
  std::size_t count = 0;
  while (count < bytes.size()) {
    const std::size_t part = read_some(bytes.subspan(count));
    if (part == 0) break;
    count += part;
  }
  return count;
}

std::size_t FileObjectSource::read_some(std::span<std::byte> bytes) {
  const nb::object answer = guard_.call_file(read_, bytes.size());
  if (!nb::isinstance<nb::bytes>(answer)) {
    throw_type_error(concat("state.read: got ", class_name(answer),
                            "; expected bytes, as of a file that is binary and blocks"));
  }
  const nb::bytes part = nb::borrow<nb::bytes>(answer);
  require(part.size() <= bytes.size(), "state.read: got ", part.size(), " bytes; expected at most ",
          bytes.size(), ", as asked for");
  std::copy_n(static_cast<const std::byte*>(part.data()), part.size(), bytes.begin());
  return part.size();
}

}  // namespace seqattn::python
