#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <sstream>
#include <string>
#include <vector>

#include "command_fixture.h"

// What a replay takes follows the pages of its pool, and not those that the trace goes through.
namespace seqattn::cli {
namespace {

constexpr std::int64_t kMiB = 1 << 20;

std::int64_t peak_bytes() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss * 1024;
}

// By how much the program's peak memory grows in a child of this process; -1 where it fails.
std::int64_t growth_in_a_child(const std::vector<std::string>& arguments) {
  int ends[2];
  if (pipe(ends) != 0) return -1;
  const pid_t child = fork();
  if (child == 0) {
    const std::int64_t before = peak_bytes();
    std::ostringstream out, err;
    const int status = run_command(arguments, out, err, /*is_terminal=*/false);
    const std::int64_t growth = status == 0 ? peak_bytes() - before : -1;
    _exit(write(ends[1], &growth, sizeof growth) == sizeof growth ? 0 : 1);
  }
  close(ends[1]);
  std::int64_t growth = -1;
  if (child < 0 || read(ends[0], &growth, sizeof growth) != sizeof growth) growth = -1;
  close(ends[0]);
  if (child > 0) waitpid(child, nullptr, 0);
  return growth;
}

using Memory = testing::Command;

TEST_F(Memory, FollowsThePagesOfThePool) {
#ifdef SEQATTN_SANITIZE
  GTEST_SKIP() << "sanitizers keep memory of their own";
#endif
  // 4 million tokens, which no two requests share, in pages of one token.
  constexpr int kRequests = 500, kBlocks = 16;
  std::ofstream trace(path("trace.jsonl"));
  for (int request = 0; request < kRequests; ++request) {
    trace << R"({"timestamp": 0, "input_length": )" << kBlocks * 512
          << R"(, "output_length": 4, "hash_ids": [)";
    for (int i = 0; i < kBlocks; ++i) trace << (i > 0 ? ", " : "") << request * kBlocks + i;
    trace << "]}\n";
  }
  trace.close();
  std::vector<std::string> arguments = {"replay", path("trace.jsonl"), "--page-size", "1"};
  const std::int64_t whole = growth_in_a_child(arguments);
  arguments.insert(arguments.end(), {"--pages", "20000"});
  const std::int64_t small = growth_in_a_child(arguments);
  ASSERT_GE(small, 0);
  EXPECT_LT(small, 8 * kMiB);
  EXPECT_GT(whole, 64 * kMiB);  // so that the bound means something
}

}  // namespace
}  // namespace seqattn::cli
