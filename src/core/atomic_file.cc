#include "atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <random>
#include <string>
#include <system_error>

#include "message.h"
#include "seqattn/error.h"

namespace seqattn {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail(const char* call, const fs::path& path, int code, const fs::path& asked) {
  throw FileError(concat(call, " ", path.string(), ": ", std::generic_category().message(code)),
                  code, asked.string());
}
[[noreturn]] void fail(const char* call, const fs::path& path, int code) {
  fail(call, path, code, path);
}

// Repeats a call that a signal interrupts; throws FileError where it fails.
template <class Call>
auto checked(const char* name, const fs::path& path, const fs::path& asked, const Call& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) fail(name, path, errno, asked);
  }
}
template <class Call>
auto checked(const char* name, const fs::path& path, const Call& call) {
  return checked(name, path, path, call);
}

// The file that is to be replaced: where a link points, for a link to one.
fs::path target_of(const fs::path& path) {
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::not_found) return path;
  if (status.type() == fs::file_type::none) fail("open", path, error.value());
  if (!fs::is_regular_file(status)) {
    throw FileError(concat("open ", path.string(),
                           ": no regular file; expected one to replace, or a name that is free"),
                    0, path.string());
  }
  fs::path target = fs::canonical(path, error);
  if (error) fail("open", path, error.value());
  return target;
}

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// Random, so that what a crash left behind is in nobody's way.
fs::path temporary_beside(const fs::path& path) {
  std::random_device random;
  return folder_of(path) /
         (".seqattn-" + std::to_string(random()) + "-" + std::to_string(random()) + ".tmp");
}

}  // namespace

FileDescriptor::FileDescriptor(const fs::path& path, int flags, const fs::path& asked)
    : fd_(checked("open", path, asked,
                  [&] { return ::open(path.c_str(), flags | O_CLOEXEC, 0666); })) {}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

void FileDescriptor::take_permissions_of(const fs::path& path) const {
  struct stat other = {};
  if (::stat(path.c_str(), &other) != 0) {
    if (errno == ENOENT) return;
    fail("stat", path, errno);
  }
  checked("fchmod", path, [&] { return ::fchmod(fd_, other.st_mode & 07777); });
}

void FileDescriptor::sync(const fs::path& path) const {
  checked("fsync", path, [this] { return ::fsync(fd_); });
}

void FileDescriptor::close(const fs::path& path) {
  const int fd = fd_;
  fd_ = -1;
  // Interrupted or not, it is closed: Linux says so.
  if (::close(fd) != 0 && errno != EINTR) fail("close", path, errno);
}

AtomicFile::AtomicFile(const fs::path& path)
    : target_(target_of(path)),
      temporary_(temporary_beside(target_)),
      file_(temporary_, O_WRONLY | O_CREAT | O_EXCL, target_) {
  try {
    file_.take_permissions_of(target_);
  } catch (...) {
    ::unlink(temporary_.c_str());
    throw;
  }
}

AtomicFile::~AtomicFile() {
  if (!is_committed_) ::unlink(temporary_.c_str());
}

void AtomicFile::write(std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const auto written =
        checked("write", target_, [&] { return ::write(file_.get(), bytes.data(), bytes.size()); });
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::commit() {
  file_.sync(target_);
  file_.close(target_);
  // Before the name changes, so that nothing fails behind it but the disk.
  const fs::path folder = folder_of(target_);
  const FileDescriptor directory(folder, O_RDONLY | O_DIRECTORY, target_);
  checked("rename", target_, [&] { return ::rename(temporary_.c_str(), target_.c_str()); });
  is_committed_ = true;
  try {
    directory.sync(folder);
  } catch (const FileError& error) {
    if (error.code() == EINVAL) return;  // a file system that knows no such thing
    throw FileError(concat(error.what(), ": ", target_.string(),
                           " is the new file, but a crash may"
                           " bring the old one back"),
                    error.code(), target_.string());
  }
}

FileSource::FileSource(const fs::path& path) : path_(path), file_(path, O_RDONLY) {}

std::size_t FileSource::read(std::span<std::byte> bytes) {
  std::size_t count = 0;
  while (count < bytes.size()) {
    const auto part = checked(
        "read", path_, [&] { return ::read(file_.get(), &bytes[count], bytes.size() - count); });
    if (part == 0) break;
    count += static_cast<std::size_t>(part);
  }
  return count;
}

}  // namespace seqattn
