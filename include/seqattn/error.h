#pragma once

#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <utility>

#include "seqattn/export.h"

namespace seqattn {

// Every exception of the library but OutOfMemoryError derives from Error. Its message says what was
// given, what was expected and, where there is a way out, the way out. A call that throws has
// changed nothing.
class SEQATTN_EXPORT Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
  ~Error() override;
};

// An argument is malformed: a shape, dtype, stride, device, layout, size, page id or table.
class SEQATTN_EXPORT InvalidArgumentError : public Error {
 public:
  using Error::Error;
  ~InvalidArgumentError() override;
};

// A call names a sequence that the descriptor does not hold.
class SEQATTN_EXPORT UnknownSequenceError : public Error {
 public:
  explicit UnknownSequenceError(std::int64_t seq_id);
  ~UnknownSequenceError() override;
  std::int64_t seq_id() const noexcept { return seq_id_; }

 private:
  std::int64_t seq_id_;
};

// The pool has fewer free pages than the call needs. Release or truncate sequences, then call
// again; `CacheDescriptor::try_allocate` reports the same as a value.
class SEQATTN_EXPORT NoPageError : public Error {
 public:
  // `has_reclaimer`: of the pool; the message says what may hold the other pages.
  NoPageError(std::int64_t needed, std::int64_t available, bool has_reclaimer = false);
  ~NoPageError() override;
  std::int64_t needed() const noexcept { return needed_; }
  std::int64_t available() const noexcept { return available_; }

 private:
  std::int64_t needed_;
  std::int64_t available_;
};

// A prefix cache is asked to drop pages that live handles pin. Release the handles, then call
// again.
class SEQATTN_EXPORT PinnedError : public Error {
 public:
  explicit PinnedError(std::int64_t num_handles);
  ~PinnedError() override;
  std::int64_t num_handles() const noexcept { return num_handles_; }

 private:
  std::int64_t num_handles_;
};

// The memory of a cache is not there; the message says how much it was and for what. Not an Error:
// who handles a lack of memory catches std::bad_alloc, and this with it.
class SEQATTN_EXPORT OutOfMemoryError : public std::bad_alloc {
 public:
  explicit OutOfMemoryError(std::string message)
      : message_(std::make_shared<const std::string>(std::move(message))) {}
  ~OutOfMemoryError() override;
  const char* what() const noexcept override { return message_->c_str(); }

 private:
  std::shared_ptr<const std::string> message_;  // so that copies cannot fail
};

// The request is well formed, but no backend of this build can serve it; the message names what
// can.
class SEQATTN_EXPORT UnsupportedError : public Error {
 public:
  using Error::Error;
  ~UnsupportedError() override;
};

// Bytes are not the whole saved state of a sequence: they are foreign, truncated, corrupted or of a
// newer version.
class SEQATTN_EXPORT SequenceStateError : public Error {
 public:
  using Error::Error;
  ~SequenceStateError() override;
};

// The system refused to open, read or write a file; the message holds the call, the path and the
// system's own words.
class SEQATTN_EXPORT FileError : public Error {
 public:
  FileError(const std::string& message, int code, std::string path = {})
      : Error(message), code_(code), path_(std::make_shared<const std::string>(std::move(path))) {}
  ~FileError() override;
  int code() const noexcept { return code_; }  // errno; 0 where the system had no say
  // The file that was asked for, also where a temporary one or its folder was refused; empty where
  // that is not known.
  const std::string& path() const noexcept { return *path_; }

 private:
  int code_;
  std::shared_ptr<const std::string> path_;  // so that copies cannot fail
};

// A device failed; the message holds the call and the device's own words.
class SEQATTN_EXPORT BackendError : public Error {
 public:
  using Error::Error;
  ~BackendError() override;
};

}  // namespace seqattn
