#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <string>
#include <vector>

#include "descriptor_state.h"
#include "error_text.h"
#include "random_source.h"
#include "saved_cache.h"
#include "seqattn/error.h"
#include "seqattn/sequence_state.h"
#include "temporary_folder.h"

// Saved sequences in files: what is there after a save, a save that failed, a restore that failed.
namespace seqattn {
namespace {

namespace fs = std::filesystem;
using ::seqattn::testing::error_of;
using ::seqattn::testing::SavedCache;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::string contents(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

class SequenceStateFile : public ::testing::Test {
 protected:
  SequenceStateFile() { cache_.add(random_, 1, 11); }

  std::vector<std::string> names() const {
    std::vector<std::string> all;
    for (const auto& entry : fs::directory_iterator(folder_)) {
      all.push_back(entry.path().filename().string());
    }
    std::sort(all.begin(), all.end());
    return all;
  }

  // The error of a save that leaves the folder as it is.
  std::string failed_save(const fs::path& path) {
    const auto before = names();
    std::string message = error_of<FileError>([&] { save_sequence(cache_.descriptor, 1, path); });
    EXPECT_EQ(names(), before);
    return message;
  }

  std::mt19937_64 random_ = testing::random_source(4201);
  SavedCache cache_{{.num_pages = 16,
                     .page_size = 4,
                     .num_heads = 2,
                     .head_dim = 8,
                     .num_layers = 2,
                     .dtype = DType::kBFloat16}};
  const testing::TemporaryFolder temporary_;
  const fs::path& folder_ = temporary_.path();
};

TEST_F(SequenceStateFile, HoldsTheBytesOfTheState) {
  const fs::path path = folder_ / "one.state";
  save_sequence(cache_.descriptor, 1, path);
  EXPECT_THAT(names(), ElementsAre("one.state"));
  EXPECT_EQ(contents(path), text(save_sequence(cache_.descriptor, 1)));
  const SequenceStateInfo info = restore_sequence(cache_.descriptor, 2, path);
  EXPECT_EQ(info, sequence_state_info(path));
  EXPECT_EQ(info.num_bytes, static_cast<std::int64_t>(fs::file_size(path)));
  EXPECT_EQ(info.length, 11);
  EXPECT_EQ(cache_.bits(2), cache_.bits(1));
}

TEST_F(SequenceStateFile, IsReplacedAsAWhole) {
  const fs::path path = folder_ / "one.state";
  cache_.add(random_, 2, 3);
  save_sequence(cache_.descriptor, 1, path);
  save_sequence(cache_.descriptor, 2, path);
  EXPECT_THAT(names(), ElementsAre("one.state"));
  EXPECT_EQ(contents(path), text(save_sequence(cache_.descriptor, 2)));
}

TEST_F(SequenceStateFile, StaysAsPrivateAsItWas) {
  const fs::path path = folder_ / "state";
  save_sequence(cache_.descriptor, 1, path);
  constexpr fs::perms kPrivate = fs::perms::owner_read | fs::perms::owner_write;
  fs::permissions(path, kPrivate);
  save_sequence(cache_.descriptor, 1, path);
  EXPECT_EQ(fs::status(path).permissions(), kPrivate);
}

TEST_F(SequenceStateFile, BehindALinkIsReplacedThere) {
  fs::create_directory(folder_ / "far");
  save_sequence(cache_.descriptor, 1, folder_ / "far" / "one.state");
  fs::create_symlink("far/one.state", folder_ / "link");
  cache_.add(random_, 2, 3);
  save_sequence(cache_.descriptor, 2, folder_ / "link");
  EXPECT_TRUE(fs::is_symlink(folder_ / "link"));
  EXPECT_EQ(contents(folder_ / "far" / "one.state"), text(save_sequence(cache_.descriptor, 2)));
}

TEST_F(SequenceStateFile, InTheWorkingFolderNeedsNoFolderInItsName) {
  const fs::path before = fs::current_path();
  fs::current_path(folder_);
  save_sequence(cache_.descriptor, 1, fs::path("plain"));
  restore_sequence(cache_.descriptor, 2, fs::path("plain"));
  fs::current_path(before);
  EXPECT_THAT(names(), ElementsAre("plain"));
}

// The disk is full, as far as this process can tell: the old file stays and nothing else.
TEST_F(SequenceStateFile, StaysAsItWasWhenTheDiskIsFull) {
  const fs::path path = folder_ / "one.state";
  std::ofstream(path) << "what was there";
  struct Full {
    Full() {
      getrlimit(RLIMIT_FSIZE, &before);
      rlimit small = before;
      small.rlim_cur = 300;
      handler = signal(SIGXFSZ, SIG_IGN);
      setrlimit(RLIMIT_FSIZE, &small);
    }
    ~Full() {
      setrlimit(RLIMIT_FSIZE, &before);
      signal(SIGXFSZ, handler);
    }
    rlimit before{};
    void (*handler)(int) = nullptr;
  };
  std::optional<Full> full(std::in_place);
  const std::string message = failed_save(path);
  full.reset();
  EXPECT_EQ(message, "write " + path.string() + ": File too large");
  EXPECT_THAT(names(), ElementsAre("one.state"));
  EXPECT_EQ(contents(path), "what was there");
}

// The process dies in the middle of the file.
TEST_F(SequenceStateFile, StaysAsItWasInACrash) {
  const fs::path path = folder_ / "one.state";
  std::ofstream(path) << "what was there";
  const pid_t child = ::fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    const rlimit small{.rlim_cur = 300, .rlim_max = 300};
    setrlimit(RLIMIT_FSIZE, &small);
    signal(SIGXFSZ, SIG_DFL);
    save_sequence(cache_.descriptor, 1, path);
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGXFSZ) << status;
  EXPECT_EQ(contents(path), "what was there");
  EXPECT_EQ(names().size(), 2u) << "the file, and a temporary one";
  save_sequence(cache_.descriptor, 1, path);  // which is in nobody's way
  EXPECT_EQ(contents(path), text(save_sequence(cache_.descriptor, 1)));
}

TEST_F(SequenceStateFile, StaysAsItWasWhenTheSaveIsRefused) {
  const fs::path path = folder_ / "one.state";
  std::ofstream(path) << "what was there";
  EXPECT_THROW(save_sequence(cache_.descriptor, 77, path), UnknownSequenceError);
  EXPECT_THAT(names(), ElementsAre("one.state"));
  EXPECT_EQ(contents(path), "what was there");
}

TEST_F(SequenceStateFile, CannotBeWhereNoFileCanBe) {
  EXPECT_THAT(failed_save(folder_ / "missing" / "one"), HasSubstr("No such file or directory"));
  std::ofstream(folder_ / "file") << "x";
  EXPECT_THAT(failed_save(folder_ / "file" / "one"), HasSubstr("Not a directory"));
  EXPECT_THAT(failed_save(folder_), HasSubstr("no regular file; expected one to replace"));
  EXPECT_THAT(failed_save("/dev/full"), HasSubstr("open /dev/full: no regular file"));
  fs::create_symlink("loop", folder_ / "loop");
  EXPECT_THAT(failed_save(folder_ / "loop"), HasSubstr("Too many levels of symbolic links"));
}

TEST_F(SequenceStateFile, CannotBeInAFolderThatCannotBeWritten) {
  if (::geteuid() == 0) {  // whom no permission stops; the kernel's own folder does
    EXPECT_THAT(failed_save("/proc/one"), HasSubstr("open /proc/"));
    return;
  }
  fs::permissions(folder_, fs::perms::owner_read | fs::perms::owner_exec);
  EXPECT_THAT(failed_save(folder_ / "one"), HasSubstr("Permission denied"));
  fs::permissions(folder_, fs::perms::owner_all);
}

TEST_F(SequenceStateFile, RestoreNamesTheFileThatItRefuses) {
  const fs::path path = folder_ / "one.state";
  const auto refusal = [&](const std::string& bytes) {
    std::ofstream(path, std::ios::binary) << bytes;
    const auto before = testing::state_of(cache_.descriptor);
    const std::string message =
        error_of<SequenceStateError>([&] { restore_sequence(cache_.descriptor, 9, path); });
    EXPECT_EQ(testing::state_of(cache_.descriptor), before);
    return message;
  };
  const std::string state = text(save_sequence(cache_.descriptor, 1));
  const std::string name = path.string() + ": ";
  EXPECT_THAT(refusal(""), ::testing::StartsWith(name + "is empty"));
  EXPECT_THAT(refusal("# a file of text"), ::testing::StartsWith(name + "does not begin"));
  EXPECT_THAT(refusal(state.substr(0, 200)), HasSubstr("truncated: ends after 200 bytes"));
  EXPECT_THAT(refusal(state + "x"), HasSubstr("goes on behind its"));
  std::string changed = state;
  changed[changed.size() / 2] ^= 4;
  EXPECT_THAT(refusal(changed), ::testing::StartsWith(name + "corrupted"));
}

TEST_F(SequenceStateFile, RestoreSaysWhyItCannotRead) {
  try {
    restore_sequence(cache_.descriptor, 9, folder_ / "missing");
    ADD_FAILURE() << "threw nothing";
  } catch (const FileError& error) {
    EXPECT_EQ(error.code(), ENOENT);
    EXPECT_EQ(error.what(),
              "open " + (folder_ / "missing").string() + ": No such file or directory");
  }
  EXPECT_THAT(error_of<FileError>([&] { restore_sequence(cache_.descriptor, 9, folder_); }),
              HasSubstr("no regular file"));
  EXPECT_THAT(error_of<FileError>([&] { sequence_state_info(folder_ / "missing"); }),
              HasSubstr("No such file"));
  EXPECT_EQ(cache_.descriptor.num_sequences(), 1);
}

}  // namespace
}  // namespace seqattn
