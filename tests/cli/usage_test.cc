#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "command_fixture.h"

// What the program says of its arguments.
namespace seqattn::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

using Usage = testing::Command;
using testing::kGood;

TEST_F(Usage, HelpNamesEveryOption) {
  EXPECT_EQ(run({"replay", "--help"}), 0);
  for (const char* option : {"TRACE", "--pages", "--page-size", "--policy", "--concurrency",
                             "--cache-output", "--plot", "--json", "--strict", "Status"}) {
    EXPECT_THAT(out_, HasSubstr(option));
  }
  // The words of the library that reads arguments.
  for (const char* word : {"ENUM", "INT", "TEXT", "->"}) EXPECT_THAT(out_, Not(HasSubstr(word)));
  EXPECT_THAT(err_, IsEmpty());
  EXPECT_EQ(run({"--help"}), 0);
  EXPECT_THAT(out_, HasSubstr("replay"));
  EXPECT_EQ(run({"--version"}), 0);
  EXPECT_THAT(out_, StartsWith("0."));
}

TEST_F(Usage, WrongArgumentsAreOneSentenceAndStatus2) {
  const std::string trace = small_trace();
  const std::vector<std::pair<std::vector<std::string>, std::string>> cases = {
      {{}, "expected a command: replay"},
      {{"play"}, "got the command 'play'; expected replay"},
      {{"--unknown"}, "--unknown: no such option"},
      {{"replay"}, "TRACE: got nothing; expected a file of JSON lines"},
      {{"replay", ""}, "TRACE: got nothing; expected the name of a file"},
      {{"replay", trace, "other"}, "got 'other' behind the trace; expected one trace"},
      {{"replay", trace, "--unknown"}, "--unknown: no such option"},
      {{"replay", trace, "--policy", "best"}, "--policy: got 'best'; expected lru, reuse or none"},
      {{"replay", trace, "--policy", "1"}, "--policy: got '1'; expected lru, reuse or none"},
      {{"replay", trace, "--pages", "-1"},
       "--pages: got '-1'; expected a whole number from 0 to 2147483647"},
      {{"replay", trace, "--pages", "2147483648"},
       "--pages: got '2147483648'; expected a whole number from 0 to 2147483647"},
      {{"replay", trace, "--pages", "1e3"},
       "--pages: got '1e3'; expected a whole number from 0 to 2147483647"},
      {{"replay", trace, "--pages"}, "--pages: got no value; expected one"},
      {{"replay", trace, "--pages", "1", "--pages", "2"}, "--pages: given twice; expected once"},
      {{"replay", trace, "--page-size", "0"},
       "--page-size: got '0'; expected a whole number from 1 to 1048576"},
      {{"replay", trace, "--concurrency", "0"},
       "--concurrency: got '0'; expected a whole number from 1 to 2147483647"},
      {{"replay", trace, "--plot", ""}, "--plot: got nothing; expected the name of a file"},
      {{"replay", trace, "--json=3"}, "--json: takes no value"},
  };
  for (const auto& [arguments, sentence] : cases) {
    EXPECT_EQ(run(arguments), 2) << sentence;
    EXPECT_EQ(err_, "seqattn: " + sentence + " (seqattn replay --help)\n");
    EXPECT_THAT(out_, IsEmpty());
  }
}

TEST_F(Usage, APlotInTheTracesPlaceIsRefused) {
  const std::string trace = write(kGood);
  std::filesystem::create_symlink(trace, path("link"));
  std::filesystem::create_hard_link(trace, path("other"));
  for (const std::string& plot : {trace, path("./trace.jsonl"), path("link"), path("other")}) {
    EXPECT_EQ(run({"replay", trace, "--plot", plot}), 2);
    EXPECT_EQ(err_, "seqattn: --plot: got '" + plot +
                        "', which is the trace; expected another file (seqattn replay --help)\n");
    EXPECT_THAT(out_, IsEmpty());
  }
  std::ifstream in(trace);
  EXPECT_EQ(std::string(std::istreambuf_iterator<char>(in), {}), kGood);
}

TEST_F(Usage, EveryPolicyHasAName) {
  for (const char* policy : {"lru", "reuse", "none"}) {
    EXPECT_EQ(run({"replay", small_trace(), "--policy", policy}), 0);
    EXPECT_THAT(out_, HasSubstr(std::string("policy ") + policy));
  }
}

}  // namespace
}  // namespace seqattn::cli
