#include "plot.h"

#include <gtest/gtest.h>

#include <optional>
#include <vector>

namespace seqattn::cli {
namespace {

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

TEST(Plot, NothingOfAnUnlimitedPoolIsFree) {
  const std::vector<Sample> samples = {{0, 25, 50, 925}, {1, 10, 140, 850}};
  const Picture picture = plot_pages(samples, std::nullopt);
  for (int y = 0; y < picture.height(); ++y) {
    for (int x = 0; x < picture.width(); ++x) ASSERT_NE(picture.at(x, y), kFreeColour);
  }
  // The axis ends at the most that was taken.
  const int right = kPlotArea.left + kPlotArea.width * 3 / 4;
  EXPECT_EQ(picture.at(right, kPlotArea.top + 1), kCachedColour);
  EXPECT_EQ(picture.at(kPlotArea.left + 5, kPlotArea.top + 5), kPaperColour);
}

TEST(Plot, OfNothingIsFree) {
  const Picture picture = plot_pages({}, 0);
  EXPECT_EQ(picture.at(kPlotArea.left + 5, kPlotArea.top + 5), kFreeColour);
  EXPECT_EQ(plot_pages({}, std::nullopt).at(kPlotArea.left + 5, kPlotArea.top + 5), kPaperColour);
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
