#pragma once

#include <chrono>
#include <cstdint>
#include <ostream>
#include <string>

namespace seqattn::cli {

// One line that shows how much is done, drawn over and over, ten times a second at most.
class ProgressBar {
 public:
  ProgressBar(std::ostream& out, std::int64_t total) : out_(out), total_(total) {}
  ~ProgressBar() {
    if (is_drawn_) out_ << "\r\x1b[K" << std::flush;
  }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  void show(std::int64_t done) {
    const auto now = std::chrono::steady_clock::now();
    if (is_drawn_ && done < total_ && now - drawn_at_ < std::chrono::milliseconds(100)) return;
    constexpr std::int64_t kWidth = 40;
    const std::int64_t full = total_ == 0 ? kWidth : kWidth * done / total_;
    out_ << "\rreplay [" << std::string(static_cast<std::size_t>(full), '#')
         << std::string(static_cast<std::size_t>(kWidth - full), '.') << "] " << done << " of "
         << total_ << (total_ == 1 ? " request" : " requests") << std::flush;
    is_drawn_ = true;
    drawn_at_ = now;
  }

 private:
  std::ostream& out_;
  std::int64_t total_;
  bool is_drawn_ = false;
  std::chrono::steady_clock::time_point drawn_at_{};
};

}  // namespace seqattn::cli
