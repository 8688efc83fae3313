#include "seqattn/sequence_state.h"

#include <algorithm>
#include <filesystem>
#include <span>
#include <string>

#include "arguments.h"
#include "classes.h"
#include "file_objects.h"
#include "plain_types.h"

namespace seqattn::python {
namespace {

using namespace nb::literals;

const Descriptor& to_descriptor(nb::handle object) {
  const Descriptor* descriptor = nullptr;
  if (!nb::try_cast(object, descriptor, false) || descriptor == nullptr) {
    throw_type_error(
        concat("descriptor: got ", class_name(object), "; expected a CacheDescriptor"));
  }
  return *descriptor;
}

// A str or an os.PathLike.
std::filesystem::path to_path(nb::handle object, const char* name, const char* expected) {
  PyObject* encoded = nullptr;
  if (PyBytes_Check(object.ptr()) || PyUnicode_FSConverter(object.ptr(), &encoded) == 0) {
    if (PyErr_Occurred() != nullptr && !PyErr_ExceptionMatches(PyExc_TypeError)) {
      nb::raise_python_error();  // a null character, or what __fspath__ raises
    }
    PyErr_Clear();
    throw_type_error(concat(name, ": got ", class_name(object), "; expected ", expected));
  }
  const nb::object bytes = nb::steal(encoded);
  return std::string(PyBytes_AS_STRING(encoded),
                     static_cast<std::size_t>(PyBytes_GET_SIZE(encoded)));
}

// A saved state in memory, borrowed, or the path of its file.
class StateArgument {
 public:
  StateArgument(nb::handle state, const char* expected)
      : is_path_(!PyObject_CheckBuffer(state.ptr())) {
    if (is_path_) {
      path_ = to_path(state, "state", expected);
    } else if (PyObject_GetBuffer(state.ptr(), &buffer_, PyBUF_SIMPLE) != 0) {
      PyErr_Clear();
      throw InvalidArgumentError(concat("state: got ", class_name(state),
                                        " whose memory has gaps; expected contiguous bytes"));
    }
  }
  ~StateArgument() {
    if (!is_path_) PyBuffer_Release(&buffer_);
  }
  StateArgument(const StateArgument&) = delete;
  StateArgument& operator=(const StateArgument&) = delete;

  template <class Call>
  SequenceStateInfo with(const Call& call) const {
    if (is_path_) return call(path_);
    return call(std::span(static_cast<const std::byte*>(buffer_.buf),
                          static_cast<std::size_t>(buffer_.len)));
  }

 private:
  bool is_path_;
  std::filesystem::path path_;
  Py_buffer buffer_{};
};

// Memory of a bytes object that nobody has seen yet.
class BytesSink final : public ByteSink {
 public:
  explicit BytesSink(char* to) : to_(reinterpret_cast<std::byte*>(to)) {}
  void write(std::span<const std::byte> bytes) override {
    to_ = std::copy(bytes.begin(), bytes.end(), to_);
  }

 private:
  std::byte* to_;
};

nb::object from_info(const SequenceStateInfo& info) {
  return type_of("SequenceStateInfo")(
      info.length, info.num_kv_tokens, from_window(info.window), info.dropped_to, info.num_dropped,
      info.num_in_front, info.compacted_to, info.num_layers, info.num_heads, info.head_dim,
      info.head_dim_v, std::string(to_string(info.dtype)).c_str(), info.num_bytes);
}

nb::bytes save(const Any& descriptor, const Int& seq_id) {
  const Descriptor& self = to_descriptor(descriptor);
  const SeqId id = to_seq_id(seq_id);
  const std::int64_t num_bytes = sequence_state_info(self.sequences(), id).num_bytes;
  auto bytes = nb::steal<nb::bytes>(PyBytes_FromStringAndSize(nullptr, num_bytes));
  if (!bytes.is_valid()) nb::raise_python_error();
  BytesSink sink(PyBytes_AS_STRING(bytes.ptr()));
  save_sequence(self.sequences(), id, sink, self.stream());
  return bytes;
}

void save_file(const Any& descriptor, const Int& seq_id, const Any& path) {
  const Descriptor& self = to_descriptor(descriptor);
  const SeqId id = to_seq_id(seq_id);
  if (is_file_object(path, "write")) {
    FileObjectSink sink(path, *self.reclaimer);
    save_sequence(self.sequences(), id, sink, self.stream());
    return;
  }
  const auto file = to_path(path, "path", "a str, an os.PathLike or a binary file");
  save_sequence(self.sequences(), id, file, self.stream());
}

nb::object restore(const Any& descriptor, const Int& seq_id, const Any& state) {
  const Descriptor& self = to_descriptor(descriptor);
  const SeqId id = to_seq_id(seq_id);
  const Stream stream = self.stream();
  if (is_file_object(state, "read")) {
    FileObjectSource source(state, *self.reclaimer);
    return from_info(restore_sequence(self.sequences(), id, source, stream));
  }
  return from_info(
      StateArgument(state, "bytes, a path or a binary file").with([&](const auto& from) {
        return restore_sequence(self.sequences(), id, from, stream);
      }));
}

nb::object info_of(const Any& state) {
  return from_info(StateArgument(state, "bytes or a path").with([](const auto& from) {
    return sequence_state_info(from);
  }));
}

}  // namespace

void bind_sequence_state(nb::module_& m) {
  m.def("save_sequence", &save, "descriptor"_a.none(), "seq_id"_a.none(),
        nb::sig("def save_sequence(descriptor: CacheDescriptor, seq_id: typing.SupportsIndex) -> "
                "bytes"),
        "The state of a sequence, tokens and lengths, as bytes.\n\n"
        "They do not depend on page size, layout or device. Raises UnknownSequenceError, "
        "InvalidArgumentError for a descriptor over a bare pool.");
  m.def(
      "save_sequence", &save_file, "descriptor"_a.none(), "seq_id"_a.none(), "path"_a.none(),
      nb::sig("def save_sequence(descriptor: CacheDescriptor, seq_id: typing.SupportsIndex, path: "
              "str | os.PathLike[str] | seqattn._types.BinaryWriter) -> None"),
      "The same into a file.\n\n"
      "The file of a path is replaced as a whole: written under a temporary name in the same "
      "folder, brought to the disk and renamed. A call that raises leaves the old file, a crash "
      "the old one or the new one. (Where the folder cannot be synced, the last step, the error "
      "says that the new file is there, but a crash may bring the old one back.) A binary file "
      "object, or what else has write, gets the bytes in parts of about 4 MiB; what it raises "
      "comes out, with the first parts written. Raises FileError (an OSError) too.");
  m.def(
      "restore_sequence", &restore, "descriptor"_a.none(), "seq_id"_a.none(), "state"_a.none(),
      nb::sig("def restore_sequence(descriptor: CacheDescriptor, seq_id: typing.SupportsIndex, "
              "state: bytes | bytearray | memoryview | str | os.PathLike[str] | "
              "seqattn._types.BinaryReader) -> seqattn._types.SequenceStateInfo"),
      "Starts a sequence from what save_sequence made: bytes (or another buffer), the path of a "
      "regular file, or a binary file object.\n\n"
      "A file object, or what else has read, is read to the state's last byte and no further. "
      "When the call raises nothing has changed, but for pages that a prefix cache or another "
      "reclaimer gave up for it: those stay free. Bytes and files of a path are checked before "
      "it is asked, a file object is checked as it comes. "
      "The cache may have another page size, layout, dtype and device; with its own dtype the "
      "tokens are the same bits (of float8_e4m3fn where its kv_scaling is \"per_token\", or "
      "\"fixed\" with the same scales), else they are rounded by way of float32, to nearest even; "
      "float16 overflows to infinity, float8_e4m3fn saturates at 448 times a fixed scale. Raises "
      "InvalidArgumentError for a sequence that exists or "
      "another number of layers or heads, or another head dimension; SequenceStateError for what "
      "is no state, truncated or corrupted; NoPageError; FileError (an OSError).");
  m.def("sequence_state_info", &info_of, "state"_a.none(),
        nb::sig("def sequence_state_info(state: bytes | bytearray | memoryview | str | "
                "os.PathLike[str]) -> seqattn._types.SequenceStateInfo"),
        "What the header of a saved state says; the tokens are not looked at.");
  m.def(
      "sequence_state_info",
      [](const Any& descriptor, const Int& seq_id) {
        const Descriptor& self = to_descriptor(descriptor);
        return from_info(sequence_state_info(self.sequences(), to_seq_id(seq_id)));
      },
      "descriptor"_a.none(), "seq_id"_a.none(),
      nb::sig("def sequence_state_info(descriptor: CacheDescriptor, seq_id: typing.SupportsIndex) "
              "-> seqattn._types.SequenceStateInfo"),
      "What save_sequence would write.");
}

}  // namespace seqattn::python
