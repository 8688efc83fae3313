#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <span>
#include <string>
#include <vector>

#include "atomic_file.h"
#include "error_text.h"
#include "random_source.h"
#include "saved_cache.h"
#include "seqattn/error.h"
#include "seqattn/sequence_state.h"
#include "temporary_folder.h"

// Saved sequences and paths that are no plain files: pipes, links, names of nothing.
namespace seqattn {
namespace {

namespace fs = std::filesystem;
using ::seqattn::testing::error_of;
using ::seqattn::testing::SavedCache;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

class SequenceStatePath : public ::testing::Test {
 protected:
  SequenceStatePath() {
    cache_.add(random_, 1, 11);
    before_ = fs::current_path();
    fs::current_path(folder_.path());
  }
  ~SequenceStatePath() override { fs::current_path(before_); }

  static std::vector<std::string> names() {
    std::vector<std::string> all;
    for (const auto& entry : fs::directory_iterator(".")) all.push_back(entry.path().filename());
    std::sort(all.begin(), all.end());
    return all;
  }
  std::string failed_save(const fs::path& path) {
    return error_of<FileError>([&] { save_sequence(cache_.descriptor, 1, path); });
  }

  std::mt19937_64 random_ = testing::random_source(4203);
  SavedCache cache_{{.num_pages = 6, .page_size = 4, .num_heads = 1, .head_dim = 8}};
  const testing::TemporaryFolder folder_;
  fs::path before_;
};

// Nobody writes to it: an open that waits would wait for ever.
TEST_F(SequenceStatePath, OfAPipeIsRefusedAtOnce) {
  ASSERT_EQ(::mkfifo("pipe", 0600), 0);
  const std::string text = "open pipe: no regular file; expected one that save_sequence wrote";
  EXPECT_THAT(
      error_of<FileError>([&] { restore_sequence(cache_.descriptor, 9, fs::path("pipe")); }),
      HasSubstr(text));
  EXPECT_THAT(error_of<FileError>([&] { sequence_state_info(fs::path("pipe")); }), HasSubstr(text));
  EXPECT_THAT(failed_save("pipe"), HasSubstr("open pipe: no regular file"));
  EXPECT_THAT(names(), ElementsAre("pipe"));
}

// What is verified before a reclaimer is asked is what is restored, whatever the name means by
// then.
TEST_F(SequenceStatePath, MayNameAnotherFileMeanwhile) {
  save_sequence(cache_.descriptor, 1, fs::path("one"));
  FileSource source("one");
  std::vector<std::byte> parts(1100);
  EXPECT_EQ(source.read(std::span(parts).first(100)), 100u);
  std::ofstream("two") << "something else";
  fs::rename("two", "one");
  FileSource again = source.again();
  std::vector<std::byte> all(2000);
  all.resize(again.read(all));
  EXPECT_EQ(all, save_sequence(cache_.descriptor, 1));
  parts.resize(100 + source.read(std::span(parts).subspan(100)));  // from where it was
  EXPECT_EQ(parts, all);
}

TEST_F(SequenceStatePath, ThatNamesNoFileIsRefusedAtOnce) {
  EXPECT_EQ(
      failed_save(""),
      "open \"\": names no file; expected the path of one (without a path the state is bytes)");
  EXPECT_THAT(failed_save("new/"), HasSubstr("open new/: names no file"));
  EXPECT_THAT(error_of<FileError>([&] { restore_sequence(cache_.descriptor, 9, fs::path()); }),
              HasSubstr("open \"\": No such file or directory"));
  EXPECT_THAT(names(), IsEmpty());
}

// Not the temporary file beside it, nor what a link leads to.
TEST_F(SequenceStatePath, IsTheOneThatMessagesName) {
  EXPECT_EQ(failed_save("missing/one"), "open missing/one: No such file or directory");
  fs::create_symlink("missing/one", "link");
  EXPECT_EQ(failed_save("link"), "open link: No such file or directory");
}

TEST_F(SequenceStatePath, OfALinkIsFollowedToAFileThatIsNotThereYet) {
  fs::create_directory("far");
  fs::create_symlink("far/link", "near");
  fs::create_symlink("one.state", "far/link");
  save_sequence(cache_.descriptor, 1, fs::path("near"));
  EXPECT_TRUE(fs::is_symlink("near") && fs::is_symlink("far/link"));
  EXPECT_TRUE(fs::is_regular_file(fs::symlink_status("far/one.state")));
  EXPECT_THAT(names(), ElementsAre("far", "near"));
  restore_sequence(cache_.descriptor, 2, fs::path("near"));
  EXPECT_EQ(cache_.bits(2), cache_.bits(1));
}

}  // namespace
}  // namespace seqattn
