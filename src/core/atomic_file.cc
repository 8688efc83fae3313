#include "atomic_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <random>
#include <string>
#include <system_error>

#include "message.h"
#include "seqattn/error.h"

namespace seqattn {
namespace {

namespace fs = std::filesystem;

std::string name_of(const fs::path& path) { return path.empty() ? "\"\"" : path.string(); }

[[noreturn]] void fail(const char* call, const fs::path& path, int code) {
  throw FileError(concat(call, " ", name_of(path), ": ", std::generic_category().message(code)),
                  code, path.string());
}
// What the system would take, and we do not.
[[noreturn]] void refuse(const fs::path& path, const char* what) {
  throw FileError(concat("open ", name_of(path), ": ", what), 0, path.string());
}

// Repeats a call that a signal interrupts; throws FileError where it fails.
template <class Call>
auto checked(const char* name, const fs::path& path, const Call& call) {
  for (;;) {
    const auto result = call();
    if (result >= 0) return result;
    if (errno != EINTR) fail(name, path, errno);
  }
}

fs::path folder_of(const fs::path& path) {
  return path.has_parent_path() ? path.parent_path() : fs::path(".");
}

// The file that is to be replaced or made: where links lead, for links.
fs::path target_of(const fs::path& path) {
  if (!path.has_filename()) {
    refuse(path, "names no file; expected the path of one (without a path the state is bytes)");
  }
  std::error_code error;
  const fs::file_status status = fs::status(path, error);
  if (status.type() == fs::file_type::none) fail("open", path, error.value());
  if (fs::exists(status) && !fs::is_regular_file(status)) {
    refuse(path, "no regular file; expected one to replace, or a name that is free");
  }
  fs::path target = path;
  while (fs::is_symlink(fs::symlink_status(target, error))) {  // of an end: that is known by now
    target = folder_of(target) / fs::read_symlink(target, error);
    if (error) fail("open", path, error.value());
  }
  return target;
}

// Random, so that what a crash left behind is in nobody's way.
fs::path temporary_beside(const fs::path& path) {
  std::random_device random;
  return folder_of(path) /
         (".seqattn-" + std::to_string(random()) + "-" + std::to_string(random()) + ".tmp");
}

}  // namespace

FileDescriptor::FileDescriptor(const fs::path& path, int flags, const fs::path& asked)
    : fd_(checked("open", asked, [&] { return ::open(path.c_str(), flags | O_CLOEXEC, 0666); })) {}

FileDescriptor::~FileDescriptor() {
  if (fd_ >= 0) ::close(fd_);
}

void FileDescriptor::take_permissions_of(const fs::path& path, const fs::path& asked) const {
  struct stat other = {};
  if (::stat(path.c_str(), &other) != 0) {
    if (errno == ENOENT) return;
    fail("stat", asked, errno);
  }
  checked("fchmod", asked, [&] { return ::fchmod(fd_, other.st_mode & 07777); });
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
    : asked_(path),
      target_(target_of(path)),
      temporary_(temporary_beside(target_)),
      file_(temporary_, O_WRONLY | O_CREAT | O_EXCL, asked_) {
  try {
    file_.take_permissions_of(target_, asked_);
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
        checked("write", asked_, [&] { return ::write(file_.get(), bytes.data(), bytes.size()); });
    bytes = bytes.subspan(static_cast<std::size_t>(written));
  }
}

void AtomicFile::commit() {
  file_.sync(asked_);
  file_.close(asked_);
  // Before the name changes, so that nothing fails behind it but the disk.
  const fs::path folder = folder_of(target_);
  const FileDescriptor directory(folder, O_RDONLY | O_DIRECTORY, asked_);
  checked("rename", asked_, [&] { return ::rename(temporary_.c_str(), target_.c_str()); });
  is_committed_ = true;
  try {
    directory.sync(folder);
  } catch (const FileError& error) {
    if (error.code() == EINVAL) return;  // a file system that knows no such thing
    throw FileError(concat(error.what(), ": ", asked_.string(),
                           " is the new file, but a crash may"
                           " bring the old one back"),
                    error.code(), asked_.string());
  }
}

// Without waiting: a pipe would have it wait for who writes to it.
FileSource::FileSource(const fs::path& path)
    : path_(path), file_(std::make_shared<const FileDescriptor>(path, O_RDONLY | O_NONBLOCK)) {
  struct stat status = {};
  checked("fstat", path, [&] { return ::fstat(file_->get(), &status); });
  if (!S_ISREG(status.st_mode)) {
    refuse(path,
           "no regular file; expected one that save_sequence wrote: the bytes of a pipe or a "
           "device are restored from memory");
  }
}

std::size_t FileSource::read(std::span<std::byte> bytes) {
  std::size_t count = 0;
  while (count < bytes.size()) {
    const auto part = checked("read", path_, [&] {
      return ::pread(file_->get(), &bytes[count], bytes.size() - count, offset_);
    });
    if (part == 0) break;
    count += static_cast<std::size_t>(part);
    offset_ += part;
  }
  return count;
}

}  // namespace seqattn
