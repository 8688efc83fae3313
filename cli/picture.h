#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace seqattn::cli {

struct Colour {
  std::uint8_t red = 0, green = 0, blue = 0;
  friend bool operator==(const Colour&, const Colour&) = default;
};

// Pixels with rectangles and words on them; (0, 0) is the upper left corner.
class Picture {
 public:
  Picture(int width, int height, Colour background);

  int width() const { return width_; }
  int height() const { return height_; }
  Colour at(int x, int y) const { return pixels_[index(x, y)]; }

  // What lies outside of the picture is left out.
  void fill(int x, int y, int width, int height, Colour colour);
  // Letters of 5 by 7 dots, each `scale` pixels wide, in capitals; unknown ones are blank.
  void write(int x, int y, std::string_view text, Colour colour, int scale = 2);
  static int text_width(std::string_view text, int scale = 2) {
    return static_cast<int>(text.size()) * 6 * scale;
  }
  static int text_height(int scale = 2) { return 7 * scale; }

  // Throws std::runtime_error naming the file and the reason.
  void save_png(const std::string& path) const;

 private:
  std::size_t index(int x, int y) const {
    return static_cast<std::size_t>(y) * static_cast<std::size_t>(width_) +
           static_cast<std::size_t>(x);
  }

  int width_, height_;
  std::vector<Colour> pixels_;
};

}  // namespace seqattn::cli
