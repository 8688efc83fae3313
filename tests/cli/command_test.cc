#include "command.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <png.h>

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <vector>

#include "plot.h"

namespace seqattn::cli {
namespace {

using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;
using ::testing::StartsWith;

class Command : public ::testing::Test {
 protected:
  Command()
      : folder_(std::filesystem::path(::testing::TempDir()) /
                ("seqattn_" +
                 std::string(::testing::UnitTest::GetInstance()->current_test_info()->name()))) {
    std::filesystem::create_directories(folder_);
  }
  ~Command() override { std::filesystem::remove_all(folder_); }

  std::string path(const std::string& name) const { return (folder_ / name).string(); }
  std::string write(const std::string& text) const {
    std::ofstream(path("trace.jsonl")) << text;
    return path("trace.jsonl");
  }
  // The trace that lies beside the tests.
  static std::string small_trace() { return SEQATTN_TEST_DATA "/small_trace.jsonl"; }

  int run(std::vector<std::string> arguments, bool is_terminal = false) {
    std::ostringstream out, err;
    const int status = run_command(std::move(arguments), out, err, is_terminal);
    out_ = out.str();
    err_ = err.str();
    return status;
  }

  std::filesystem::path folder_;
  std::string out_, err_;
};

constexpr const char* kGood =
    R"({"timestamp": 0, "input_length": 5, "output_length": 2, "hash_ids": [1]})";

TEST_F(Command, HelpNamesEveryOption) {
  EXPECT_EQ(run({"replay", "--help"}), 0);
  for (const char* option : {"TRACE", "--pages", "--page-size", "--policy", "--concurrency",
                             "--cache-output", "--plot", "--json", "--strict"}) {
    EXPECT_THAT(out_, HasSubstr(option));
  }
  EXPECT_EQ(run({"--help"}), 0);
  EXPECT_THAT(out_, HasSubstr("replay"));
  EXPECT_EQ(run({"--version"}), 0);
  EXPECT_THAT(out_, StartsWith("0."));
}

TEST_F(Command, WrongArgumentsAreNamed) {
  EXPECT_NE(run({}), 0);
  EXPECT_NE(run({"replay"}), 0);
  EXPECT_THAT(err_, HasSubstr("TRACE is required"));
  EXPECT_NE(run({"replay", small_trace(), "--policy", "best"}), 0);
  EXPECT_THAT(err_, HasSubstr("--policy"));
  EXPECT_NE(run({"replay", small_trace(), "--pages", "-1"}), 0);
  EXPECT_THAT(err_, HasSubstr("--pages"));
  EXPECT_NE(run({"replay", small_trace(), "--page-size", "0"}), 0);
  EXPECT_NE(run({"replay", small_trace(), "--concurrency", "0"}), 0);
  EXPECT_NE(run({"replay", small_trace(), "--unknown"}), 0);
  EXPECT_THAT(out_, IsEmpty());
}

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

TEST_F(Command, CountsMalformedLinesPastTheFirstFew) {
  std::string text;
  for (int i = 0; i < 50; ++i) text += "no\n";
  ASSERT_EQ(run({"replay", write(text)}), 0);
  EXPECT_THAT(err_, HasSubstr(":20: no JSON"));
  EXPECT_THAT(err_, Not(HasSubstr(":21: no JSON")));
  EXPECT_THAT(err_, HasSubstr("30 more malformed lines"));
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
  EXPECT_EQ(run({"replay", small_trace(), "--plot", path("nowhere/plot.png")}), 1);
  EXPECT_THAT(err_, HasSubstr("nowhere/plot.png"));
}

TEST_F(Command, ATerminalGetsAProgressBar) {
  EXPECT_EQ(run({"replay", small_trace()}, /*is_terminal=*/true), 0);
  EXPECT_THAT(err_, HasSubstr("] 12 of 12 requests"));
  EXPECT_THAT(err_, ::testing::EndsWith("\r\x1b[K"));
}

// Reads the picture back, with nothing of the program's own.
TEST_F(Command, PlotsThePages) {
  ASSERT_EQ(run({"replay", small_trace(), "--pages", "300", "--plot", path("plot.png")}), 0);
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  ASSERT_NE(png_image_begin_read_from_file(&image, path("plot.png").c_str()), 0) << image.message;
  image.format = PNG_FORMAT_RGB;
  std::vector<std::uint8_t> pixels(PNG_IMAGE_SIZE(image));
  ASSERT_NE(png_image_finish_read(&image, nullptr, pixels.data(), 0, nullptr), 0);
  EXPECT_EQ(image.width, 1200u);
  EXPECT_EQ(image.height, 580u);
  for (const Colour& colour : {kInUseColour, kCachedColour, kFreeColour}) {
    std::int64_t count = 0;
    for (std::size_t i = 0; i < pixels.size(); i += 3) {
      count += Colour{pixels[i], pixels[i + 1], pixels[i + 2]} == colour;
    }
    EXPECT_GT(count, 2000);
  }
}

TEST(Plot, AreasAreAsHighAsTheirPages) {
  const std::vector<Sample> samples = {{0, 25, 50, 25}, {1, 0, 100, 0}};
  const Picture picture = plot_pages(samples, 100);
  const auto at = [&](double x, double y) {  // from the lower left, both from 0 to 1
    return picture.at(
        kPlotArea.left + static_cast<int>(x * kPlotArea.width),
        kPlotArea.top + kPlotArea.height - 1 - static_cast<int>(y * (kPlotArea.height - 1)));
  };
  EXPECT_EQ(at(0.26, 0.05), kInUseColour);
  EXPECT_EQ(at(0.26, 0.24), kInUseColour);
  EXPECT_EQ(at(0.26, 0.26), kCachedColour);
  EXPECT_EQ(at(0.26, 0.74), kCachedColour);
  EXPECT_EQ(at(0.26, 0.76), kFreeColour);
  EXPECT_EQ(at(0.76, 0.05), kCachedColour);
  EXPECT_EQ(at(0.76, 0.98), kCachedColour);
}

TEST(Plot, OfNothingIsFree) {
  const Picture picture = plot_pages({}, 0);
  EXPECT_EQ(picture.at(kPlotArea.left + 5, kPlotArea.top + 5), kFreeColour);
}

TEST(Plot, ShortensNumbers) {
  EXPECT_EQ(short_number(0), "0");
  EXPECT_EQ(short_number(999), "999");
  EXPECT_EQ(short_number(20'000), "20K");
  EXPECT_EQ(short_number(1'500'000), "1.5M");
  EXPECT_EQ(short_number(5e9), "5G");
}

TEST(Picture, WritesLettersAndLeavesOutWhatLiesOutside) {
  const Colour ink{1, 2, 3}, paper{255, 255, 255};
  Picture picture(20, 10, paper);
  picture.write(1, 1, "1", ink, 1);
  EXPECT_EQ(picture.at(3, 1), ink);    // its top
  EXPECT_EQ(picture.at(1, 1), paper);  // beside it
  EXPECT_EQ(picture.at(3, 7), ink);    // its foot
  picture.fill(-5, 8, 100, 100, ink);
  EXPECT_EQ(picture.at(0, 9), ink);
  EXPECT_EQ(picture.at(19, 8), ink);
  EXPECT_EQ(picture.at(19, 7), paper);
}

}  // namespace
}  // namespace seqattn::cli
