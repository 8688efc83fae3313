#pragma once

#include <nanobind/nanobind.h>

#include <cstddef>
#include <span>
#include <string>

#include "reclaimer.h"
#include "seqattn/sequence_state.h"

// Python's file objects as what states are written to and read from. Their code runs in the middle
// of a call, so that descriptors of the pool refuse calls meanwhile.
namespace seqattn::python {

// Whether it has that method, and is neither a path nor bytes.
bool is_file_object(nb::handle object, const char* method);

class FileObjectSink final : public ByteSink {
 public:
  FileObjectSink(nb::handle file, CallableReclaimer& guard);
  void write(std::span<const std::byte> bytes) override;

 private:
  nb::object write_;
  bool is_raw_;  // says None for nothing written, where others mean everything
  CallableReclaimer& guard_;
};

class FileObjectSource final : public ByteSource {
 public:
  FileObjectSource(nb::handle file, CallableReclaimer& guard)
      : read_(file.attr("read")), guard_(guard) {}
  std::size_t read(std::span<std::byte> bytes) override;

 private:
  std::size_t read_some(std::span<std::byte> bytes);

  nb::object read_;
  CallableReclaimer& guard_;
};

}  // namespace seqattn::python
