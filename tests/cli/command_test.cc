#include "command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <nlohmann/json.hpp>
#include <sstream>
#include <streambuf>
#include <string>
#include <utility>
#include <vector>

#include "command_fixture.h"
#include "plot.h"

namespace seqattn::cli {
namespace {

using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

using Command = testing::Command;
using testing::kGood;

TEST_F(Command, PrintsATable) {
  EXPECT_EQ(run({"replay", small_trace(), "--pages", "200", "--concurrency", "4"}), 0);
  for (const char* row : {"requests", "input blocks", "found", "evicted pages", "taken, at most",
                          "refused admissions", "operations", "a second"}) {
    EXPECT_THAT(out_, HasSubstr(row));
  }
  EXPECT_THAT(err_, IsEmpty());
}

TEST_F(Command, PrintsJson) {
  ASSERT_EQ(run({"replay", small_trace(), "--json", "--page-size", "32"}), 0);
  const auto json = nlohmann::json::parse(out_);
  EXPECT_EQ(json["requests"], 12);
  EXPECT_EQ(json["blocks"], 30);
  EXPECT_EQ(json["blocks_found"], 15);
  EXPECT_EQ(json["options"]["page_size"], 32);
  EXPECT_EQ(json["options"]["policy"], "lru");
  EXPECT_EQ(json["evicted_pages"], 0);
  EXPECT_EQ(json["malformed_lines"], 0);
  EXPECT_DOUBLE_EQ(json["block_hit_ratio"], 15.0 / 30);
}

TEST_F(Command, NamesMalformedLinesAndGoesOn) {
  const std::string trace = write(std::string(kGood) + "\nno\n" + kGood + "\n{}\n");
  ASSERT_EQ(run({"replay", trace, "--json"}), 0);
  EXPECT_THAT(err_, HasSubstr(trace + ":2: no JSON at byte"));
  EXPECT_THAT(err_, HasSubstr(trace + ":4: timestamp: got nothing"));
  const auto json = nlohmann::json::parse(out_);
  EXPECT_EQ(json["requests"], 2);
  EXPECT_EQ(json["malformed_lines"], 2);
}

TEST_F(Command, NamesMalformedLinesPastTheFirstFewInOneLine) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "no\n";
  const std::string trace = write(text + kGood + "\nno\n" + kGood + "\nno\n\nno\n");
  ASSERT_EQ(run({"replay", trace}), 0);
  EXPECT_THAT(err_, HasSubstr(":20: no JSON"));
  EXPECT_THAT(err_, Not(HasSubstr(":21: no JSON")));
  EXPECT_THAT(err_, EndsWith("\n" + trace + ": 33 more malformed lines: 21-50, 52, 54, 56\n"));
  text.resize(21 * std::string("no\n").size());
  ASSERT_EQ(run({"replay", write(text + kGood)}), 0);
  EXPECT_THAT(err_, EndsWith("\n" + trace + ": 1 more malformed line: 21\n"));
}

TEST_F(Command, ATraceWithoutARequestIsNoTrace) {
  for (const char* text : {"", "\n \n", "no\n{}\n"}) {
    const std::string trace = write(text);
    EXPECT_EQ(run({"replay", trace, "--json", "--plot", path("plot.png")}), 1);
    EXPECT_THAT(err_, HasSubstr("seqattn: " + trace + ": no request in it; expected one JSON"));
    EXPECT_THAT(out_, IsEmpty());
    EXPECT_FALSE(std::filesystem::exists(path("plot.png")));
  }
}

TEST_F(Command, OneOfAThingIsNotMany) {
  const std::string trace = write(kGood);
  ASSERT_EQ(run({"replay", trace, "--page-size", "1"}, /*is_terminal=*/true), 0);
  EXPECT_THAT(out_, HasSubstr("at most 1 request side by side"));
  EXPECT_THAT(out_, HasSubstr("of 1 token, policy"));
  EXPECT_THAT(err_, HasSubstr("] 1 of 1 request\r"));
  ASSERT_EQ(run({"replay", trace, "--concurrency", "1000"}), 0);
  EXPECT_THAT(out_, HasSubstr("at most 1,000 requests side by side"));
  EXPECT_THAT(out_, HasSubstr("of 16 tokens, policy"));
}

// docs/replay.md has every key in backticks.
TEST_F(Command, EveryKeyOfTheJsonIsInTheDocs) {
  std::ifstream in(SEQATTN_DOCS "/replay.md");
  const std::string docs(std::istreambuf_iterator<char>(in), {});
  ASSERT_EQ(run({"replay", small_trace(), "--json"}), 0);
  const auto json = nlohmann::json::parse(out_);
  for (const auto& [key, value] : json.items()) {
    EXPECT_THAT(docs, HasSubstr("`" + key + "`"));
    if (!value.is_object()) continue;
    for (const auto& [option, _] : value.items()) EXPECT_THAT(docs, HasSubstr("`" + option + "`"));
  }
}

TEST_F(Command, StrictStopsAtTheFirst) {
  const std::string trace = write(std::string(kGood) + "\nno\n" + kGood + "\n");
  EXPECT_EQ(run({"replay", trace, "--strict"}), 1);
  EXPECT_THAT(err_, HasSubstr(trace + ":2: no JSON at byte"));
  EXPECT_THAT(out_, IsEmpty());
  EXPECT_EQ(run({"replay", small_trace(), "--strict"}), 0);
}

TEST_F(Command, FilesThatCannotBeUsedAreNamed) {
  EXPECT_EQ(run({"replay", path("nowhere.jsonl")}), 1);
  EXPECT_THAT(err_, HasSubstr("nowhere.jsonl: No such file"));
  EXPECT_EQ(run({"replay", path("")}), 1);
}

TEST_F(Command, APlotThatCannotBeWrittenIsNamedBeforeTheRun) {
  for (const auto& [plot, reason] :
       {std::pair(path("nowhere/plot.png"), "No such file"), std::pair(path(""), "Is a directory"),
        std::pair(path("plots/"), "Is a directory"),
        std::pair(small_trace() + "/plot.png", "Not a directory")}) {
    EXPECT_EQ(run({"replay", path("no_trace"), "--plot", plot}), 1);
    EXPECT_THAT(err_, HasSubstr("seqattn: " + plot + ": " + reason));
    EXPECT_THAT(out_, IsEmpty());
  }
  if (geteuid() == 0) return;  // who may write everywhere
  const std::string shut = path("shut.png");
  std::ofstream(shut) << "kept";
  std::filesystem::permissions(shut, std::filesystem::perms::owner_read);
  EXPECT_EQ(run({"replay", small_trace(), "--plot", shut}), 1);
  EXPECT_THAT(err_, HasSubstr("shut.png: Permission denied"));
}

TEST_F(Command, AnAnswerThatCannotBeWrittenIsAnError) {
  struct FullDisk : std::streambuf {
  } full;  // takes nothing
  std::ostream out(&full);
  std::ostringstream err;
  for (const char* form : {"--json", "--strict"}) {
    EXPECT_EQ(run_command({"replay", small_trace(), form}, out, err, false), 1);
    EXPECT_THAT(err.str(), HasSubstr("seqattn: writing the answer failed"));
    out.clear();
    err.str("");
  }
}

TEST_F(Command, APoolBeyondMemoryNamesTheWayOut) {
#ifdef SEQATTN_SANITIZE
  GTEST_SKIP() << "sanitizers keep more address space than the limit of this test";
#endif
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_AS, &before), 0);
  rlimit limit = before;
  limit.rlim_cur = rlim_t{1} << 30;
  ASSERT_EQ(setrlimit(RLIMIT_AS, &limit), 0);
  const int status = run({"replay", small_trace(), "--pages", "2147483647"});
  ASSERT_EQ(setrlimit(RLIMIT_AS, &before), 0);
  EXPECT_EQ(status, 1);
  EXPECT_THAT(err_,
              HasSubstr("seqattn: out of memory: a pool takes some 16 bytes a page; --pages"));
  EXPECT_THAT(out_, IsEmpty());
}

TEST_F(Command, ATerminalGetsAProgressBar) {
  EXPECT_EQ(run({"replay", small_trace()}, /*is_terminal=*/true), 0);
  EXPECT_THAT(err_, HasSubstr("] 12 of 12 requests"));
  EXPECT_THAT(err_, EndsWith("\r\x1b[K"));
}

// Reads the picture back, with nothing of the program's own.
std::int64_t num_pixels(const std::string& path, const Colour& colour) {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  if (png_image_begin_read_from_file(&image, path.c_str()) == 0) return -1;
  image.format = PNG_FORMAT_RGB;
  std::vector<std::uint8_t> pixels(PNG_IMAGE_SIZE(image));
  if (png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr) == 0) return -1;
  EXPECT_EQ(image.width, 1200u);
  EXPECT_EQ(image.height, 580u);
  std::int64_t count = 0;
  for (std::size_t i = 0; i < pixels.size(); i += 3) {
    count += Colour{pixels[i], pixels[i + 1], pixels[i + 2]} == colour;
  }
  return count;
}

TEST_F(Command, PlotsThePages) {
  const std::string plot = path("plot.png");
  ASSERT_EQ(run({"replay", small_trace(), "--pages", "300", "--plot", plot}), 0);
  for (const Colour& colour : {kInUseColour, kCachedColour, kFreeColour}) {
    EXPECT_GT(num_pixels(plot, colour), 2000);
  }
  ASSERT_EQ(run({"replay", small_trace(), "--plot", plot}), 0);  // replaces it
  EXPECT_GT(num_pixels(plot, kInUseColour), 2000);
  EXPECT_EQ(num_pixels(plot, kFreeColour), 0);
}

}  // namespace
}  // namespace seqattn::cli
