#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>

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
  void take_permissions_of(const std::filesystem::path& path) const;
  void close(const std::filesystem::path& path);  // a file system may report lost writes here

 private:
  int fd_;
};

// A file that is replaced as a whole: written under a temporary name in the same folder, which
// `commit` brings to the disk and renames. Without `commit` the old file stays, and the temporary
// one goes.
class AtomicFile final : public ByteSink {
 public:
  // Throws FileError, also where the path is something else than a regular file.
  explicit AtomicFile(const std::filesystem::path& path);
  ~AtomicFile() override;
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;

  void write(std::span<const std::byte> bytes) override;
  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path temporary_;
  FileDescriptor file_;
  bool is_committed_ = false;
};

class FileSource final : public ByteSource {
 public:
  explicit FileSource(const std::filesystem::path& path);
  std::size_t read(std::span<std::byte> bytes) override;
  std::string name() const override { return path_.string(); }

 private:
  std::filesystem::path path_;
  FileDescriptor file_;
};

}  // namespace seqattn
