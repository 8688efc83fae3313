#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "picture.h"
#include "samples.h"

namespace seqattn::cli {

inline constexpr Colour kInUseColour{31, 96, 160}, kCachedColour{242, 158, 56},
    kFreeColour{226, 230, 234}, kPaperColour{255, 255, 255};

// The part of the picture that the areas cover.
struct PlotArea {
  int left = 0, top = 0, width = 0, height = 0;
};
inline constexpr PlotArea kPlotArea{110, 60, 1050, 440};

// Pages in use, cached and free, one on top of the other, over the steps of a replay; axes with
// ticks, and what each colour means. `num_pages` is the upper end of the axis, and pages beyond the
// samples' own are free. Of a pool without a limit nothing is free: the axis ends at the most pages
// that were taken, and the legend says so.
Picture plot_pages(const std::vector<Sample>& samples, std::optional<std::int64_t> num_pages);

// 1500000 as "1.5M", 20000 as "20K".
std::string short_number(double number);

}  // namespace seqattn::cli
