#include "picture.h"

#include <png.h>

#include <algorithm>
#include <cctype>
#include <stdexcept>

#include "letters.h"

namespace seqattn::cli {

static_assert(sizeof(Colour) == 3, "rows of pixels are what PNG takes");

Picture::Picture(int width, int height, Colour background)
    : width_(width),
      height_(height),
      pixels_(static_cast<std::size_t>(width) * static_cast<std::size_t>(height), background) {}

void Picture::fill(int x, int y, int width, int height, Colour colour) {
  const int left = std::max(x, 0), right = std::min(x + width, width_);
  for (int row = std::max(y, 0); row < std::min(y + height, height_); ++row) {
    for (int column = left; column < right; ++column) pixels_[index(column, row)] = colour;
  }
}

void Picture::write(int x, int y, std::string_view text, Colour colour, int scale) {
  for (const char character : text) {
    const auto letter =
        kLetters.find(static_cast<char>(std::toupper(static_cast<unsigned char>(character))));
    for (int row = 0; row < 7 && letter != std::string_view::npos; ++row) {
      for (int column = 0; column < 5; ++column) {
        if ((kLetterDots[letter][static_cast<std::size_t>(row)] >> (4 - column) & 1) == 0) continue;
        fill(x + column * scale, y + row * scale, scale, scale, colour);
      }
    }
    x += text_width(" ", scale);
  }
}

void Picture::save_png(const std::string& path) const {
  png_image image{};
  image.version = PNG_IMAGE_VERSION;
  image.width = static_cast<png_uint_32>(width_);
  image.height = static_cast<png_uint_32>(height_);
  image.format = PNG_FORMAT_RGB;
  if (png_image_write_to_file(&image, path.c_str(), 0, pixels_.data(), 0, nullptr) == 0) {
    throw std::runtime_error(path + ": " + image.message);
  }
}

}  // namespace seqattn::cli
