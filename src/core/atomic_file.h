#pragma once

#include <sys/types.h>

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "seqattn/sequence_state.h"

namespace seqattn {

// An open file. Throws FileError, of the file that was asked for where this is another one.
class FileDescriptor {
 public:
  FileDescriptor(const std::filesystem::path& path, int flags)
      : FileDescriptor(path, flags, path) {}
  FileDescriptor(const std::filesystem::path& path, int flags, const std::filesystem::path& asked);
  ~FileDescriptor();
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;

  int get() const noexcept { return fd_; }
  void sync(const std::filesystem::path& path) const;
  // Gives the file the permissions of another, where there is one.
  void take_permissions_of(const std::filesystem::path& path,
                           const std::filesystem::path& asked) const;
  void close(const std::filesystem::path& path);  // a file system may report lost writes here

 private:
  int fd_;
};

// A file that is replaced as a whole: written under a temporary name in the same folder, which
// `commit` brings to the disk and renames. Without `commit` the old file stays, and the temporary
// one goes.
class AtomicFile final : public ByteSink {
 public:
  // Throws FileError, also where the path names no file or something else than a regular one.
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile() override;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes) override;
  void commit();

 private:
  std::filesystem::path asked_;  // for messages
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  FileDescriptor file_;
  bool is_committed_ = false;
};

// A regular file, read from its beginning; throws FileError for what is none.
class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::filesystem::path& path);
  // The same open file from its beginning again, whatever the path names by now.
  FileSource again() const { return {path_, file_}; }
  std::size_t read(std::span<std::byte> bytes) override;
  std::string name() const override { return path_.string(); }

 private:
  FileSource(std::filesystem::path path, std::shared_ptr<const FileDescriptor> file)
      : path_(std::move(path)), file_(std::move(file)) {}

  std::filesystem::path path_;
  std::shared_ptr<const FileDescriptor> file_;
  off_t offset_ = 0;
};

}  // namespace seqattn
