#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "picture.h"
#include "samples.h"

namespace seqattn::cli {

inline constexpr Colour kInUseColour{31, 96, 160}, kCachedColour{242, 158, 56},
    kFreeColour{226, 230, 234};

// The part of the picture that the areas cover.
struct PlotArea {
  int left = 0, top = 0, width = 0, height = 0;
};
inline constexpr PlotArea kPlotArea{110, 60, 1050, 440};

// Pages in use, cached and free, one on top of the other, over the steps of a replay; axes with
// ticks, and what each colour means. `num_pages` is the upper end of the axis, and pages beyond the
// samples' own are free.
Picture plot_pages(const std::vector<Sample>& samples, std::int64_t num_pages);

// 1500000 as "1.5M", 20000 as "20K".
std::string short_number(double number);

}  // namespace seqattn::cli
