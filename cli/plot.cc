#include "plot.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <string_view>
#include <utility>

namespace seqattn::cli {
namespace {

constexpr int kWidth = 1200, kHeight = 580;
constexpr Colour kInk{40, 44, 52}, kGrid{200, 204, 210};

// 1, 2 or 5 times a power of ten, so that about `num_ticks` of them make `range`.
std::int64_t tick_distance(std::int64_t range, std::int64_t num_ticks) {
  for (std::int64_t power = 1;; power *= 10) {
    for (const std::int64_t factor : {1, 2, 5}) {
      if (factor * power * num_ticks >= range) return factor * power;
    }
  }
}

int pixels(std::int64_t value, std::int64_t range, int size) {
  return static_cast<int>(
      std::lround(static_cast<double>(value) / static_cast<double>(range) * size));
}

void draw_areas(Picture& picture, const std::vector<Sample>& samples, std::int64_t num_pages,
                Colour above) {
  const auto [left, top, width, height] = kPlotArea;
  picture.fill(left, top, width, height, above);
  if (samples.empty()) return;
  for (int x = 0; x < width; ++x) {
    const auto i = static_cast<std::size_t>(x) * samples.size() / static_cast<std::size_t>(width);
    const Sample& sample = samples[i];
    const int low = pixels(sample.in_use, num_pages, height);
    const int high = pixels(sample.in_use + sample.cached, num_pages, height);
    picture.fill(left + x, top + height - low, 1, low, kInUseColour);
    picture.fill(left + x, top + height - high, 1, high - low, kCachedColour);
  }
}

void draw_axes(Picture& picture, std::int64_t num_steps, std::int64_t num_pages) {
  const auto [left, top, width, height] = kPlotArea;
  const int bottom = top + height, half = Picture::text_height() / 2;
  const std::int64_t pages = tick_distance(num_pages, 6), steps = tick_distance(num_steps, 8);
  for (std::int64_t value = 0; value <= num_pages; value += pages) {
    const int y = bottom - pixels(value, num_pages, height);
    const std::string label = short_number(static_cast<double>(value));
    picture.fill(left - 8, y, 8, 2, kInk);
    for (int x = left; x < left + width; x += 8) picture.fill(x, y, 2, 1, kGrid);
    picture.write(left - 14 - Picture::text_width(label), y - half, label, kInk);
  }
  for (std::int64_t value = 0; value <= num_steps; value += steps) {
    const int x = left + pixels(value, num_steps, width);
    const std::string label = short_number(static_cast<double>(value));
    picture.fill(x, bottom, 2, 8, kInk);
    picture.write(x - Picture::text_width(label) / 2, bottom + 14, label, kInk);
  }
  picture.fill(left - 2, top, 2, height + 2, kInk);
  picture.fill(left - 2, bottom, width + 2, 2, kInk);
  constexpr std::string_view kSteps = "decode steps";
  picture.write(left + (width - Picture::text_width(kSteps)) / 2, bottom + 42, kSteps, kInk);
  picture.write(16, 22, "pages", kInk);
}

void draw_legend(Picture& picture, bool is_unlimited) {
  int x = kPlotArea.left;
  const auto entry = [&](const char* name, Colour colour) {
    picture.fill(x, 20, 18, 18, kInk);
    picture.fill(x + 1, 21, 16, 16, colour);
    picture.write(x + 28, 22, name, kInk);
    x += 160;
  };
  entry("in use", kInUseColour);
  entry("cached", kCachedColour);
  if (is_unlimited) {
    picture.write(x, 22, "of an unlimited pool", kInk);
  } else {
    entry("free", kFreeColour);
  }
}

std::int64_t most_taken(const std::vector<Sample>& samples) {
  std::int64_t most = 0;
  for (const Sample& sample : samples) most = std::max(most, sample.in_use + sample.cached);
  return most;
}

}  // namespace

std::string short_number(double number) {
  constexpr std::array<std::pair<double, const char*>, 3> kUnits{
      {{1e9, "G"}, {1e6, "M"}, {1e3, "K"}}};
  const char* unit = "";
  for (const auto& [size, name] : kUnits) {
    if (number < size) continue;
    number /= size;
    unit = name;
    break;
  }
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.4g%s", number, unit);
  return text.data();
}

Picture plot_pages(const std::vector<Sample>& samples, std::optional<std::int64_t> num_pages) {
  Picture picture(kWidth, kHeight, kPaperColour);
  const std::int64_t top = std::max<std::int64_t>(num_pages ? *num_pages : most_taken(samples), 1);
  const std::int64_t num_steps =
      samples.empty() ? 1 : std::max<std::int64_t>(samples.back().step, 1);
  draw_areas(picture, samples, top, num_pages ? kFreeColour : kPaperColour);
  draw_axes(picture, num_steps, top);
  draw_legend(picture, !num_pages);
  return picture;
}

}  // namespace seqattn::cli
